// The custom op FusedElementwise.
#pragma once

#include "csrc/ops/op.h"
#include "kernels/cpu/elementwise/elementwise.h"

namespace onnxopt::ops {

const Op& fused_elementwise();

/// The shape of a program's output; nothing when an input's rank may be unknown, which onnxruntime shows as rank 0.
std::optional<std::vector<Dim>> infer_shape(const elementwise::Program& program, std::size_t output,
                                            std::span<const InferredType> inputs);

}  // namespace onnxopt::ops
