// Convolutions of few channels or of groups of them as products, line by line: whole windows of a line lie at a constant distance,
// tap by tap, and those that cross the border are found by pointers, for several lines at a time.
#pragma once

#include "kernels/cpu/conv/depthwise.h"
#include "kernels/cpu/conv/narrow.h"

namespace onnxopt::conv {
namespace {

class Linewise {
 public:
  explicit Linewise(const Plan& plan)
      : plan_(plan),
        c_(*plan.convolution),
        g_(c_.geometry),
        whole_(whole_windows(g_)),
        panel_(g_.taps() * plan.group_channels * kStep) {
    const auto pointers = static_cast<std::size_t>(g_.taps() * kRows), zeros = static_cast<std::size_t>(plan.group_channels);
    char* const memory = scratch(pointers * sizeof(float*) + zeros * sizeof(float), ScratchOwner::kConv);
    taps_ = reinterpret_cast<const float**>(memory);
    zeros_ = reinterpret_cast<float*>(taps_ + pointers);
    std::memset(zeros_, 0, zeros * sizeof(float));
  }

  /// The lines of one task, for some groups.
  void run(std::int64_t task) {
    const std::int64_t group_tasks = ceil_div(g_.groups, plan_.task_groups);
    const std::int64_t first = task % group_tasks * plan_.task_groups, line = task / group_tasks * plan_.task_lines;
    const Range lines{line, least(line + plan_.task_lines, g_.batch * g_.output[0])};
    for (group_ = first; group_ < least(first + plan_.task_groups, g_.groups); ++group_) {
      for (std::int64_t number = lines.begin; number < lines.end; ++number) whole_windows_of(number);
      for (std::int64_t x = 0; x < g_.output[1]; ++x)
        if (x < whole_.begin || x >= whole_.end) border_of(x, lines);
      const std::int64_t filter = group_ * plan_.group_filters;
      finish(plan_, {lines.begin * g_.output[1], lines.end * g_.output[1], filter, filter + plan_.group_filters});
    }
  }

 private:
  static constexpr auto kStep = static_cast<std::int64_t>(kPanel);

  const float* pixel(std::int64_t image, std::int64_t y, std::int64_t x) const {
    return c_.x + ((image * g_.input[0] + y) * g_.input[1] + x) * g_.channels + group_ * plan_.group_channels;
  }

  /// The windows of a line that cross no border to the left or right.
  void whole_windows_of(std::int64_t number) {
    const std::int64_t image = number / g_.output[0], oy = number % g_.output[0];
    const Range ky = inside(g_, 0, oy);
    const float** tap = taps_;
    for (std::int64_t y = ky.begin; y < ky.end; ++y)
      for (std::int64_t x = 0; x < g_.kernel[1]; ++x)
        *tap++ = pixel(image, oy * g_.strides[0] - g_.pads[0] + y * g_.dilations[0],
                       whole_.begin * g_.strides[1] - g_.pads[1] + x * g_.dilations[1]);
    const std::int64_t step = g_.strides[1] * g_.channels;
    in_even_parts(whole_.end - whole_.begin, kRows, [&](std::int64_t begin, std::int64_t count) {
      multiply(count, Lines{taps_, begin * step, step}, {ky.begin * g_.kernel[1], ky.end * g_.kernel[1]},
               number * g_.output[1] + whole_.begin + begin, 1);
    });
  }

  /// A column of windows that cross one.
  void border_of(std::int64_t x, Range lines) {
    in_even_parts(lines.end - lines.begin, kRows, [&](std::int64_t begin, std::int64_t count) {
      for (std::int64_t row = 0; row < count; ++row) place(lines.begin + begin + row, x, taps_ + row, count);
      multiply(count, gemm::Indirect{taps_, static_cast<std::size_t>(count)}, {0, g_.taps()},
               (lines.begin + begin) * g_.output[1] + x, g_.output[1]);
    });
  }

  /// Finds the taps of a window, `step` pointers apart. What lies in the padding is a row of zeros.
  void place(std::int64_t number, std::int64_t x, const float** tap, std::int64_t step) const {
    const std::int64_t image = number / g_.output[0], top = number % g_.output[0] * g_.strides[0] - g_.pads[0];
    const std::int64_t left = x * g_.strides[1] - g_.pads[1];
    for (std::int64_t ky = 0; ky < g_.kernel[0]; ++ky)
      for (std::int64_t kx = 0; kx < g_.kernel[1]; ++kx, tap += step) {
        const std::int64_t y = top + ky * g_.dilations[0], column = left + kx * g_.dilations[1];
        const bool is_inside = y >= 0 && y < g_.input[0] && column >= 0 && column < g_.input[1];
        *tap = is_inside ? pixel(image, y, column) : zeros_;
      }
  }

  /// Products of `count` windows, whose results are those of `row` and every `step`-th one after it.
  template <class Source>
  void multiply(std::int64_t count, Source source, Range taps, std::int64_t row, std::int64_t step) const {
    const std::int64_t depth = plan_.group_channels;
    for (std::int64_t column = 0; column < plan_.group_filters; column += kColumns) {
      const std::int64_t filter = group_ * plan_.group_filters + column, first = row * g_.filters + filter;
      const float* const weights = c_.weights + (group_ * plan_.panels + column / kStep) * panel_ + taps.begin * depth * kStep;
      const gemm::Target target{
          .c = c_.y + first,
          .ld = step * g_.filters,
          .columns = static_cast<std::size_t>(least(static_cast<std::int64_t>(kColumns), plan_.group_filters - column)),
          .bias = c_.bias ? c_.bias + filter : nullptr,
          .clip = c_.clip,
          .gate = c_.gate,
          .added = c_.added ? c_.added + first : nullptr,
          .added_ld = step * g_.filters};
      gemm::multiply(static_cast<int>(count), source, static_cast<std::size_t>(taps.end - taps.begin),
                     static_cast<std::size_t>(depth), gemm::Columns{weights, kStep, panel_}, target);
    }
  }

  const Plan& plan_;
  const Convolution& c_;
  const Geometry& g_;
  Range whole_;
  std::int64_t group_ = 0, panel_;  // floats of a panel of weights
  const float** taps_;
  float* zeros_;
};

}  // namespace
}  // namespace onnxopt::conv
