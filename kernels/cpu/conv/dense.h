// Convolutions as products of matrices: rows are pixels of the output, columns filters, and the products run over the window.
#pragma once

#include <cstring>

#include "kernels/cpu/conv/plan.h"
#include "kernels/cpu/gemm/micro.h"
#include "kernels/cpu/rounding.h"
#include "kernels/cpu/scratch.h"

namespace onnxopt::conv {
namespace {

using gemm::gated;
using gemm::kColumns;
using gemm::kPanel;
using gemm::kRows;
using simd::V;
using F = V::F;

constexpr auto kWidth = static_cast<std::int64_t>(V::kWidth);

inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
inline std::int64_t most(std::int64_t a, std::int64_t b) { return a < b ? b : a; }

/// Calls `use(begin, count)` for parts of [0, total) of nearly equal size, of at most `step` each.
template <class Use>
inline void in_even_parts(std::int64_t total, std::int64_t step, Use use) {
  if (total <= 0) return;
  const std::int64_t parts = ceil_div(total, step), size = total / parts, larger = total % parts;
  std::int64_t begin = 0;
  for (std::int64_t part = 0; part < parts; ++part) {
    const std::int64_t count = size + (part < larger);
    use(begin, count);
    begin += count;
  }
}

/// A place of the output.
struct Pixel {
  std::int64_t image, y, x;

  static Pixel at(const Geometry& g, std::int64_t row) {
    const std::int64_t line = row / g.output[1];
    return {line / g.output[0], line % g.output[0], row % g.output[1]};
  }
  void advance(const Geometry& g) {
    if (++x < g.output[1]) return;
    x = 0;
    if (++y < g.output[0]) return;
    y = 0;
    ++image;
  }
};

/// Rows of A from a tap on, for `count` taps; `skipped` ones before them add nothing.
template <class Source>
struct TapRows {
  Source rows;
  std::int64_t skipped, count;
};

/// Where the windows of a block of pixels lie: a pointer per tap and pixel. What lies in the padding is a row of zeros.
class Windows {
 public:
  static std::size_t bytes(const Plan& plan) {
    return static_cast<std::size_t>(plan.block_rows * plan.convolution->geometry.taps()) * sizeof(float*) +
           static_cast<std::size_t>(plan.group_channels) * sizeof(float);
  }

  Windows(const Plan& plan, char* memory) : plan_(plan), g_(plan.convolution->geometry) {
    pointers_ = reinterpret_cast<const float**>(memory);
    zeros_ = reinterpret_cast<float*>(memory + static_cast<std::size_t>(plan.block_rows * g_.taps()) * sizeof(float*));
    std::memset(zeros_, 0, static_cast<std::size_t>(plan.group_channels) * sizeof(float));
  }

  /// Fills in the pointers for rows [row, row + rows) of a group.
  gemm::Indirect place(std::int64_t group, std::int64_t row, std::int64_t rows) {
    const float* const x = plan_.convolution->x + group * plan_.group_channels;
    Pixel pixel = Pixel::at(g_, row);
    for (std::int64_t r = 0; r < rows; ++r, pixel.advance(g_)) {
      const float* const image = x + pixel.image * g_.input[0] * g_.input[1] * g_.channels;
      const float** target = pointers_ + r;
      for (std::int64_t ky = 0; ky < g_.kernel[0]; ++ky) {
        const std::int64_t y = pixel.y * g_.strides[0] - g_.pads[0] + ky * g_.dilations[0];
        const bool inside = y >= 0 && y < g_.input[0];
        const float* const line = image + y * g_.input[1] * g_.channels;
        for (std::int64_t kx = 0; kx < g_.kernel[1]; ++kx, target += rows) {
          const std::int64_t at = pixel.x * g_.strides[1] - g_.pads[1] + kx * g_.dilations[1];
          *target = inside && at >= 0 && at < g_.input[1] ? line + at * g_.channels : zeros_;
        }
      }
    }
    return {pointers_, static_cast<std::size_t>(rows)};
  }

  /// Taps [tap, tap + taps) of rows [row, row + rows), which were placed, but for those at either end that are padding for all
  /// rows.
  TapRows<gemm::Indirect> taps_of(const gemm::Indirect& all, std::int64_t row, std::int64_t rows, std::int64_t tap,
                                  std::int64_t taps) const {
    const auto at = [&](std::int64_t one) { return all.pointers + one * static_cast<std::int64_t>(all.stride) + row; };
    const auto is_padding = [&](std::int64_t one) {
      std::int64_t outside = 0;
      while (outside < rows && at(one)[outside] == zeros_) ++outside;
      return outside == rows;
    };
    std::int64_t begin = tap, end = tap + taps;
    while (begin < end && is_padding(begin)) ++begin;
    while (begin < end && is_padding(end - 1)) --end;
    return {{at(begin), all.stride}, begin - tap, end - begin};
  }

 private:
  const Plan& plan_;
  const Geometry& g_;
  const float** pointers_;
  float* zeros_;
};

/// A block of rows by all columns of a rectangle; `taps_of(row, rows, tap, taps)` gives the rows of A.
template <class TapsOf>
inline void multiply_block(const Plan& plan, std::int64_t group, const Rectangle& block, TapsOf taps_of) {
  const Convolution& convolution = *plan.convolution;
  const std::int64_t width = convolution.geometry.filters, taps = convolution.geometry.taps(), depth = plan.group_channels;
  const float* const weights = convolution.weights + group * plan.panels * taps * depth * static_cast<std::int64_t>(kPanel);
  const bool few = block.row_end - block.row <= gemm::kFewRows;
  for (std::int64_t column = block.column, columns = 0; column < block.column_end; column += columns) {
    const std::int64_t left = block.column_end - column;
    const bool wide = few && left >= static_cast<std::int64_t>(gemm::kWideColumns);
    columns = least(static_cast<std::int64_t>(wide ? gemm::kWideColumns : kColumns), left);
    const std::int64_t filter = group * plan.group_filters + column;
    for (std::int64_t tap = 0; tap < taps; tap += plan.block_taps) {
      const std::int64_t some_taps = least(plan.block_taps, taps - tap);
      const bool is_first = tap == 0, is_last = tap + some_taps == taps;
      in_even_parts(block.row_end - block.row, kRows, [&](std::int64_t row, std::int64_t rows) {
        const auto part = taps_of(row, rows, tap, some_taps);
        const gemm::Columns b{weights + (column * taps + (tap + part.skipped) * static_cast<std::int64_t>(kPanel)) * depth, kPanel,
                              static_cast<std::ptrdiff_t>(kPanel) * taps * depth};
        const std::int64_t first = (block.row + row) * width + filter;
        const gemm::Target target{.c = convolution.y + first,
                                  .ld = width,
                                  .columns = static_cast<std::size_t>(columns),
                                  .bias = convolution.bias ? convolution.bias + filter : nullptr,
                                  .accumulate = !is_first,
                                  .clip = is_last ? convolution.clip : nullptr,
                                  .gate = is_last ? convolution.gate : nullptr,
                                  .added = is_last && convolution.added ? convolution.added + first : nullptr,
                                  .added_ld = width};
        const auto count = static_cast<std::size_t>(part.count), channels = static_cast<std::size_t>(depth);
        if (wide)
          gemm::multiply_few(static_cast<int>(rows), part.rows, count, channels, b, target);
        else
          gemm::multiply(static_cast<int>(rows), part.rows, count, channels, b, target);
      });
    }
  }
  finish(plan,
         {block.row, block.row_end, group * plan.group_filters + block.column, group * plan.group_filters + block.column_end});
}

/// A rectangle of a group's results, by products.
inline void multiply_rows(const Plan& plan, std::int64_t group, const Rectangle& part) {
  const Geometry& g = plan.convolution->geometry;
  const auto each_block = [&](auto use) {
    in_even_parts(part.row_end - part.row, plan.block_rows, [&](std::int64_t begin, std::int64_t rows) {
      use(Rectangle{part.row + begin, part.row + begin + rows, part.column, part.column_end});
    });
  };
  if (plan.plain)
    return each_block([&](const Rectangle& block) {
      const float* const x = plan.convolution->x + block.row * g.channels + group * plan.group_channels;
      multiply_block(plan, group, block, [&](std::int64_t row, std::int64_t, std::int64_t, std::int64_t taps) {
        return TapRows<gemm::Strided>{{x + row * g.channels, g.channels}, 0, taps};
      });
    });
  Windows windows(plan, scratch(Windows::bytes(plan), ScratchOwner::kConv));
  each_block([&](const Rectangle& block) {
    const gemm::Indirect all = windows.place(group, block.row, block.row_end - block.row);
    multiply_block(plan, group, block, [&](std::int64_t row, std::int64_t rows, std::int64_t tap, std::int64_t taps) {
      return windows.taps_of(all, row, rows, tap, taps);
    });
  });
}

inline void run_dense(const Plan& plan, std::int64_t task) {
  const std::int64_t columns = task % plan.column_tasks, rows = task / plan.column_tasks % plan.row_tasks;
  const std::int64_t pixels = plan.convolution->geometry.pixels();
  multiply_rows(plan, task / plan.column_tasks / plan.row_tasks,
                {rows * plan.task_rows, least((rows + 1) * plan.task_rows, pixels), columns * plan.task_columns,
                 least((columns + 1) * plan.task_columns, plan.group_filters)});
}

}  // namespace
}  // namespace onnxopt::conv
