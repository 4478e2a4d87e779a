// Rows that are scaled by what is computed of the whole row, on a CUDA device; see kernels/cpu/norm/norm.h.
#pragma once

#include "kernels/cpu/norm/norm.h"
#include "kernels/cuda/elementwise/embedded.h"
#include "kernels/cuda/launch.h"

namespace onnxopt::norm::cuda {

using elementwise::cuda::Bound;

/// `x` is null where the prologue or the terms make it, `y` where the epilogue reads it or float16 is written.
struct Problem {
  Kind kind = Kind::kLayer;
  std::int64_t rows = 0, width = 0, inner = 1;
  float epsilon = 0.0f;
  Affine affine;
  const float* x = nullptr;
  float* y = nullptr;
  std::uint16_t* y_half = nullptr;
  const Bound* prologue = nullptr;  // of one float32 output
  const Terms* terms = nullptr;     // the same, where it is a sum over rows of one axis
  float* kept = nullptr;            // where the prologue's output goes, too
  const Bound* epilogue = nullptr;  // its first input is the result
};

const onnxopt::cuda::Kernels<Problem>& kernels();

/// Runs the kernel on the host, a fiber for each thread, on tensors of the host.
Result<bool> emulate(const Problem& problem);

}  // namespace onnxopt::norm::cuda
