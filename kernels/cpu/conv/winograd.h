// Winograd's minimal filtering F(4 x 4, 3 x 3): A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks".
//
//     Y = A^T [(G g G^T) * (B^T d B)] A
//
// for each tile of inputs d and kernel g; the element-wise products, summed over channels, are 36 products of matrices. What is not
// finite would spread over a tile, so tasks that meet such results compute theirs anew by plain products.
#pragma once

#include <limits>

#include "kernels/cpu/conv/dense.h"

namespace onnxopt::conv {
namespace {

constexpr int kIn = static_cast<int>(kTileInputs), kOut = static_cast<int>(kTileOutputs);

inline F scaled(F x, float factor) { return V::mul(x, V::set1(factor)); }
inline F fused(float factor, F x, F y) { return V::fma(V::set1(factor), x, y); }

/// G g, for a column of the kernel.
inline void kernel_points(const F (&g)[3], F (&out)[kIn]) {
  const F outer = scaled(V::add(g[0], g[2]), -1.0f / 6), middle = scaled(g[1], 1.0f / 6);
  const F far = fused(1.0f / 24, g[0], scaled(g[2], 1.0f / 6)), near = scaled(g[1], 1.0f / 12);
  out[0] = scaled(g[0], 0.25f);
  out[1] = V::sub(outer, middle);
  out[2] = V::add(outer, middle);
  out[3] = V::add(far, near);
  out[4] = V::sub(far, near);
  out[5] = g[2];
}

/// B^T d, for a column of the tile.
inline void input_points(const F (&d)[kIn], F (&out)[kIn]) {
  const F even = fused(-4.0f, d[2], d[4]), odd = fused(-4.0f, d[1], d[3]);
  const F far = V::sub(d[4], d[2]), near = scaled(V::sub(d[3], d[1]), 2.0f);
  out[0] = fused(4.0f, d[0], fused(-5.0f, d[2], d[4]));
  out[1] = V::add(even, odd);
  out[2] = V::sub(even, odd);
  out[3] = V::add(far, near);
  out[4] = V::sub(far, near);
  out[5] = fused(4.0f, d[1], fused(-5.0f, d[3], d[5]));
}

/// A^T m, for a column of the products.
inline void output_points(const F (&m)[kIn], F (&out)[kOut]) {
  const F sum = V::add(m[1], m[2]), difference = V::sub(m[1], m[2]);
  const F far_sum = V::add(m[3], m[4]), far_difference = V::sub(m[3], m[4]);
  out[0] = V::add(V::add(m[0], sum), far_sum);
  out[1] = fused(2.0f, far_difference, difference);
  out[2] = fused(4.0f, far_sum, sum);
  out[3] = V::add(fused(8.0f, far_difference, difference), m[5]);
}

/// The weights of one panel, point by point; panels are numbered through all groups.
inline void run_transform_weights(const Plan& plan, std::int64_t panel) {
  const std::int64_t channels = plan.group_channels;
  const auto width = static_cast<std::int64_t>(kPanel);
  const float* const source = plan.convolution->weights + panel * 9 * channels * width;
  float* const target = plan.transformed + panel * channels * width;
  const std::int64_t tap = channels * width, point = plan.convolution->geometry.groups * plan.panels * channels * width;
  for (std::int64_t i = 0; i < channels * width; i += kWidth) {
    F rows[3][kIn];
    for (int ky = 0; ky < 3; ++ky) {
      const F g[3] = {V::load(source + (3 * ky) * tap + i), V::load(source + (3 * ky + 1) * tap + i),
                      V::load(source + (3 * ky + 2) * tap + i)};
      kernel_points(g, rows[ky]);
    }
    for (int x = 0; x < kIn; ++x) {
      const F g[3] = {rows[0][x], rows[1][x], rows[2][x]};
      F column[kIn];
      kernel_points(g, column);
      for (int y = 0; y < kIn; ++y) V::store(target + (y * kIn + x) * point + i, column[y]);
    }
  }
}

/// The tiles of one task, in blocks whose operands stay in the second-level cache. Columns are those of the task's group.
class Tiles {
 public:
  Tiles(const Plan& plan, std::int64_t task)
      : plan_(plan),
        g_(plan.convolution->geometry),
        channels_(plan.group_channels),
        ld_(round_up(channels_, kWidth) + kRowPadding) {
    const std::int64_t columns = task % plan.column_tasks;
    column_ = columns * plan.task_columns;
    column_end_ = least(column_ + plan.task_columns, plan.group_filters);
    group_ = task / plan.column_tasks / plan.tile_row_tasks / g_.batch;
    image_ = task / plan.column_tasks / plan.tile_row_tasks % g_.batch;
    tile_row_ = task / plan.column_tasks % plan.tile_row_tasks * plan.task_tile_rows;
    tile_row_end_ = least(tile_row_ + plan.task_tile_rows, plan.tiles[0]);
    const std::int64_t inputs = kTilePoints * plan.block_tiles * ld_;
    const std::int64_t products = kTilePoints * plan.block_tiles * static_cast<std::int64_t>(kColumns);
    inputs_ = reinterpret_cast<float*>(
        scratch(static_cast<std::size_t>(inputs + products + ld_) * sizeof(float), ScratchOwner::kConvTiles));
    products_ = inputs_ + inputs;
    zeros_ = products_ + products;
    std::memset(zeros_, 0, static_cast<std::size_t>(ld_) * sizeof(float));
  }

  void run() {
    const std::int64_t tiles = (tile_row_end_ - tile_row_) * plan_.tiles[1];
    F doubt = V::set1(0.0f);
    in_even_parts(tiles, plan_.block_tiles, [&](std::int64_t first, std::int64_t count) {
      for (std::int64_t tile = 0; tile < count; ++tile) transform_input(first + tile, tile, count);
      for (std::int64_t column = column_; column < column_end_; column += kColumns) {
        const std::int64_t columns = least(static_cast<std::int64_t>(kColumns), column_end_ - column);
        multiply(column, columns, count);
        for (std::int64_t tile = 0; tile < count; ++tile)
          doubt = transform_output(first + tile, tile, count, column, columns, doubt);
      }
    });
    const std::int64_t line = image_ * g_.output[0];
    const Rectangle done{(line + tile_row_ * kOut) * g_.output[1],
                         (line + least(tile_row_end_ * kOut, g_.output[0])) * g_.output[1], column_, column_end_};
    if (is_finite(doubt))
      finish(plan_, {done.row, done.row_end, filter(column_), filter(column_end_)});
    else
      multiply_rows(plan_, group_, done);
  }

 private:
  static bool is_finite(F zeros) {
    float lanes[V::kWidth];
    V::store(lanes, zeros);
    for (const float lane : lanes)
      if (!(lane == 0.0f)) return false;
    return true;
  }

  std::int64_t filter(std::int64_t column) const { return group_ * plan_.group_filters + column; }

  struct Place {
    std::int64_t y, x;  // of the first output
  };
  Place place(std::int64_t tile) const { return {(tile_row_ + tile / plan_.tiles[1]) * kOut, tile % plan_.tiles[1] * kOut}; }

  void transform_input(std::int64_t number, std::int64_t tile, std::int64_t count) {
    const Place at = place(number);
    const float* const image = plan_.convolution->x + image_ * g_.input[0] * g_.input[1] * g_.channels + group_ * channels_;
    const float* pointers[kTilePoints];
    for (int y = 0; y < kIn; ++y)
      for (int x = 0; x < kIn; ++x) {
        const std::int64_t iy = at.y - g_.pads[0] + y, ix = at.x - g_.pads[1] + x;
        const bool inside = iy >= 0 && iy < g_.input[0] && ix >= 0 && ix < g_.input[1];
        pointers[y * kIn + x] = inside ? image + (iy * g_.input[1] + ix) * g_.channels : zeros_;
      }
    float* const target = inputs_ + tile * ld_;
    for (std::int64_t channel = 0; channel < channels_; channel += kWidth) {
      const auto left = static_cast<std::size_t>(channels_ - channel);
      const auto load = [&](const float* p) { return left >= V::kWidth ? V::load(p + channel) : V::load_first(p + channel, left); };
      F rows[kIn][kIn];
      for (int y = 0; y < kIn; ++y) {
        const float* const* const p = pointers + y * kIn;
        // What the next tile reads and this one does not.
        for (int x = kIn - kOut; x < kIn; ++x) __builtin_prefetch(p[x] + kOut * g_.channels + channel);
        const F d[kIn] = {load(p[0]), load(p[1]), load(p[2]), load(p[3]), load(p[4]), load(p[5])};
        input_points(d, rows[y]);
      }
      for (int x = 0; x < kIn; ++x) {
        const F d[kIn] = {rows[0][x], rows[1][x], rows[2][x], rows[3][x], rows[4][x], rows[5][x]};
        F column[kIn];
        input_points(d, column);
        for (int y = 0; y < kIn; ++y) V::store(target + (y * kIn + x) * count * ld_ + channel, column[y]);
      }
    }
  }

  void multiply(std::int64_t column, std::int64_t columns, std::int64_t count) {
    const auto panel_floats = static_cast<std::ptrdiff_t>(channels_) * static_cast<std::ptrdiff_t>(kPanel);
    for (std::int64_t point = 0; point < kTilePoints; ++point) {
      const float* const weights =
          plan_.transformed + (point * g_.groups + group_) * plan_.panels * panel_floats + column * channels_;
      const gemm::Columns b{weights, kPanel, panel_floats};
      in_even_parts(count, kRows, [&](std::int64_t row, std::int64_t rows) {
        const gemm::Strided a{inputs_ + (point * count + row) * ld_, ld_};
        const gemm::Target target{products_ + (point * count + row) * static_cast<std::int64_t>(kColumns), kColumns,
                                  static_cast<std::size_t>(columns)};
        gemm::multiply(static_cast<int>(rows), a, 1, static_cast<std::size_t>(channels_), b, target);
      });
    }
  }

  /// Writes the outputs of a tile; adds 0 times each of them to `doubt`.
  F transform_output(std::int64_t number, std::int64_t tile, std::int64_t count, std::int64_t column, std::int64_t columns,
                     F doubt) {
    const Convolution& convolution = *plan_.convolution;
    const Place at = place(number);
    const std::int64_t lines = least(kOut, g_.output[0] - at.y), pixels = least(kOut, g_.output[1] - at.x);
    const std::int64_t first = ((image_ * g_.output[0] + at.y) * g_.output[1] + at.x) * g_.filters + filter(column);
    const std::int64_t point = count * static_cast<std::int64_t>(kColumns);
    const F zero = V::set1(0.0f);
    for (std::int64_t i = 0; i < columns; i += kWidth) {
      const float* const products = products_ + tile * static_cast<std::int64_t>(kColumns) + i;
      const auto left = static_cast<std::size_t>(columns - i);
      const bool whole = left >= V::kWidth;
      F rows[kOut][kIn];
      for (int x = 0; x < kIn; ++x) {
        F m[kIn], column_of[kOut];
        for (int k = 0; k < kIn; ++k) {
          const float* const p = products + (k * kIn + x) * point;
          m[k] = whole ? V::load(p) : V::load_first(p, left);
        }
        output_points(m, column_of);
        for (int k = 0; k < kOut; ++k) rows[k][x] = column_of[k];
      }
      const float* const b = convolution.bias ? convolution.bias + filter(column) + i : nullptr;
      const F bias = b == nullptr ? zero : whole ? V::load(b) : V::load_first(b, left);
      for (std::int64_t line = 0; line < lines; ++line) {
        F out[kOut];
        output_points(rows[line], out);
        for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
          const std::int64_t to = first + (line * g_.output[1] + pixel) * g_.filters + i;
          F result = V::add(out[pixel], bias);
          doubt = V::fma(result, zero, doubt);
          if (convolution.added)
            result = V::add(result, whole ? V::load(convolution.added + to) : V::load_first(convolution.added + to, left));
          if (convolution.clip) result = V::min(V::set1(convolution.clip->high), V::max(V::set1(convolution.clip->low), result));
          if (convolution.gate) result = gated(*convolution.gate, result);
          if (whole)
            V::store(convolution.y + to, result);
          else
            V::store_first(convolution.y + to, result, left);
        }
      }
    }
    return doubt;
  }

  const Plan& plan_;
  const Geometry& g_;
  std::int64_t channels_, ld_;
  std::int64_t group_, image_, tile_row_, tile_row_end_, column_, column_end_;
  float *inputs_, *products_, *zeros_;
};

}  // namespace
}  // namespace onnxopt::conv
