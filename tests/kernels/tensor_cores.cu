// One form of each kernel that has to multiply on tensor cores, for test_tensor_cores.py.
#include "kernels/cuda/attention/halves.cuh"
#include "kernels/cuda/gemm/tensor_products.cuh"
#include "kernels/cuda/qgemm/products.cuh"

namespace onnxopt {

using gemm::cuda::NoProgram;
using gemm::cuda::Small;
namespace ew = elementwise::cuda;
template <Element E>
using Two = attention::cuda::TwoByteElement<E>;

/// So that the kernels are compiled.
const void* const kKernels[] = {
    reinterpret_cast<const void*>(qgemm::cuda::multiply_bytes<Small, ew::Usual, NoProgram>),
    reinterpret_cast<const void*>(gemm::cuda::multiply_tensors<2, Small, ew::Usual, NoProgram>),
    reinterpret_cast<const void*>(gemm::cuda::multiply_tensors<4, Small, ew::Usual, NoProgram>),
    reinterpret_cast<const void*>(attention::cuda::attend_halves<64, Two<Element::kHalf>>),
    reinterpret_cast<const void*>(attention::cuda::attend_halves<64, Two<Element::kBrain>>),
};

}  // namespace onnxopt
