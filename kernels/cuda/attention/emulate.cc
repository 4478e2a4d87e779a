#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/halves.cuh"
#include "kernels/cuda/attention/tiles.cuh"

namespace onnxopt::attention::cuda {

Result<bool> emulate(const Problem& problem) {
  return with_columns(problem, [&]<int C>() {
    return simt::launch_few(tiles_of<C>(problem), kThreads, sizeof(Shared<C>), [&] { attend<C>(problem); });
  });
}

Result<bool> emulate(const Halves& problem) {
  return with_halves(problem, problem.brain, [&]<int D, class E>() {
    return simt::launch_few(count_tiles<D>(problem), kHalfThreads, sizeof(HalfShared<D>), [&] { attend_halves<D, E>(problem); });
  });
}

}  // namespace onnxopt::attention::cuda
