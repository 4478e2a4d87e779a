// The custom op FusedNorm.
#pragma once

#include "csrc/ops/op.h"

namespace onnxopt::ops {

const Op& fused_norm();

}  // namespace onnxopt::ops
