// The custom op FusedSoftmax.
#pragma once

#include "csrc/ops/op.h"

namespace onnxopt::ops {

const Op& fused_softmax();

}  // namespace onnxopt::ops
