// Attention on a CUDA device; see kernels/cpu/attention/attention.h.
#pragma once

#include "kernels/cpu/attention/attention.h"

namespace onnxopt::attention::cuda {

/// Problems of float16, or of bfloat16.
struct Halves : ProblemOf<std::uint16_t> {
  bool brain = false;
};

/// What the library offers to callers that have no CUDA runtime of their own.
struct Kernels {
  /// Loads all kernels, which must not happen while a graph is captured.
  Result<bool> (*prepare)();
  /// Start the kernel on a stream (a `cudaStream_t`) and return; all addresses are the device's.
  Result<bool> (*run)(const Problem&, void* stream);
  Result<bool> (*run_halves)(const Halves&, void* stream);
};

const Kernels& kernels();

/// Run the kernel on the host, a fiber for each thread, on tensors of the host.
Result<bool> emulate(const Problem& problem);
Result<bool> emulate(const Halves& problem);

}  // namespace onnxopt::attention::cuda
