// The custom op FusedSqueezeExcite.
#pragma once

#include "csrc/ops/op.h"

namespace onnxopt::ops {

const Op& fused_squeeze_excite();

}  // namespace onnxopt::ops
