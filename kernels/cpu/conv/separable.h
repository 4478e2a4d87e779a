// Depthwise separable convolutions: a depthwise one, and a product of its results' channels while they are in the second-level
// cache.
#pragma once

#include "kernels/cpu/conv/depthwise.h"

namespace onnxopt::conv {
namespace {

inline void run_separable(const SeparablePlan& plan, std::int64_t task) {
  const Geometry& g = plan.depthwise.convolution->geometry;
  const Range lines{task * plan.task_lines, least((task + 1) * plan.task_lines, g.batch * g.output[0])};
  const std::int64_t first = lines.begin * g.output[1], rows = (lines.end - lines.begin) * g.output[1];
  auto* const between = reinterpret_cast<float*>(
      scratch(static_cast<std::size_t>(plan.task_lines * g.output[1] * g.channels) * sizeof(float), ScratchOwner::kConvTiles));
  for (std::int64_t channel = 0; channel < g.channels; channel += plan.depthwise.strip_channels)
    depthwise_lines(plan.depthwise, lines, {channel, least(channel + plan.depthwise.strip_channels, g.channels)}, between);
  finish_in_place(plan.depthwise, {first, first + rows, 0, g.channels}, between);
  in_even_parts(rows, plan.pointwise.block_rows, [&](std::int64_t begin, std::int64_t count) {
    const float* const x = between + begin * g.channels;
    const Rectangle block{first + begin, first + begin + count, 0, plan.pointwise.group_filters};
    multiply_block(plan.pointwise, 0, block, [&](std::int64_t row, std::int64_t, std::int64_t, std::int64_t taps) {
      return TapRows<gemm::Strided>{{x + row * g.channels, g.channels}, 0, taps};
    });
  });
}

}  // namespace
}  // namespace onnxopt::conv
