// The custom op FusedSeparableConv.
#pragma once

#include "csrc/ops/op.h"

namespace onnxopt::ops {

const Op& fused_separable_conv();

}  // namespace onnxopt::ops
