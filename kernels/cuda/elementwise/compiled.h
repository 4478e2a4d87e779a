// Expressions that NVRTC compiled for a device.
#pragma once

#include <limits>
#include <memory>
#include <optional>

#include "kernels/cpu/elementwise/plan.h"

namespace onnxopt::elementwise::cuda {

/// The kernels of a program. Immutable, so any number of threads may run it.
class Compiled {
 public:
  virtual ~Compiled() = default;

  /// Starts the kernel of a plan on a stream (a `cudaStream_t`); nothing where no kernel was compiled for that plan.
  virtual std::optional<Result<bool>> run(const Program& program, const Plan& plan, void* stream) const = 0;
};

/// Compiles a program for the current device, with the instructions of architectures up to `most` (90 is sm_90), or says why not.
Result<std::unique_ptr<Compiled>> compile(const Program& program, int most = std::numeric_limits<int>::max());

/// Runs what was compiled, and the interpreter where nothing was, or `compiled` is null; all addresses are the device's.
Result<bool> run(const Compiled* compiled, const Program& program, const Arguments& arguments, void* stream);

}  // namespace onnxopt::elementwise::cuda
