// Attention on a CUDA device; see kernels/cpu/attention/attention.h.
#pragma once

#include "kernels/cpu/attention/attention.h"
#include "kernels/cuda/launch.h"

namespace onnxopt::attention::cuda {

/// Problems of float16, or of bfloat16.
struct Halves : ProblemOf<std::uint16_t> {
  bool brain = false;
};

const onnxopt::cuda::Kernels<Problem>& kernels();
const onnxopt::cuda::Kernels<Halves>& half_kernels();

/// Run the kernel on the host, a fiber for each thread, on tensors of the host.
Result<bool> emulate(const Problem& problem);
Result<bool> emulate(const Halves& problem);

}  // namespace onnxopt::attention::cuda
