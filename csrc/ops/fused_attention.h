// The custom op FusedAttention.
#pragma once

#include "csrc/ops/op.h"

namespace onnxopt::ops {

const Op& fused_attention();

}  // namespace onnxopt::ops
