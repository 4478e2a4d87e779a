#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/tiles.cuh"
#include "kernels/cuda/runtime.h"

namespace onnxopt::attention::cuda {

namespace {

Result<bool> prepare() {
  const Result<bool> done = onnxopt::cuda::load(attend<4>);
  return done ? onnxopt::cuda::load(attend<8>) : done;
}

Result<bool> run(const Problem& problem, void* stream) {
  return with_columns(problem, [&]<int C>() {
    return onnxopt::cuda::start(attend<C>, problem, tiles_of<C>(problem), kThreads, sizeof(Shared<C>),
                                static_cast<cudaStream_t>(stream));
  });
}

}  // namespace

const Kernels& kernels() {
  static constexpr Kernels instance{prepare, run};
  return instance;
}

}  // namespace onnxopt::attention::cuda
