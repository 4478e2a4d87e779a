// How a convolution is cut into tasks: plain data that the kernels read. It is made in plan.cc, which is compiled for the baseline,
// and depends on the sizes alone, never on the number of threads.
#pragma once

#include <cstdint>

#include "kernels/cpu/conv/conv.h"

namespace onnxopt::conv {

/// Winograd's F(4, 3) and F(2, 5) along an axis: 6 inputs give so many outputs by 6 products. An axis whose kernel is 1 is left as
/// it is.
constexpr std::int64_t tile_inputs(std::int64_t kernel) { return kernel == 1 ? 1 : 6; }
constexpr std::int64_t tile_outputs(std::int64_t kernel) { return tile_inputs(kernel) - kernel + 1; }

/// Products of a tile.
constexpr std::int64_t tile_points(const Geometry& g) { return tile_inputs(g.kernel[0]) * tile_inputs(g.kernel[1]); }

/// Floats that a row of a Winograd block is longer than its channels are, and the weights of a point than they are: powers of two
/// would fall into few sets of the cache.
constexpr std::int64_t kRowPadding = 16;

/// Columns that products compute together, at most.
constexpr auto kColumnStep = 2 * static_cast<std::int64_t>(gemm::kPanel);

/// A range of rows (pixels) by a range of columns (filters of a group).
struct Rectangle {
  std::int64_t row, row_end, column, column_end;
};

struct Plan {
  const Convolution* convolution;
  std::int64_t group_channels, group_filters, panels;  // of a group
  std::int64_t rows_together;                          // no call of the epilogue crosses a multiple of this

  // Products: tasks are numbered by group, rows, columns, the last fastest.
  bool plain;  // every row of the product is a row of x
  std::int64_t task_rows, row_tasks, task_columns, column_tasks;
  std::int64_t block_rows;  // rows whose operands and results stay in the cache
  std::int64_t block_taps;  // taps whose weights do

  // Winograd: tasks are numbered by group, image, tile rows, columns. What is smaller, inputs or weights, is transformed before.
  std::int64_t tiles[2];    // of an image
  std::int64_t line_parts;  // where a tile has one line, rows of tiles may be parts of it: the last part may end early
  bool inputs_first;        // then the tile rows of all images are numbered in one
  std::int64_t task_tile_rows, tile_row_tasks, block_tiles;
  std::int64_t block_channels;  // whose weights are transformed and used, then the next ones
  std::int64_t transformed_floats;
  float* transformed;  // weights [points, groups, panels, channels of a group, 16], or inputs [groups, points, tiles, channels]

  // Depthwise convolutions and those of few channels or of groups of them: a task is some lines of the output; of depthwise ones
  // some channels of them, and of groups some groups, which are numbered fastest. Windows of so many pixels and channels stay in
  // the first-level cache from line to line.
  std::int64_t task_lines, task_channels, task_groups, strip_pixels, strip_channels;
};

/// Tasks are some lines of the output each.
struct SeparablePlan {
  Plan depthwise, pointwise;
  std::int64_t task_lines;
};

/// Tasks are bands of lines of an image by parts of the expanded channels. Parts have sums of their own, which are joined.
struct InvertedResidualPlan {
  Plan expand, depthwise, project;
  std::int64_t bands, parts;
  // What goes through all three together: channels, by columns and lines of the output.
  std::int64_t group_channels, strip_columns, step_lines;
  std::int64_t kept_lines, kept_columns;  // of expanded channels, which stay in the cache
  float* sums;                            // of all parts but the first [parts - 1, pixels, filters]
  std::int64_t joined_rows;               // of a task that adds them
};

/// Pixels times the gates of their image. Tasks are some pixels of an image each.
struct ScalePlan {
  Plan scaled;
  const float* gates;            // [batch, pixels_together, channels]
  std::int64_t pixels_together;  // whose channels are whole vectors
  std::int64_t task_pixels, image_tasks;
  std::int64_t block_pixels;  // which are in the first-level cache while the epilogue runs on them
};

/// Lets the epilogue, if there is one, run on rows that lie in `block`, one right after the other, and writes its results there.
/// They are of the rectangle's columns alone.
void finish_in_place(const Plan& plan, const Rectangle& done, float* block);

/// Lets the epilogue, if there is one, run on results that are in y.
void finish(const Plan& plan, const Rectangle& done);

}  // namespace onnxopt::conv
