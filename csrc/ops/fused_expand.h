// The custom ops FusedConvTranspose and FusedResize.
#pragma once

#include "csrc/ops/op.h"

namespace onnxopt::ops {

const Op& fused_conv_transpose();
const Op& fused_resize();

}  // namespace onnxopt::ops
