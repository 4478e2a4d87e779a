// What a family of kernels offers to callers that have no CUDA runtime of their own, and how one of its kernels is launched.
//
// A family is a struct beside its kernels, which `launcher.h` launches on a device and `simt/emulate.h` on the host:
//   Problem                           what the kernels compute
//   for_each(use)                     calls `use(kernel)` for every kernel until one fails
//   plan(problem, processors, use)    calls `use(kernel, parameter, launch)` with the kernel that fits the problem best, on a
//   device
//                                     of so many multiprocessors
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/common.h"

namespace onnxopt::cuda {

/// How a kernel is launched.
struct Launch {
  std::int64_t blocks = 0;  // as many as have work; fewer take several blocks' work each
  unsigned threads = 0;
  std::size_t shared_bytes = 0;
};

template <class Problem>
struct Kernels {
  /// Loads all kernels, which must not happen while a graph is captured.
  Result<bool> (*prepare)();
  /// Starts the kernel on a stream (a `cudaStream_t`) and returns; all addresses are the device's.
  Result<bool> (*run)(const Problem&, void* stream);
};

}  // namespace onnxopt::cuda
