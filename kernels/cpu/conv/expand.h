// What makes an image larger: transposed convolutions whose windows do not overlap, and repeated pixels.
#pragma once

#include "kernels/cpu/conv/dense.h"

namespace onnxopt::conv {
namespace {

/// A line of the input gives as many lines of the output as the kernel has rows. Each is a product of its own, whose columns are
/// the filters for each column of the kernel: they lie in the output as they are computed.
inline void transpose_line(const Plan& plan, std::int64_t line) {
  const Convolution& c = *plan.convolution;
  const Geometry& g = c.geometry;
  const std::int64_t width = g.kernel[1] * g.filters, panels = ceil_div(width, static_cast<std::int64_t>(kPanel));
  const std::ptrdiff_t panel = static_cast<std::ptrdiff_t>(kPanel) * g.channels;
  const float* const x = c.x + line * g.input[1] * g.channels;
  for (std::int64_t ky = 0; ky < g.kernel[0]; ++ky) {
    const std::int64_t row = (line * g.kernel[0] + ky) * g.output[1];
    for (std::int64_t column = 0; column < width; column += kColumns) {
      const std::int64_t columns = least(static_cast<std::int64_t>(kColumns), width - column);
      const gemm::Columns b{c.weights + ky * panels * panel + column * g.channels, kPanel, panel};
      in_even_parts(g.input[1], kRows, [&](std::int64_t pixel, std::int64_t pixels) {
        const std::int64_t first = row * g.filters + pixel * width + column;
        const gemm::Target target{.c = c.y + first,
                                  .ld = width,
                                  .columns = static_cast<std::size_t>(columns),
                                  .bias = c.bias ? c.bias + column : nullptr,
                                  .clip = c.clip,
                                  .gate = c.gate,
                                  .added = c.added ? c.added + first : nullptr,
                                  .added_ld = width};
        gemm::multiply(static_cast<int>(pixels), gemm::Strided{x + pixel * g.channels, g.channels}, 1,
                       static_cast<std::size_t>(g.channels), b, target);
      });
    }
    finish(plan, {row, row + g.output[1], 0, g.filters});
  }
}

/// A line of the output, whose pixels repeat those of a line of the input.
inline void repeat_line(const Plan& plan, std::int64_t line) {
  const Convolution& c = *plan.convolution;
  const Geometry& g = c.geometry;
  const std::int64_t image = line / g.output[0], iy = line % g.output[0] / g.kernel[0];
  const float* x = c.x + (image * g.input[0] + iy) * g.input[1] * g.channels;
  const std::int64_t first = line * g.output[1] * g.channels;
  float* y = c.y + first;
  const float* added = c.added ? c.added + first : nullptr;
  for (std::int64_t pixel = 0; pixel < g.input[1]; ++pixel, x += g.channels)
    for (std::int64_t copy = 0; copy < g.kernel[1]; ++copy, y += g.channels) {
      for (std::int64_t channel = 0; channel < g.channels; channel += kWidth) {
        const auto left = static_cast<std::size_t>(least(kWidth, g.channels - channel));
        F value = V::load_first(x + channel, left);
        if (added) value = V::add(value, V::load_first(added + channel, left));
        if (c.clip) value = V::min(V::set1(c.clip->high), V::max(V::set1(c.clip->low), value));
        if (c.gate) value = gated(*c.gate, value);
        V::store_first(y + channel, value, left);
      }
      if (added) added += g.channels;
    }
  finish(plan, {line * g.output[1], (line + 1) * g.output[1], 0, g.filters});
}

template <class Line>
inline void over_lines(const Plan& plan, std::int64_t task, std::int64_t lines, Line line) {
  const std::int64_t end = least((task + 1) * plan.task_lines, lines);
  for (std::int64_t number = task * plan.task_lines; number < end; ++number) line(plan, number);
}

inline void run_transposed(const Plan& plan, std::int64_t task) {
  const Geometry& g = plan.convolution->geometry;
  over_lines(plan, task, g.batch * g.input[0], transpose_line);
}

inline void run_repeat(const Plan& plan, std::int64_t task) {
  const Geometry& g = plan.convolution->geometry;
  over_lines(plan, task, g.batch * g.output[0], repeat_line);
}

}  // namespace
}  // namespace onnxopt::conv
