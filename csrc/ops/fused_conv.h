// The custom op FusedConv.
#pragma once

#include "csrc/ops/op.h"

namespace onnxopt::ops {

const Op& fused_conv();

}  // namespace onnxopt::ops
