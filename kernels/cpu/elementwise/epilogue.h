// A program that runs on the results of another kernel, block by block, while they are in the cache.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/cpu/elementwise/elementwise.h"

namespace onnxopt::elementwise {

/// Where a block of raw results lies: rows at a distance.
struct RawBlock {
  const float* data;
  std::int64_t row_step;
};

/// A program over the tensors of one run. Its first inputs are raw results, all of one shape, which never lie in memory as a whole;
/// the outputs have that shape too. Blocks are parts of rows of the last dim.
class Epilogue {
 public:
  /// `arguments` has all inputs; the data of the first `raw` ones are not read. A sentence says what does not fit.
  static Result<Epilogue> make(const Program& program, const Variant& variant, std::size_t raw, const Arguments& arguments);

  /// A block must not cross a multiple of this number of rows.
  std::int64_t rows_together() const { return rows_together_; }

  /// Computes the outputs' rows [row, row + rows), columns [column, column + columns), of which `blocks` has the raw results.
  /// Given `into`, the first output goes there instead, one row right after the other.
  void apply(std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns, std::span<const RawBlock> blocks,
             void* into = nullptr) const;

 private:
  /// How an input is read along rows: by steps over the leading dims, the last of which are walked through as one.
  struct Walk {
    std::vector<std::int64_t> outer;  // per outer dim
    std::int64_t row = 0, column = 0;
  };

  std::int64_t offset_of(const Walk& walk, std::int64_t row, std::int64_t column) const;

  const Variant* variant_ = nullptr;
  std::shared_ptr<const void> plan_;  // a Plan without dims
  std::size_t raw_ = 0;
  std::int64_t width_ = 1, rows_together_ = 1;
  std::vector<std::int64_t> outer_dims_;
  std::vector<Walk> walks_;
};

}  // namespace onnxopt::elementwise
