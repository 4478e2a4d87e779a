#include "kernels/cuda/qconv/windows.cuh"
#include "kernels/cuda/runtime.h"

namespace onnxopt::qconv::cuda {

namespace {

struct OnDevice {
  cudaStream_t stream;

  template <class T, class L, class Code>
  Result<bool> operator()(const Products<Code>& products, const Launch& launch) const {
    return onnxopt::cuda::start(convolve_bytes<T, L, Code>, products, launch.tiles, kThreads, launch.shared_bytes, stream);
  }

  template <class L, class Code>
  Result<bool> operator()(const Products<Code>& products, const Launch& launch) const {
    return onnxopt::cuda::start(convolve_channels<L, Code>, products, launch.tiles, products.finishing, launch.shared_bytes,
                                stream);
  }
};

struct Load {
  template <class T, class L, class Code>
  Result<bool> operator()() const {
    return onnxopt::cuda::load(convolve_bytes<T, L, Code>);
  }
};

Result<bool> prepare() {
  Result<bool> done = gemm::cuda::for_each_tensor_form<gemm::cuda::Tall>(Load{});
  if (done) done = onnxopt::cuda::load(convolve_channels<ew::Usual, NoProgram>);
  if (done) done = onnxopt::cuda::load(convolve_channels<ew::Usual, ew::SmallCode>);
  return done ? onnxopt::cuda::load(convolve_channels<ew::Any, ew::LargeCode>) : done;
}

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

}  // namespace onnxopt::qconv::cuda
