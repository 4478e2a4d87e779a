// QConv: a convolution of quantized tensors, see python/onnxopt/ops/qconv.py.
#pragma once

#include "csrc/ops/op.h"

namespace onnxopt::ops {

const Op& qconv();

}  // namespace onnxopt::ops
