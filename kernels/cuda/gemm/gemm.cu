#include "kernels/cuda/gemm/products.cuh"
#include "kernels/cuda/launcher.h"

namespace onnxopt::gemm::cuda {

namespace {

Result<bool> prepare() {
  const Result<bool> done = onnxopt::cuda::prepare<Family>();
  return done ? tensor_kernels().prepare() : done;
}

Result<bool> run(const Problem& problem, void* stream) {
  return problem.precision == Precision::kFloat ? onnxopt::cuda::run<Family>(problem, stream)
                                                : tensor_kernels().run(problem, stream);
}

}  // namespace

const onnxopt::cuda::Kernels<Problem>& kernels() {
  static constexpr onnxopt::cuda::Kernels<Problem> instance{prepare, run};
  return instance;
}

}  // namespace onnxopt::gemm::cuda
