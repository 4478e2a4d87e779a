// Every custom op with its kernel variants, as the Python module sees it.
#pragma once

#include <cstddef>

#include "kernels/cpu/elementwise/elementwise.h"
#include "kernels/cuda/elementwise/elementwise.h"

extern "C" {
/// The one function besides RegisterCustomOps that the library exports.
struct OnnxOptRegistry {
  const onnxopt::elementwise::Variant* elementwise;
  std::size_t elementwise_count;
  const onnxopt::elementwise::OpInfo* elementwise_ops;
  std::size_t elementwise_op_count;
  const onnxopt::elementwise::cuda::Interpreter* elementwise_on_cuda;  // null where the build has no CUDA
};
}
