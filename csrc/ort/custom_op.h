// Every op as onnxruntime's custom op.
#pragma once

#include "csrc/ort/api.h"

namespace onnxopt::ort {

/// Adds all ops to a domain, for every provider they have kernels for. False when onnxruntime refuses one.
bool add_ops(OrtCustomOpDomain* domain);

}  // namespace onnxopt::ort
