#include <algorithm>

#include "kernels/cuda/recurrence/steps.cuh"

namespace onnxopt::recurrence::cuda {

namespace {

/// Fewer blocks than large problems have, so that a block takes several sets of elements.
constexpr std::int64_t kMostBlocks = 3;

struct OnHost {
  template <class L>
  Result<bool> operator()(const Code& code, const Launch& launch) const {
    const auto blocks = static_cast<unsigned>(std::min(launch.blocks, kMostBlocks));
    return simt::launch({blocks}, {launch.threads}, launch.shared_bytes, [&] { run_steps<L>(code); });
  }
};

}  // namespace

Result<bool> emulate(const Problem& problem) { return with_code(problem, OnHost{}); }

}  // namespace onnxopt::recurrence::cuda
