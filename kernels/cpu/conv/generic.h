// The kernels of this family, instantiated once per instruction set, whose vectors the including file has defined.
#pragma once

#include "kernels/cpu/conv/depthwise.h"
#include "kernels/cpu/conv/expand.h"
#include "kernels/cpu/conv/inverted_residual.h"
#include "kernels/cpu/conv/linewise.h"
#include "kernels/cpu/conv/narrow.h"
#include "kernels/cpu/conv/scale.h"
#include "kernels/cpu/conv/separable.h"
#include "kernels/cpu/conv/winograd.h"

namespace onnxopt::conv::ONNXOPT_VARIANT {

void dense(const Plan& plan, std::int64_t task) { run_dense(plan, task); }
void depthwise(const Plan& plan, std::int64_t task) { run_depthwise(plan, task); }
void narrow(const Plan& plan, std::int64_t task) { Narrow(plan).run(task); }
void linewise(const Plan& plan, std::int64_t task) { Linewise(plan).run(task); }
void separable(const SeparablePlan& plan, std::int64_t task) { run_separable(plan, task); }
void inverted_residual(const InvertedResidualPlan& plan, std::int64_t task) { InvertedResidualTask(plan, task).run(); }
void join_parts(const InvertedResidualPlan& plan, std::int64_t task) { join_sums(plan, task); }
void transposed(const Plan& plan, std::int64_t task) { run_transposed(plan, task); }
void repeat(const Plan& plan, std::int64_t task) { run_repeat(plan, task); }
void transform_weights(const Plan& plan, std::int64_t panel) {
  with_tile(plan.convolution->geometry, [&]<class T>(T) { run_transform_weights<T>(plan, panel); });
}
void winograd(const Plan& plan, std::int64_t task) {
  with_tile(plan.convolution->geometry, [&]<class T>(T) { run_winograd<T>(plan, task); });
}
void transform_inputs(const Plan& plan, std::int64_t tile_row) {
  with_tile(plan.convolution->geometry, [&]<class T>(T) { run_transform_inputs<T>(plan, tile_row); });
}
void winograd_columns(const Plan& plan, std::int64_t task) {
  with_tile(plan.convolution->geometry, [&]<class T>(T) { run_winograd_columns<T>(plan, task); });
}
void pool(const Pooling& pooling, std::int64_t line) { run_pool(pooling, line); }
void sum(const float* x, std::int64_t pixels, std::int64_t channels, float* y) { sum_pixels(x, pixels, channels, y); }
void scale(const ScalePlan& plan, std::int64_t task) { run_scale(plan, task); }

}  // namespace onnxopt::conv::ONNXOPT_VARIANT
