#include <algorithm>

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/halves.cuh"
#include "kernels/cuda/attention/tiles.cuh"

namespace onnxopt::attention::cuda {

namespace {

/// Fewer blocks than large problems have, so that a block takes several tiles.
constexpr std::int64_t kMostBlocks = 3;

unsigned blocks_of(std::int64_t tiles) { return static_cast<unsigned>(std::min(tiles, kMostBlocks)); }

}  // namespace

Result<bool> emulate(const Problem& problem) {
  return with_columns(problem, [&]<int C>() {
    return simt::launch({blocks_of(tiles_of<C>(problem))}, {kThreads}, sizeof(Shared<C>), [&] { attend<C>(problem); });
  });
}

Result<bool> emulate(const Halves& problem) {
  return with_halves(problem, problem.brain, [&]<int D, class E>() {
    return simt::launch({blocks_of(count_tiles<D>(problem))}, {kHalfThreads}, sizeof(HalfShared<D>),
                        [&] { attend_halves<D, E>(problem); });
  });
}

}  // namespace onnxopt::attention::cuda
