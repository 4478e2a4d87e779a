// Every custom op with its kernel variants, as the Python module sees it.
#pragma once

#include <cstddef>

#include "csrc/ops/op.h"
#include "kernels/cpu/elementwise/elementwise.h"

extern "C" {
/// The one function besides RegisterCustomOps that the library exports.
struct OnnxOptRegistry {
  const onnxopt::ops::Op* const* ops;
  std::size_t op_count;
  const onnxopt::elementwise::OpInfo* elementwise_ops;
  std::size_t elementwise_op_count;
  onnxopt::Result<const onnxopt::ops::Variant*> (*choose)(const onnxopt::ops::Op&);
  std::string (*problem_of)(const onnxopt::ops::Variant&);
  std::string (*cuda_problem)();
};
}
