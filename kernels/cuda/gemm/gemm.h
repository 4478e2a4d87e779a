// Products of a matrix with packed weights on a CUDA device; see kernels/cpu/gemm/gemm.h.
#pragma once

#include "kernels/cpu/gemm/gemm.h"
#include "kernels/cuda/elementwise/embedded.h"
#include "kernels/cuda/launch.h"

namespace onnxopt::gemm::cuda {

/// What all tensors hold, but for further ones of the epilogue, and how they are multiplied. Sums are float32.
enum class Precision : std::uint8_t {
  kFloat,  // exact but for the rounding of each fused multiplication and addition
  kTf32,   // floats on tensor cores, which multiply 11 bits of each
  kHalf,
  kBrain,  // bfloat16
};

/// One product; results are rounded to the type of all tensors after the bias was added.
struct Factor {
  const void *weights = nullptr, *bias = nullptr;
  void* c = nullptr;  // null where only the epilogue reads it
};

struct Problem {
  const void* a = nullptr;  // [rows, depth]
  std::int64_t rows = 0, depth = 0, columns = 0;
  Factor products[kMostProducts];
  std::size_t product_count = 0;
  Precision precision = Precision::kFloat;
  const elementwise::cuda::Bound* epilogue = nullptr;  // its first inputs are the products, which then have no `c`
};

const onnxopt::cuda::Kernels<Problem>& kernels();

/// Those for tensor cores, which `kernels()` calls where floats are not multiplied exactly.
const onnxopt::cuda::Kernels<Problem>& tensor_kernels();

/// Runs the kernel on the host, a fiber for each thread, on tensors of the host.
Result<bool> emulate(const Problem& problem);

}  // namespace onnxopt::gemm::cuda
