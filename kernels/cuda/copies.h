// Kernels of a device on tensors of the host: for tests and tools.
#pragma once

#include <functional>
#include <span>

#include "kernels/cpu/common.h"

namespace onnxopt::cuda {

/// Tensors of the host.
struct Source {
  const void* data;
  std::size_t bytes;
};
struct Target {
  void* data;
  std::size_t bytes;
};

/// Starts kernels on a stream, with addresses of the device.
using Start = std::function<Result<bool>(std::span<const void* const>, std::span<void* const>, void* stream)>;

/// Copies the sources to the device, starts, waits, and copies the targets back.
Result<bool> run_on_copies(std::span<const Source> sources, std::span<const Target> targets, const Start& start);

}  // namespace onnxopt::cuda
