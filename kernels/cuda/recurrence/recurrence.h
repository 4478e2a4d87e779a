// Recurrences on a CUDA device: one kernel runs all steps, and what is carried stays in shared memory; see
// kernels/cpu/recurrence/recurrence.h.
#pragma once

#include "kernels/cpu/recurrence/recurrence.h"

namespace onnxopt::recurrence::cuda {

/// What the library offers to callers that have no CUDA runtime of their own.
struct Kernels {
  /// Loads all kernels, which must not happen while a graph is captured.
  Result<bool> (*prepare)();
  /// Starts the kernel on a stream (a `cudaStream_t`) and returns; all addresses are the device's.
  Result<bool> (*run)(const Problem&, void* stream);
};

const Kernels& kernels();

/// Runs the kernel on the host, a fiber for each thread, on tensors of the host.
Result<bool> emulate(const Problem& problem);

}  // namespace onnxopt::recurrence::cuda
