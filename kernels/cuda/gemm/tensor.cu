#include "kernels/cuda/gemm/tensor_products.cuh"
#include "kernels/cuda/launcher.h"

namespace onnxopt::gemm::cuda {

const onnxopt::cuda::Kernels<Problem>& tensor_kernels() { return onnxopt::cuda::kernels_of<TensorFamily>(); }

}  // namespace onnxopt::gemm::cuda
