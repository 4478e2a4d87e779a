#include "kernels/cuda/qgemm/products.cuh"
#include "kernels/cuda/runtime.h"

namespace onnxopt::qgemm::cuda {

namespace {

struct OnDevice {
  cudaStream_t stream;

  template <class T, class L, class Code>
  Result<bool> operator()(const Products<Code>& products, const Launch& launch) const {
    return onnxopt::cuda::start(multiply_bytes<T, L, Code>, products, launch.tiles, kThreads, launch.shared_bytes, stream);
  }
};

struct Load {
  template <class T, class L, class Code>
  Result<bool> operator()() const {
    return onnxopt::cuda::load(multiply_bytes<T, L, Code>);
  }
};

Result<bool> prepare() { return gemm::cuda::for_each_tensor_form(Load{}); }

Result<bool> run(const Problem& problem, void* stream) {
  const Result<int> processors = onnxopt::cuda::processors();
  if (!processors) return Result<bool>::failure(processors.error());
  return with_products(problem, *processors, OnDevice{static_cast<cudaStream_t>(stream)});
}

}  // namespace

const Kernels& kernels() {
  static constexpr Kernels instance{prepare, run};
  return instance;
}

}  // namespace onnxopt::qgemm::cuda
