#include "kernels/cuda/gemm/products.cuh"
#include "kernels/cuda/runtime.h"

namespace onnxopt::gemm::cuda {

namespace {

struct OnDevice {
  cudaStream_t stream;

  template <int P, class L, class Code>
  Result<bool> operator()(const Products<Code>& products, const Launch& launch) const {
    return onnxopt::cuda::start(multiply_packed<P, L, Code>, products, launch.tiles, kThreads, launch.shared_bytes, stream);
  }
};

struct Load {
  template <int P, class L, class Code>
  Result<bool> operator()() const {
    return onnxopt::cuda::load(multiply_packed<P, L, Code>);
  }
};

Result<bool> prepare() {
  const Result<bool> done = for_each_form(Load{});
  return done ? prepare_tensor() : done;
}

Result<bool> run(const Problem& problem, void* stream) {
  if (problem.precision != Precision::kFloat) return run_tensor(problem, stream);
  return with_products(problem, OnDevice{static_cast<cudaStream_t>(stream)});
}

}  // namespace

const Kernels& kernels() {
  static constexpr Kernels instance{prepare, run};
  return instance;
}

}  // namespace onnxopt::gemm::cuda
