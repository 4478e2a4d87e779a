// Winograd's minimal filtering, F(4, 3) and F(2, 5) along one axis or both: A. Lavin and S. Gray, "Fast Algorithms for
// Convolutional Neural Networks".
//
//     Y = A^T [(G g G^T) * (B^T d B)] A
//
// for each tile of inputs d and kernel g; the element-wise products, summed over channels, are 6 or 36 products of matrices. Both
// filterings have the points 0, 1, -1, 2, -2 and infinity, so they share B. What is not finite would spread over a tile, so tasks
// that meet such results compute theirs anew by plain products.
#pragma once

#include <limits>

#include "kernels/cpu/conv/dense.h"

namespace onnxopt::conv {
namespace {

/// The tiles of kernels of KY x KX.
template <int KY, int KX>
struct Tile {
  static constexpr int kKernelY = KY, kKernelX = KX;
  static constexpr int kInY = static_cast<int>(tile_inputs(KY)), kInX = static_cast<int>(tile_inputs(KX));
  static constexpr int kOutY = static_cast<int>(tile_outputs(KY)), kOutX = static_cast<int>(tile_outputs(KX));
  static constexpr std::int64_t kPoints = std::int64_t{kInY} * kInX;
};

/// Calls `run` with the tile of a geometry's kernel, one of those that plan.cc chooses.
template <class Run>
inline void with_tile(const Geometry& g, Run run) {
  if (g.kernel[0] == 3) return run(Tile<3, 3>{});
  if (g.kernel[0] == 5) return run(Tile<5, 5>{});
  if (g.kernel[1] == 3) return run(Tile<1, 3>{});
  run(Tile<1, 5>{});
}

inline F scaled(F x, float factor) { return V::mul(x, V::set1(factor)); }
inline F fused(float factor, F x, F y) { return V::fma(V::set1(factor), x, y); }

/// G g, for a column of the kernel.
inline void kernel_points(const F (&g)[1], F (&out)[1]) { out[0] = g[0]; }
inline void kernel_points(const F (&g)[3], F (&out)[6]) {
  const F outer = scaled(V::add(g[0], g[2]), -1.0f / 6), middle = scaled(g[1], 1.0f / 6);
  const F far = fused(1.0f / 24, g[0], scaled(g[2], 1.0f / 6)), near = scaled(g[1], 1.0f / 12);
  out[0] = scaled(g[0], 0.25f);
  out[1] = V::sub(outer, middle);
  out[2] = V::add(outer, middle);
  out[3] = V::add(far, near);
  out[4] = V::sub(far, near);
  out[5] = g[2];
}
inline void kernel_points(const F (&g)[5], F (&out)[6]) {
  const F even = scaled(V::add(V::add(g[0], g[2]), g[4]), -1.0f / 6), odd = scaled(V::add(g[1], g[3]), 1.0f / 6);
  const F far = fused(1.0f / 24, g[0], fused(1.0f / 6, g[2], scaled(g[4], 2.0f / 3)));
  const F near = fused(1.0f / 12, g[1], scaled(g[3], 1.0f / 3));
  out[0] = scaled(g[0], 0.25f);
  out[1] = V::sub(even, odd);
  out[2] = V::add(even, odd);
  out[3] = V::add(far, near);
  out[4] = V::sub(far, near);
  out[5] = g[4];
}

/// B^T d, for a column of the tile.
inline void input_points(const F (&d)[1], F (&out)[1]) { out[0] = d[0]; }
inline void input_points(const F (&d)[6], F (&out)[6]) {
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
inline void output_points(const F (&m)[1], F (&out)[1]) { out[0] = m[0]; }
inline void output_points(const F (&m)[6], F (&out)[2]) {
  const F difference = V::sub(m[1], m[2]), far_difference = V::sub(m[3], m[4]);
  out[0] = V::add(V::add(m[0], V::add(m[1], m[2])), V::add(m[3], m[4]));
  out[1] = V::add(fused(2.0f, far_difference, difference), m[5]);
}
inline void output_points(const F (&m)[6], F (&out)[4]) {
  const F sum = V::add(m[1], m[2]), difference = V::sub(m[1], m[2]);
  const F far_sum = V::add(m[3], m[4]), far_difference = V::sub(m[3], m[4]);
  out[0] = V::add(V::add(m[0], sum), far_sum);
  out[1] = fused(2.0f, far_difference, difference);
  out[2] = fused(4.0f, far_sum, sum);
  out[3] = V::add(fused(8.0f, far_difference, difference), m[5]);
}

/// How far ahead weights are fetched, in floats: those of a tap are read in pieces that end before the processor's own prefetching
/// has begun.
constexpr std::int64_t kWeightsAhead = 12 * static_cast<std::int64_t>(kPanel);

/// Where the points of weights of some channels go, and how far the points are apart.
struct WeightPoints {
  float* target;
  std::int64_t step;
};

/// The weights of some channels of one panel, point by point; panels are numbered through all groups.
template <class T>
inline void transform_weights_of(const Plan& plan, std::int64_t panel, std::int64_t channel, std::int64_t channels,
                                 WeightPoints points) {
  constexpr int kTaps = T::kKernelY * T::kKernelX;
  const auto width = static_cast<std::int64_t>(kPanel);
  const std::int64_t tap = plan.group_channels * width;
  const float* const source = plan.convolution->weights + panel * kTaps * tap + channel * width;
  for (std::int64_t i = 0; i < channels * width; i += kWidth) {
    for (int t = 0; t < kTaps; ++t) __builtin_prefetch(source + t * tap + i + kWeightsAhead);
    F rows[T::kKernelY][T::kInX];
    for (int ky = 0; ky < T::kKernelY; ++ky) {
      F g[T::kKernelX];
      for (int kx = 0; kx < T::kKernelX; ++kx) g[kx] = V::load(source + (ky * T::kKernelX + kx) * tap + i);
      kernel_points(g, rows[ky]);
    }
    for (int x = 0; x < T::kInX; ++x) {
      F g[T::kKernelY], column[T::kInY];
      for (int ky = 0; ky < T::kKernelY; ++ky) g[ky] = rows[ky][x];
      kernel_points(g, column);
      for (int y = 0; y < T::kInY; ++y) V::store(points.target + (y * T::kInX + x) * points.step + i, column[y]);
    }
  }
}

template <class T>
inline void run_transform_weights(const Plan& plan, std::int64_t panel) {
  const std::int64_t floats = plan.group_channels * static_cast<std::int64_t>(kPanel);
  transform_weights_of<T>(
      plan, panel, 0, plan.group_channels,
      {plan.transformed + panel * floats, plan.convolution->geometry.groups * plan.panels * floats + kRowPadding});
}

/// Tiles of one group by some of its columns. Tiles are numbered through all images, and begin at the tile row `tile_row`.
template <class T>
class Tiles {
 public:
  /// `zeros` are as many as a group has channels, rounded up to a vector.
  Tiles(const Plan& plan, std::int64_t group, std::int64_t tile_row, std::int64_t tile_row_end, const float* zeros)
      : plan_(plan),
        g_(plan.convolution->geometry),
        group_(group),
        tile_row_(tile_row),
        tile_row_end_(tile_row_end),
        zeros_(zeros) {}

  std::int64_t count() const { return (tile_row_end_ - tile_row_) * plan_.tiles[1]; }
  std::int64_t filter(std::int64_t column) const { return group_ * plan_.group_filters + column; }

  /// The points of a tile, `step` floats apart.
  void transform_input(std::int64_t number, float* target, std::int64_t step) const {
    const Place at = place(number);
    const std::int64_t channels = plan_.group_channels;
    const float* const image = plan_.convolution->x + at.image * g_.input[0] * g_.input[1] * g_.channels + group_ * channels;
    const float* pointers[T::kPoints];
    for (int y = 0; y < T::kInY; ++y)
      for (int x = 0; x < T::kInX; ++x) {
        const std::int64_t iy = at.y - g_.pads[0] + y, ix = at.x - g_.pads[1] + x;
        const bool inside = iy >= 0 && iy < g_.input[0] && ix >= 0 && ix < g_.input[1];
        pointers[y * T::kInX + x] = inside ? image + (iy * g_.input[1] + ix) * g_.channels : zeros_;
      }
    for (std::int64_t channel = 0; channel < channels; channel += kWidth) {
      const auto left = static_cast<std::size_t>(channels - channel);
      const auto load = [&](const float* p) { return left >= V::kWidth ? V::load(p + channel) : V::load_first(p + channel, left); };
      F rows[T::kInY][T::kInX];
      for (int y = 0; y < T::kInY; ++y) {
        const float* const* const p = pointers + y * T::kInX;
        // What the next tile reads and this one does not.
        for (int x = T::kInX - T::kOutX; x < T::kInX; ++x) __builtin_prefetch(p[x] + T::kOutX * g_.channels + channel);
        F d[T::kInX];
        for (int x = 0; x < T::kInX; ++x) d[x] = load(p[x]);
        input_points(d, rows[y]);
      }
      for (int x = 0; x < T::kInX; ++x) {
        F d[T::kInY], column[T::kInY];
        for (int y = 0; y < T::kInY; ++y) d[y] = rows[y][x];
        input_points(d, column);
        for (int y = 0; y < T::kInY; ++y) V::store(target + (y * T::kInX + x) * step + channel, column[y]);
      }
    }
  }

  /// Writes the outputs of a tile, whose products are `step` floats apart from point to point; adds 0 times each of them to
  /// `doubt`.
  F transform_output(std::int64_t number, const float* tile_products, std::int64_t step, std::int64_t column, std::int64_t columns,
                     F doubt) const {
    const Convolution& convolution = *plan_.convolution;
    const Place at = place(number);
    const std::int64_t lines = least(T::kOutY, g_.output[0] - at.y), pixels = least(T::kOutX, g_.output[1] - at.x);
    const std::int64_t first = ((at.image * g_.output[0] + at.y) * g_.output[1] + at.x) * g_.filters + filter(column);
    const F zero = V::set1(0.0f);
    for (std::int64_t i = 0; i < columns; i += kWidth) {
      const float* const products = tile_products + i;
      const auto left = static_cast<std::size_t>(columns - i);
      const bool whole = left >= V::kWidth;
      F rows[T::kOutY][T::kInX];
      for (int x = 0; x < T::kInX; ++x) {
        F m[T::kInY], column_of[T::kOutY];
        for (int k = 0; k < T::kInY; ++k) {
          const float* const p = products + (k * T::kInX + x) * step;
          m[k] = whole ? V::load(p) : V::load_first(p, left);
        }
        output_points(m, column_of);
        for (int k = 0; k < T::kOutY; ++k) rows[k][x] = column_of[k];
      }
      const float* const b = convolution.bias ? convolution.bias + filter(column) + i : nullptr;
      const F bias = b == nullptr ? zero : whole ? V::load(b) : V::load_first(b, left);
      for (std::int64_t line = 0; line < lines; ++line) {
        F out[T::kOutX];
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

  /// What follows when all outputs of these columns are written.
  void finish(std::int64_t column, std::int64_t column_end, F doubt) const {
    const Rectangle done{first_row(tile_row_), first_row(tile_row_end_), column, column_end};
    if (is_finite(doubt))
      conv::finish(plan_, {done.row, done.row_end, filter(column), filter(column_end)});
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

  /// Where a row of tiles begins, among the outputs of its image.
  struct Start {
    std::int64_t y, x;
  };
  Start start_of(std::int64_t row) const {
    const std::int64_t part = row % plan_.line_parts;
    return {row / plan_.line_parts * T::kOutY, least(part * plan_.tiles[1] * T::kOutX, g_.output[1])};
  }

  /// The first pixel of a row of tiles.
  std::int64_t first_row(std::int64_t tile_row) const {
    const Start at = start_of(tile_row % plan_.tiles[0]);
    return (tile_row / plan_.tiles[0] * g_.output[0] + at.y) * g_.output[1] + at.x;
  }

  struct Place {
    std::int64_t image, y, x;  // of the first output
  };
  Place place(std::int64_t tile) const {
    const std::int64_t row = tile_row_ + tile / plan_.tiles[1];
    const Start at = start_of(row % plan_.tiles[0]);
    return {row / plan_.tiles[0], at.y, at.x + tile % plan_.tiles[1] * T::kOutX};
  }

  const Plan& plan_;
  const Geometry& g_;
  std::int64_t group_, tile_row_, tile_row_end_;
  const float* zeros_;
};

/// Products of the points of `count` tiles with those of some channels of weights, one of matrices for each point.
struct PointProducts {
  const float* inputs;  // of the first channel of the first tile
  std::int64_t ld, input_step;
  const float* weights;  // of these channels and the first column
  std::int64_t panel, weight_step;
  std::int64_t channels, columns;
  float* products;  // [points, count, kColumns]
  bool accumulate;
};

inline void multiply_points(const PointProducts& p, std::int64_t points, std::int64_t count) {
  for (std::int64_t point = 0; point < points; ++point) {
    const gemm::Columns b{p.weights + point * p.weight_step, kPanel, p.panel};
    in_even_parts(count, kRows, [&](std::int64_t row, std::int64_t rows) {
      const gemm::Strided a{p.inputs + point * p.input_step + row * p.ld, p.ld};
      gemm::Target target{p.products + (point * count + row) * static_cast<std::int64_t>(kColumns), kColumns,
                          static_cast<std::size_t>(p.columns)};
      target.accumulate = p.accumulate;
      gemm::multiply(static_cast<int>(rows), a, 1, static_cast<std::size_t>(p.channels), b, target);
    });
  }
}

/// Floats of a row of transformed inputs.
inline std::int64_t tile_row_floats(const Plan& plan) { return round_up(plan.group_channels, kWidth) + kRowPadding; }

/// Some tile rows by some columns, with the weights that were transformed before, in blocks whose operands stay in the second-level
/// cache.
template <class T>
inline void run_winograd(const Plan& plan, std::int64_t task) {
  const Geometry& g = plan.convolution->geometry;
  const std::int64_t first_column = task % plan.column_tasks * plan.task_columns;
  const std::int64_t column_end = least(first_column + plan.task_columns, plan.group_filters);
  const std::int64_t image = task / plan.column_tasks / plan.tile_row_tasks;  // of all groups
  const std::int64_t group = image / g.batch, tile_row = task / plan.column_tasks % plan.tile_row_tasks * plan.task_tile_rows;
  const std::int64_t above = image % g.batch * plan.tiles[0], ld = tile_row_floats(plan);
  const std::int64_t input_floats = T::kPoints * plan.block_tiles * ld;
  const std::int64_t product_floats = T::kPoints * plan.block_tiles * static_cast<std::int64_t>(kColumns);
  auto* const inputs = reinterpret_cast<float*>(
      scratch(static_cast<std::size_t>(input_floats + product_floats + ld) * sizeof(float), ScratchOwner::kConvTiles));
  float *const products = inputs + input_floats, *const zeros = products + product_floats;
  std::memset(zeros, 0, static_cast<std::size_t>(ld) * sizeof(float));
  const Tiles<T> tiles(plan, group, above + tile_row, above + least(tile_row + plan.task_tile_rows, plan.tiles[0]), zeros);
  const std::int64_t panel = plan.group_channels * static_cast<std::int64_t>(kPanel);
  F doubt = V::set1(0.0f);
  in_even_parts(tiles.count(), plan.block_tiles, [&](std::int64_t first, std::int64_t count) {
    for (std::int64_t tile = 0; tile < count; ++tile) tiles.transform_input(first + tile, inputs + tile * ld, count * ld);
    for (std::int64_t column = first_column; column < column_end; column += kColumns) {
      const std::int64_t columns = least(static_cast<std::int64_t>(kColumns), column_end - column);
      const float* const weights = plan.transformed + group * plan.panels * panel + column * plan.group_channels;
      multiply_points({inputs, ld, count * ld, weights, panel, g.groups * plan.panels * panel + kRowPadding, plan.group_channels,
                       columns, products, false},
                      T::kPoints, count);
      for (std::int64_t tile = 0; tile < count; ++tile)
        doubt = tiles.transform_output(first + tile, products + tile * static_cast<std::int64_t>(kColumns),
                                       count * static_cast<std::int64_t>(kColumns), column, columns, doubt);
    }
  });
  tiles.finish(first_column, column_end, doubt);
}

/// The inputs of one tile row of a group.
template <class T>
inline void run_transform_inputs(const Plan& plan, std::int64_t task) {
  const std::int64_t rows = plan.convolution->geometry.batch * plan.tiles[0], group = task / rows, row = task % rows;
  const std::int64_t ld = tile_row_floats(plan), step = rows * plan.tiles[1] * ld;
  auto* const zeros = reinterpret_cast<float*>(scratch(static_cast<std::size_t>(ld) * sizeof(float), ScratchOwner::kConvTiles));
  std::memset(zeros, 0, static_cast<std::size_t>(ld) * sizeof(float));
  const Tiles<T> tiles(plan, group, row, row + 1, zeros);
  float* const target = plan.transformed + group * T::kPoints * step + row * plan.tiles[1] * ld;
  for (std::int64_t tile = 0; tile < plan.tiles[1]; ++tile) tiles.transform_input(tile, target + tile * ld, step);
}

/// Some tile rows by one block of columns, with the inputs that were transformed before: weights are transformed some channels at a
/// time, and read by all tiles while they are in the second-level cache.
template <class T>
inline void run_winograd_columns(const Plan& plan, std::int64_t task) {
  const Geometry& g = plan.convolution->geometry;
  constexpr auto kMostColumns = static_cast<std::int64_t>(kColumns), kMostPanels = kMostColumns / static_cast<std::int64_t>(kPanel);
  const std::int64_t first_column = task % plan.column_tasks * plan.task_columns, part = task / plan.column_tasks;
  const std::int64_t column_end = least(first_column + plan.task_columns, plan.group_filters);
  const std::int64_t group = part / plan.tile_row_tasks, tile_row = part % plan.tile_row_tasks * plan.task_tile_rows;
  const std::int64_t all_rows = g.batch * plan.tiles[0], ld = tile_row_floats(plan), step = all_rows * plan.tiles[1] * ld;
  const Tiles<T> tiles(plan, group, tile_row, least(tile_row + plan.task_tile_rows, all_rows), nullptr);
  const std::int64_t count = tiles.count(), panel = plan.block_channels * static_cast<std::int64_t>(kPanel);
  const std::int64_t weight_step = kMostPanels * panel + kRowPadding, weight_floats = T::kPoints * weight_step;
  auto* const weights = reinterpret_cast<float*>(scratch(
      static_cast<std::size_t>(weight_floats + T::kPoints * count * kMostColumns) * sizeof(float), ScratchOwner::kConvTiles));
  float* const products = weights + weight_floats;
  const float* const inputs = plan.transformed + group * T::kPoints * step + tile_row * plan.tiles[1] * ld;
  F doubt = V::set1(0.0f);
  for (std::int64_t column = first_column; column < column_end; column += kMostColumns) {
    const std::int64_t columns = least(kMostColumns, column_end - column);
    const std::int64_t panels = ceil_div(columns, static_cast<std::int64_t>(kPanel));
    const std::int64_t first_panel = group * plan.panels + column / static_cast<std::int64_t>(kPanel);
    for (std::int64_t channel = 0; channel < plan.group_channels; channel += plan.block_channels) {
      const std::int64_t channels = least(plan.block_channels, plan.group_channels - channel);
      for (std::int64_t i = 0; i < panels; ++i)
        transform_weights_of<T>(plan, first_panel + i, channel, channels, {weights + i * panel, weight_step});
      multiply_points({inputs + channel, ld, step, weights, panel, weight_step, channels, columns, products, channel > 0},
                      T::kPoints, count);
    }
    for (std::int64_t tile = 0; tile < count; ++tile)
      doubt = tiles.transform_output(tile, products + tile * kMostColumns, count * kMostColumns, column, columns, doubt);
  }
  tiles.finish(first_column, column_end, doubt);
}

}  // namespace
}  // namespace onnxopt::conv
