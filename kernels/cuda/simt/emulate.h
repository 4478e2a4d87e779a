// Launches the kernels of a family (see launch.h) on fibers of the host.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/cuda/simt/simt.h"

namespace onnxopt::simt {

/// Runs a problem on tensors of the host.
template <class Family>
Result<bool> emulate(const typename Family::Problem& problem) {
  return Family::plan(problem, kProcessors, [](auto kernel, const auto& parameter, const cuda::Launch& launch) {
    return launch_few(launch.blocks, launch.threads, launch.shared_bytes, [&] { kernel(parameter); });
  });
}

}  // namespace onnxopt::simt
