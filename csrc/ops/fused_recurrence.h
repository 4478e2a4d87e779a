// FusedRecurrence: a step over carried values and elements of sequences, run for all elements.
#pragma once

#include "csrc/ops/op.h"

namespace onnxopt::ops {

const Op& fused_recurrence();

}  // namespace onnxopt::ops
