#include <algorithm>

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/tiles.cuh"

namespace onnxopt::attention::cuda {

namespace {

/// Fewer blocks than large problems have, so that a block takes several tiles.
constexpr std::int64_t kMostBlocks = 3;

}  // namespace

Result<bool> emulate(const Problem& problem) {
  return with_columns(problem, [&]<int C>() {
    const auto blocks = static_cast<unsigned>(std::min(tiles_of<C>(problem), kMostBlocks));
    return simt::launch({blocks}, {kThreads}, sizeof(Shared<C>), [&] { attend<C>(problem); });
  });
}

}  // namespace onnxopt::attention::cuda
