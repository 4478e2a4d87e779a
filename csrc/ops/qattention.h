// QAttention: attention whose products multiply bytes, see python/onnxopt/ops/qattention.py.
#pragma once

#include "csrc/ops/op.h"

namespace onnxopt::ops {

const Op& qattention();

}  // namespace onnxopt::ops
