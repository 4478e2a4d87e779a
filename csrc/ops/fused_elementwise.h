// The custom op FusedElementwise.
#pragma once

#include "csrc/ort/api.h"

namespace onnxopt::ops {

/// The op for onnxruntime's CPU provider; it lives as long as the library.
const ort::CustomOp* fused_elementwise();

#if defined(ONNXOPT_HAVE_CUDA)
/// The op for onnxruntime's CUDA provider: the same schema, other kernels.
const ort::CustomOp* fused_elementwise_on_cuda();
#endif

}  // namespace onnxopt::ops
