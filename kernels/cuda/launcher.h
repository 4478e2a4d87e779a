// Launches the kernels of a family (see launch.h) on a device, for `.cu` files.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/cuda/runtime.h"

namespace onnxopt::cuda {

template <class Family>
Result<bool> prepare() {
  return Family::for_each([](auto kernel) { return load(kernel); });
}

template <class Family>
Result<bool> run(const typename Family::Problem& problem, void* stream) {
  const Result<int> count = processors();
  if (!count) return Result<bool>::failure(count.error());
  return Family::plan(problem, *count, [&](auto kernel, const auto& parameter, const Launch& launch) {
    return start(kernel, parameter, launch, *count, static_cast<cudaStream_t>(stream));
  });
}

template <class Family>
const Kernels<typename Family::Problem>& kernels_of() {
  static constexpr Kernels<typename Family::Problem> instance{prepare<Family>, run<Family>};
  return instance;
}

}  // namespace onnxopt::cuda
