// The kernels of this family, instantiated once per instruction set, whose vectors the including file has defined.
#pragma once

#include "kernels/cpu/qconv/dense.h"
#include "kernels/cpu/qconv/depthwise.h"

namespace onnxopt::qconv::ONNXOPT_VARIANT {

void dense(const Plan& plan, std::int64_t task) { run_dense(plan, task); }
void depthwise(const Plan& plan, std::int64_t task) { run_depthwise(plan, task); }

}  // namespace onnxopt::qconv::ONNXOPT_VARIANT
