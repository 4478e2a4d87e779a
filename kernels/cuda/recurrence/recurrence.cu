#include "kernels/cuda/recurrence/steps.cuh"
#include "kernels/cuda/runtime.h"

namespace onnxopt::recurrence::cuda {

namespace {

struct OnDevice {
  cudaStream_t stream;

  template <class L>
  Result<bool> operator()(const Code& code, const Launch& launch) const {
    return onnxopt::cuda::start(run_steps<L>, code, launch.blocks, launch.threads, launch.shared_bytes, stream);
  }
};

Result<bool> prepare() {
  const Result<bool> done = onnxopt::cuda::load(run_steps<Usual>);
  return done ? onnxopt::cuda::load(run_steps<Wide>) : done;
}

Result<bool> run(const Problem& problem, void* stream) { return with_code(problem, OnDevice{static_cast<cudaStream_t>(stream)}); }

}  // namespace

const Kernels& kernels() {
  static constexpr Kernels instance{prepare, run};
  return instance;
}

}  // namespace onnxopt::recurrence::cuda
