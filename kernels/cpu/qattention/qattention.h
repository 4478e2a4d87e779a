// Attention whose products multiply bytes: queries, keys and values are rounded when they are packed, the weights when they are
// made.
//
// After J. Zhang et al., "SageAttention: Accurate 8-Bit Attention for Plug-and-play Inference Acceleration" (2024).
#pragma once

#include <span>

#include "kernels/cpu/attention/attention.h"

namespace onnxopt::qattention {

/// The variants that were built, best first; the portable one is last. `attention::run` runs them.
std::span<const attention::Variant> variants();

}  // namespace onnxopt::qattention
