// How products of matrices are cut into the blocks of their tasks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/rounding.h"

namespace onnxopt::gemm {
namespace {

/// Where a block of the result begins.
struct Block {
  std::int64_t row, column;
};

/// The blocks of a result, in an order in which neighbours share columns, whose weights are then still in a cache.
template <class Blocking>
struct Blocks {
  Blocking blocking;
  /// Rows that an epilogue takes together, which no block crosses, and the blocks that they are.
  std::int64_t rows_together, blocks_together;
  std::int64_t row_blocks, column_blocks;

  std::size_t count() const { return static_cast<std::size_t>(row_blocks * column_blocks); }

  Block at(std::size_t index) const {
    const auto task = static_cast<std::int64_t>(index);
    const std::int64_t block = task % row_blocks;
    return {block / blocks_together * rows_together + block % blocks_together * blocking.rows,
            task / row_blocks * blocking.columns};
  }
};

/// Cuts the result of a problem that has rows and columns; its blocks are at most as large as `blocking` says.
template <class Problem, class Blocking>
Blocks<Blocking> blocks_of(const Problem& problem, Blocking blocking) {
  const std::int64_t together = problem.epilogue ? problem.epilogue->rows_together() : problem.rows;
  blocking.rows = std::min(blocking.rows, together);
  const std::int64_t blocks_together = ceil_div(together, blocking.rows);
  return {blocking, together, blocks_together, problem.rows / together * blocks_together,
          ceil_div(problem.columns, blocking.columns)};
}

}  // namespace
}  // namespace onnxopt::gemm
