// Recurrences on a CUDA device: one kernel runs all steps, and what is carried stays in shared memory; see
// kernels/cpu/recurrence/recurrence.h.
#pragma once

#include "kernels/cpu/recurrence/recurrence.h"
#include "kernels/cuda/launch.h"

namespace onnxopt::recurrence::cuda {

const onnxopt::cuda::Kernels<Problem>& kernels();

/// Runs the kernel on the host, a fiber for each thread, on tensors of the host.
Result<bool> emulate(const Problem& problem);

}  // namespace onnxopt::recurrence::cuda
