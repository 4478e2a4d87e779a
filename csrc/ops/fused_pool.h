// The custom op FusedPool.
#pragma once

#include "csrc/ops/op.h"

namespace onnxopt::ops {

const Op& fused_pool();

}  // namespace onnxopt::ops
