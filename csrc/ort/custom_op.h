// Every op as onnxruntime's custom op.
#pragma once

#include <span>

#include "csrc/ops/op.h"
#include "csrc/ort/api.h"

namespace onnxopt::ort {

/// Adds ops to a domain, for every provider they have kernels for. False when onnxruntime refuses one. One thread at a time.
bool add_ops(OrtCustomOpDomain* domain, std::span<const ops::Op* const> list);

}  // namespace onnxopt::ort
