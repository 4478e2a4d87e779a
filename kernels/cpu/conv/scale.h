// Channels times gates: what squeeze-and-excitation does with its tensor at last.
#pragma once

#include "kernels/cpu/conv/depthwise.h"

namespace onnxopt::conv {
namespace {

/// A vector of floats times gates, and what is done to the results in registers; of the last one, `count` floats are there.
template <bool kWhole>
inline void scale_vector(const Convolution& c, const float* gate, std::int64_t at, std::size_t count) {
  F value = V::mul(load_channels<kWhole>(c.x + at, count), load_channels<kWhole>(gate, count));
  if (c.added) value = V::add(value, load_channels<kWhole>(c.added + at, count));
  if (c.clip) value = V::min(V::set1(c.clip->high), V::max(V::set1(c.clip->low), value));
  if (c.gate) value = gated(*c.gate, value);
  store_channels<kWhole>(c.y + at, value, count);
}

/// Floats [at, end) times gates, which begin again every `row` floats.
inline void scale_floats(const Convolution& c, const float* gates, std::int64_t row, std::int64_t at, std::int64_t end) {
  while (at < end) {
    const std::int64_t row_end = least(at + row, end);
    const float* gate = gates;
    for (; at + kWidth <= row_end; at += kWidth, gate += kWidth) scale_vector<true>(c, gate, at, V::kWidth);
    if (at < row_end) scale_vector<false>(c, gate, at, static_cast<std::size_t>(row_end - at));
    at = row_end;
  }
}

inline void run_scale(const ScalePlan& plan, std::int64_t task) {
  const Convolution& c = *plan.scaled.convolution;
  const std::int64_t pixels = c.geometry.pixels() / c.geometry.batch, channels = c.geometry.channels;
  const std::int64_t image = task / plan.image_tasks, begin = task % plan.image_tasks * plan.task_pixels;
  const std::int64_t row = plan.pixels_together * channels;
  for (std::int64_t pixel = begin; pixel < least(begin + plan.task_pixels, pixels); pixel += plan.block_pixels) {
    const std::int64_t end = least(pixel + plan.block_pixels, least(begin + plan.task_pixels, pixels));
    const std::int64_t first = image * pixels + pixel;
    scale_floats(c, plan.gates + image * row, row, first * channels, (first + end - pixel) * channels);
    finish(plan.scaled, {first, first + end - pixel, 0, channels});
  }
}

}  // namespace
}  // namespace onnxopt::conv
