#include "kernels/cuda/gemm/tensor_products.cuh"
#include "kernels/cuda/runtime.h"

namespace onnxopt::gemm::cuda {

namespace {

struct OnDevice {
  cudaStream_t stream;

  template <int W, class T, class L, class Code>
  Result<bool> operator()(const TensorProducts<Code>& products, const Launch& launch) const {
    return onnxopt::cuda::start(multiply_tensors<W, T, L, Code>, products, launch.tiles, kTensorThreads, launch.shared_bytes,
                                stream);
  }
};

template <int W>
struct Load {
  template <class T, class L, class Code>
  Result<bool> operator()() const {
    return onnxopt::cuda::load(multiply_tensors<W, T, L, Code>);
  }
};

}  // namespace

Result<bool> prepare_tensor() {
  const Result<bool> done = for_each_tensor_form(Load<2>{});
  return done ? for_each_tensor_form(Load<4>{}) : done;
}

Result<bool> run_tensor(const Problem& problem, void* stream) {
  const Result<int> processors = onnxopt::cuda::processors();
  if (!processors) return Result<bool>::failure(processors.error());
  return with_tensor_products(problem, *processors, OnDevice{static_cast<cudaStream_t>(stream)});
}

}  // namespace onnxopt::gemm::cuda
