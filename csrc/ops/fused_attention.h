// The custom op FusedAttention.
#pragma once

#include "csrc/ops/op.h"
#include "kernels/cpu/attention/attention.h"

namespace onnxopt::ops {

const Op& fused_attention();

/// What `QAttention` shares: the attributes, a kernel for the processor that runs one of some variants, and the inference.
std::span<const char* const> attention_attributes();
Result<std::unique_ptr<Kernel>> create_attention(const Attributes& attributes, std::span<const attention::Variant> variants,
                                                 std::string_view name);
std::vector<std::optional<InferredType>> infer_attention(const Attributes& attributes, std::span<const InferredType> inputs);

}  // namespace onnxopt::ops
