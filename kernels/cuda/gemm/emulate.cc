#include "kernels/cuda/simt/emulate.h"

#include "kernels/cuda/gemm/products.cuh"
#include "kernels/cuda/gemm/tensor_products.cuh"

namespace onnxopt::gemm::cuda {

Result<bool> emulate(const Problem& problem) {
  return problem.precision == Precision::kFloat ? simt::emulate<Family>(problem) : simt::emulate<TensorFamily>(problem);
}

}  // namespace onnxopt::gemm::cuda
