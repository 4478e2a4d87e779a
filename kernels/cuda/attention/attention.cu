#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/halves.cuh"
#include "kernels/cuda/attention/tiles.cuh"
#include "kernels/cuda/runtime.h"

namespace onnxopt::attention::cuda {

namespace {

template <class E>
Result<bool> prepare_halves() {
  const Result<bool> done = onnxopt::cuda::load(attend_halves<64, E>);
  return done ? onnxopt::cuda::load(attend_halves<128, E>) : done;
}

Result<bool> prepare() {
  Result<bool> done = onnxopt::cuda::load(attend<4>);
  if (done) done = onnxopt::cuda::load(attend<8>);
  if (done) done = prepare_halves<TwoByteElement<Element::kHalf>>();
  return done ? prepare_halves<TwoByteElement<Element::kBrain>>() : done;
}

Result<bool> run(const Problem& problem, void* stream) {
  return with_columns(problem, [&]<int C>() {
    return onnxopt::cuda::start(attend<C>, problem, tiles_of<C>(problem), kThreads, sizeof(Shared<C>),
                                static_cast<cudaStream_t>(stream));
  });
}

Result<bool> run_halves(const Halves& problem, void* stream) {
  return with_halves(problem, problem.brain, [&]<int D, class E>() {
    return onnxopt::cuda::start(attend_halves<D, E>, static_cast<const HalfProblem<E>&>(problem), count_tiles<D>(problem),
                                kHalfThreads, sizeof(HalfShared<D>), static_cast<cudaStream_t>(stream));
  });
}

}  // namespace

const Kernels& kernels() {
  static constexpr Kernels instance{prepare, run, run_halves};
  return instance;
}

}  // namespace onnxopt::attention::cuda
