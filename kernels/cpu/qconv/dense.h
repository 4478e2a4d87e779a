// Convolutions as products of matrices of bytes: rows are pixels of the output, found by pointers; columns are filters.
#pragma once

#include "kernels/cpu/qconv/finish.h"

namespace onnxopt::qconv {
namespace {

constexpr auto kColumns = static_cast<std::int64_t>(qgemm::kColumns), kPanel = static_cast<std::int64_t>(qgemm::kPanel),
               kGroup = static_cast<std::int64_t>(qgemm::kGroup);

/// Where a block of sums goes.
struct Block {
  const Plan* plan;
  const Results* results;
  const Finisher* finisher;
  std::int64_t row, column;  // of y
  std::size_t columns;
};

/// Sums begin with what the zero point of x takes away from them. This and what takes them are part of their caller: sums that are
/// handed over lie in memory all the time.
template <int R, int N>
[[gnu::always_inline]] inline void start_block(Dot::Sums (&sums)[R][N], const Block& block) {
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) {
    const std::size_t column = static_cast<std::size_t>(v) * V::kWidth;
    const Dot::Sums start = Dot::start(block.plan->x.zero, Dot::load_numbers(block.plan->convolution->sums + block.column + column,
                                                                             v + 1 < N ? V::kWidth : block.columns - column));
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) sums[r][v] = start;
  }
}

template <int R, int N>
[[gnu::always_inline]] inline void finish_block(const Dot::Sums (&sums)[R][N], const Block& block) {
  F numbers[R][N];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) numbers[r][v] = Dot::floats(sums[r][v]);
  if constexpr (R == Dot::kRows)
    if (block.columns == N * V::kWidth && block.finisher->block(numbers, block.row, block.column)) return;
  float stored[R][N * V::kWidth];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) V::store(stored[r] + v * kWidth, numbers[r][v]);
  block.finisher->rows(stored[0], N * V::kWidth, R, block.row, block.column, static_cast<std::int64_t>(block.columns),
                       *block.results);
}

/// Fills in a pointer for each stretch and row of a group; what lies in the padding is a row of zero points.
inline const std::uint8_t** place(const Plan& plan, std::int64_t group, std::int64_t row, std::int64_t rows) {
  const conv::Geometry& g = plan.convolution->geometry;
  const std::size_t pointers = static_cast<std::size_t>(rows * plan.taps) * sizeof(void*);
  char* const memory = scratch(pointers + static_cast<std::size_t>(plan.depth), ScratchOwner::kQconvWindows);
  auto** const table = reinterpret_cast<const std::uint8_t**>(memory);
  auto* const padding = reinterpret_cast<std::uint8_t*>(memory + pointers);
  std::memset(padding, plan.x.zero, static_cast<std::size_t>(plan.depth));
  const std::int64_t columns = plan.x.lines ? 1 : g.kernel[1];
  for (std::int64_t r = 0; r < rows;) {
    // Pixels of one line.
    const std::int64_t line = (row + r) / g.output[1], ox = (row + r) % g.output[1], count = least(g.output[1] - ox, rows - r);
    const std::int64_t image = line / g.output[0], oy = line % g.output[0];
    const std::uint8_t** target = table + r;
    for (std::int64_t ky = 0; ky < g.kernel[0]; ++ky) {
      const std::int64_t y = oy * g.strides[0] - g.pads[0] + ky * g.dilations[0];
      const bool inside = y >= 0 && y < g.input[0];
      const std::uint8_t* const from = plan.x.data + (image * g.input[0] + y) * plan.x.line_step + group * plan.x.group_step;
      for (std::int64_t kx = 0; kx < columns; ++kx, target += rows) {
        std::int64_t x = ox * g.strides[1] + (plan.x.lines ? 0 : kx * g.dilations[1] - g.pads[1]);
        for (std::int64_t i = 0; i < count; ++i, x += g.strides[1])
          target[i] = inside && (plan.x.lines || (x >= 0 && x < g.input[1])) ? from + x * plan.x.pixel_step : padding;
      }
    }
    r += count;
  }
  return table;
}

/// Whether every row of the product is a row of x.
inline bool is_plain(const Plan& plan) {
  const conv::Geometry& g = plan.convolution->geometry;
  const bool window = plan.taps == 1 && g.strides[0] == 1 && g.strides[1] == 1 && g.pads[0] == 0 && g.pads[1] == 0;
  return window && g.input[0] == g.output[0] && g.input[1] == g.output[1] && !plan.x.lines;
}

inline void run_dense(const Plan& plan, std::int64_t task) {
  const Convolution& c = *plan.convolution;
  const std::int64_t filters = c.geometry.filters / c.geometry.groups;
  const std::int64_t group = task / plan.column_tasks / plan.row_tasks;
  const std::int64_t begin = task / plan.column_tasks % plan.row_tasks * plan.task_rows;
  const std::int64_t end = least(begin + plan.task_rows, c.geometry.pixels());
  const std::int64_t first = task % plan.column_tasks * plan.task_columns, last = least(first + plan.task_columns, filters);
  const std::int64_t offset = group * filters;
  const std::int64_t groups = plan.depth / kGroup, panel = plan.taps * groups * kPanel * kGroup;
  const std::int8_t* const weights = c.weights + group * ((filters + kPanel - 1) / kPanel) * panel;
  const bool plain = is_plain(plan);
  const std::uint8_t* const x = plan.x.data + group * plan.x.group_step;
  const std::uint8_t** const pointers = plain ? nullptr : place(plan, group, begin, end - begin);
  const Finisher finisher(plan);
  const Results results = results_of(c, begin, end, offset + first, offset + last);
  const auto block_at = [&](std::int64_t row, std::int64_t column) {
    const qgemm::Columns b{weights + column / kPanel * panel, static_cast<std::ptrdiff_t>(panel)};
    const Block block{&plan, &results, &finisher, row, offset + column, static_cast<std::size_t>(least(kColumns, last - column))};
    const int rows = static_cast<int>(least(Dot::kRows, end - row));
    if (plain)
      qgemm::multiply(rows, qgemm::Strided{x + row * plan.x.pixel_step, static_cast<std::ptrdiff_t>(plan.x.pixel_step)}, 1,
                      static_cast<std::size_t>(groups), b, block);
    else
      qgemm::multiply(rows, qgemm::Indirect{pointers + (row - begin), static_cast<std::size_t>(end - begin)},
                      static_cast<std::size_t>(plan.taps), static_cast<std::size_t>(groups), b, block);
  };
  // Results are written pixel by pixel where all weights stay in the nearest cache, else weights are read once.
  if (plan.rows_first) {
    for (std::int64_t row = begin; row < end; row += Dot::kRows)
      for (std::int64_t column = first; column < last; column += kColumns) block_at(row, column);
  } else {
    for (std::int64_t column = first; column < last; column += kColumns)
      for (std::int64_t row = begin; row < end; row += Dot::kRows) block_at(row, column);
  }
  finish(c, finisher, results);
}

}  // namespace
}  // namespace onnxopt::qconv
