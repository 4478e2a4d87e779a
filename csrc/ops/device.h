// Where the tensors of a CUDA kernel lie.
#pragma once

#include <functional>

#include "csrc/ops/op.h"

namespace onnxopt::ops {

/// Starts kernels on a stream, with tensors of the device.
using StartOnDevice = std::function<Result<bool>(std::span<const Tensor> inputs, std::span<void* const> outputs, void* stream)>;

/// Starts with the tensors of a run; those of the host are copied to the device and back.
Result<bool> run_on_device(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                           const Execution& execution, const StartOnDevice& start);

}  // namespace onnxopt::ops
