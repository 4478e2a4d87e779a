// Element-wise expressions on a CUDA device: an interpreter that was compiled in advance.
#pragma once

#include <string>

#include "kernels/cpu/elementwise/elementwise.h"

namespace onnxopt::elementwise::cuda {

/// What the library offers to callers that have no CUDA runtime of their own.
struct Interpreter {
  /// Why no kernel can run on the current device; empty when it can.
  std::string (*problem)();
  /// The compute capability of the current device: 90 is 9.0.
  Result<int> (*capability)();
  /// Loads all kernels, which else happens when they run first, and must not happen while a graph is captured.
  Result<bool> (*prepare)();
  /// Starts a plan's kernel on a stream (a `cudaStream_t`) and returns; all addresses are the device's.
  Result<bool> (*run_plan)(const Program&, const Plan&, void* stream);
};

const Interpreter& interpreter();

/// Runs what a device would run, thread after thread, on the host: the code of `evaluate.h` on tensors of the host.
Result<bool> emulate(const Program& program, const Arguments& arguments);

}  // namespace onnxopt::elementwise::cuda
