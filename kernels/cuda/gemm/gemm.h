// Products of a matrix with packed weights on a CUDA device; see kernels/cpu/gemm/gemm.h.
#pragma once

#include "kernels/cpu/gemm/gemm.h"
#include "kernels/cuda/elementwise/embedded.h"

namespace onnxopt::gemm::cuda {

/// Float32 products, exact but for the rounding of each fused multiplication and addition.
struct Problem {
  const float* a = nullptr;  // [rows, depth]
  std::int64_t rows = 0, depth = 0, columns = 0;
  Product products[kMostProducts];
  std::size_t product_count = 0;
  const elementwise::cuda::Bound* epilogue = nullptr;  // its first inputs are the products, which then have no `c`
};

/// What the library offers to callers that have no CUDA runtime of their own.
struct Kernels {
  /// Loads all kernels, which must not happen while a graph is captured.
  Result<bool> (*prepare)();
  /// Starts the kernel on a stream (a `cudaStream_t`) and returns; all addresses are the device's.
  Result<bool> (*run)(const Problem&, void* stream);
};

const Kernels& kernels();

/// Runs the kernel on the host, a fiber for each thread, on tensors of the host.
Result<bool> emulate(const Problem& problem);

}  // namespace onnxopt::gemm::cuda
