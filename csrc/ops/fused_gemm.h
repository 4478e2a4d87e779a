// The custom op FusedGemm.
#pragma once

#include "csrc/ops/op.h"

namespace onnxopt::ops {

const Op& fused_gemm();

}  // namespace onnxopt::ops
