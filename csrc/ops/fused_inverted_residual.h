// The custom op FusedInvertedResidual.
#pragma once

#include "csrc/ops/op.h"

namespace onnxopt::ops {

const Op& fused_inverted_residual();

}  // namespace onnxopt::ops
