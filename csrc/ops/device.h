// Where the tensors of a CUDA kernel lie.
#pragma once

#include <functional>

#include "csrc/ops/op.h"
#include "kernels/cuda/timing.h"

namespace onnxopt::ops {

/// Starts kernels on a stream, with tensors of the device.
using StartOnDevice = std::function<Result<bool>(std::span<const Tensor> inputs, std::span<void* const> outputs, void* stream)>;

/// Starts with the tensors of a run; those of the host are copied to the device and back.
Result<bool> run_on_device(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                           const Execution& execution, const StartOnDevice& start);

/// The milliseconds of a kernel's runs on copies of tensors of the host (see timing.h); the outputs are those of the first run.
Result<std::vector<double>> time_on_device(const Kernel& kernel, std::span<const Tensor> inputs, std::span<const TensorType> types,
                                           std::span<void* const> outputs, const cuda::Rounds& rounds);

}  // namespace onnxopt::ops
