#include "kernels/cuda/recurrence/steps.cuh"

namespace onnxopt::recurrence::cuda {

namespace {

struct OnHost {
  template <class L>
  Result<bool> operator()(const Code& code, const Launch& launch) const {
    return simt::launch_few(launch.blocks, launch.threads, launch.shared_bytes, [&] { run_steps<L>(code); });
  }
};

}  // namespace

Result<bool> emulate(const Problem& problem) { return with_code(problem, OnHost{}); }

}  // namespace onnxopt::recurrence::cuda
