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

/// Runs a problem on tensors of a device, or on those of the host that a device's code is given in tests.
template <class Problem>
using Start = Result<bool> (*)(const Problem&, void* stream);

/// Where the code of a kernel for devices runs: on the device, or on the host (`emulated`), which is for tests and never chosen.
template <class Problem>
struct Place {
  Start<Problem> start;
  bool emulated;

  /// Starts with the tensors of a run, where they have to be.
  Result<bool> run(std::span<const Tensor> inputs, [[maybe_unused]] std::span<const TensorType> types,
                   std::span<void* const> outputs, const Execution& execution, const StartOnDevice& with) const {
#if defined(ONNXOPT_HAVE_CUDA)
    if (!emulated) return run_on_device(inputs, types, outputs, execution, with);
#endif
    return with(inputs, outputs, execution.stream);
  }
};

/// The place of a family of kernels: `Emulate` runs a problem on the host, `Kernels` are those of a device.
template <class Problem, Result<bool> (*Emulate)(const Problem&), auto Kernels>
Result<Place<Problem>> place_of(bool emulated) {
  using Made = Result<Place<Problem>>;
  if (emulated) return Place<Problem>{[](const Problem& problem, void*) { return Emulate(problem); }, true};
#if defined(ONNXOPT_HAVE_CUDA)
  if (const Result<bool> prepared = Kernels().prepare(); !prepared) return Made::failure(prepared.error());
  return Place<Problem>{Kernels().run, false};
#else
  return Made::failure("This build of onnxopt has no CUDA kernels.");
#endif
}

/// The milliseconds of a kernel's runs on copies of tensors of the host (see timing.h); the outputs are those of the first run.
Result<std::vector<double>> time_on_device(const Kernel& kernel, std::span<const Tensor> inputs, std::span<const TensorType> types,
                                           std::span<void* const> outputs, const cuda::Rounds& rounds);

}  // namespace onnxopt::ops
