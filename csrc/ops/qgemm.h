// QGemm: a product with quantized weights, see python/onnxopt/ops/qgemm.py.
#pragma once

#include "csrc/ops/op.h"

namespace onnxopt::ops {

const Op& qgemm();

}  // namespace onnxopt::ops
