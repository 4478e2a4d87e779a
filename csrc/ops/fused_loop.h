// FusedLoop: a step run until a condition of its own is false.
#pragma once

#include "csrc/ops/op.h"

namespace onnxopt::ops {

const Op& fused_loop();

}  // namespace onnxopt::ops
