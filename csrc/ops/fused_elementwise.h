// The custom op FusedElementwise.
#pragma once

#include "csrc/ops/op.h"

namespace onnxopt::ops {

const Op& fused_elementwise();

}  // namespace onnxopt::ops
