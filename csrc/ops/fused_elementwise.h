// The custom op FusedElementwise.
#pragma once

#include "csrc/ort/api.h"

namespace onnxopt::ops {

/// The op for onnxruntime's CPU provider; it lives as long as the library.
const ort::CustomOp* fused_elementwise();

}  // namespace onnxopt::ops
