#include <algorithm>

#include "kernels/cuda/norm/rows.cuh"

namespace onnxopt::norm::cuda {

namespace {

/// Fewer blocks than large problems have, so that a block takes several sets of rows.
constexpr std::int64_t kMostBlocks = 3;

struct OnHost {
  template <class L, class Code>
  Result<bool> operator()(const Rows<Code>& rows, const Launch& launch) const {
    const auto blocks = static_cast<unsigned>(std::min(launch.blocks, kMostBlocks));
    return simt::launch({blocks}, {launch.threads}, launch.shared_bytes, [&] { normalize_rows<L>(rows); });
  }
};

}  // namespace

Result<bool> emulate(const Problem& problem) { return with_rows(problem, OnHost{}); }

}  // namespace onnxopt::norm::cuda
