// The product of a block of rows with a block of columns: one template, instantiated once per instruction set.
#include "kernels/cpu/gemm/gemm.h"
#include "kernels/cpu/gemm/micro.h"
#include "kernels/cpu/gemm/stream.h"
#include "kernels/cpu/scratch.h"

namespace onnxopt::gemm {
namespace {

/// Results that are still in the first-level cache when the epilogue takes them, and rows of them that the weights are read for at
/// least.
constexpr std::int64_t kFinished = 6 << 10, kLeastFinished = 2 * kRows;

std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

/// A block of C, and the rows and columns of it.
struct Block {
  std::int64_t row, rows, column, columns;
};

/// The integers of a product from a column on, the first one of a panel.
Integers integers_of(const Problem& problem, const Product& product, std::int64_t column) {
  const std::int64_t index = column / static_cast<std::int64_t>(kPanel);
  const std::int64_t row_bytes = problem.kind == Weights::kInt4 ? Int4::kRowBytes : Int8::kRowBytes;
  const std::int64_t panel = problem.depth * row_bytes;
  const std::int64_t scales = (problem.depth + problem.block - 1) / problem.block * static_cast<std::int64_t>(kPanel);
  return {static_cast<const std::uint8_t*>(product.weights) + index * panel, panel, product.scales + index * scales, scales,
          problem.block};
}

/// One product of few rows with integers, into memory whose rows are `ld` apart.
void stream_block(const Problem& problem, const Product& product, const Block& block, float* c, std::int64_t ld) {
  const Integers b = integers_of(problem, product, block.column);
  for (std::int64_t i = 0; i < block.rows; i += kStreamedRows) {
    const std::int64_t row = block.row + i;
    Target target{c + i * ld, ld, static_cast<std::size_t>(block.columns)};
    target.bias = product.bias ? product.bias + block.column : nullptr;
    target.clip = product.c ? problem.clip : nullptr;
    target.added = problem.added ? problem.added + row * problem.columns + block.column : nullptr;
    target.added_ld = problem.columns;
    const auto stream_rows = problem.kind == Weights::kInt4 ? stream<Int4> : stream<Int8>;
    stream_rows(static_cast<int>(least(kStreamedRows, block.rows - i)), {problem.a + row * problem.row_step, problem.row_step},
                problem.depth, b, target);
  }
}

/// Some rows of B, of up to `kColumns` columns. Integers become floats in memory of the calling thread.
Columns columns_of(const Problem& problem, const Product& product, std::int64_t begin, std::int64_t depth, std::int64_t column,
                   std::int64_t columns) {
  constexpr auto kWidth = static_cast<std::int64_t>(kPanel);
  if (problem.kind == Weights::kFloat) {
    const std::int64_t panel = problem.depth * kWidth;
    return {static_cast<const float*>(product.weights) + column / kWidth * panel + begin * kWidth, kWidth, panel};
  }
  const std::size_t bytes = static_cast<std::size_t>(depth) * kColumns * sizeof(float);
  auto* const floats = reinterpret_cast<float*>(scratch(bytes, ScratchOwner::kGemmWeights));
  const int panels = static_cast<int>((least(columns, static_cast<std::int64_t>(kColumns)) + kWidth - 1) / kWidth);
  const auto unpack_rows = problem.kind == Weights::kInt4 ? unpack<Int4> : unpack<Int8>;
  unpack_rows(integers_of(problem, product, column), begin, depth, panels, floats);
  return {floats, kWidth, depth * kWidth};
}

/// One product of a block, into memory whose rows are `ld` apart.
void multiply_block(const Problem& problem, const Product& product, const Blocking& blocking, const Block& block, float* c,
                    std::int64_t ld) {
  if (blocking.streamed) return stream_block(problem, product, block, c, ld);
  const bool few = block.rows <= kFewRows && problem.kind == Weights::kFloat;
  std::int64_t begin = 0;
  do {
    const std::int64_t depth = least(blocking.depth, problem.depth - begin);
    const bool last = begin + depth == problem.depth;
    for (std::int64_t j = 0, step = 0; j < block.columns; j += step) {
      const std::int64_t column = block.column + j, left = block.columns - j;
      const bool wide = few && left >= static_cast<std::int64_t>(kWideColumns);
      step = static_cast<std::int64_t>(wide ? kWideColumns : kColumns);
      const Columns b = columns_of(problem, product, begin, depth, column, left);
      for (std::int64_t i = 0; i < block.rows; i += kRows) {
        const Strided a{problem.a + (block.row + i) * problem.row_step + begin, problem.row_step};
        Target target{c + i * ld + j, ld, static_cast<std::size_t>(least(left, step))};
        target.bias = product.bias && begin == 0 ? product.bias + column : nullptr;
        target.accumulate = begin > 0;
        target.clip = last && product.c ? problem.clip : nullptr;
        target.added = last && problem.added ? problem.added + (block.row + i) * problem.columns + column : nullptr;
        target.added_ld = problem.columns;
        if (wide)
          multiply_few(static_cast<int>(block.rows), a, 1, static_cast<std::size_t>(depth), b, target);
        else
          multiply(static_cast<int>(least(kRows, block.rows - i)), a, 1, static_cast<std::size_t>(depth), b, target);
      }
    }
    begin += depth;
  } while (begin < problem.depth);
}

/// Computes a block whose results the epilogue takes.
void finish_block(const Problem& problem, const Blocking& blocking, const Block& block) {
  elementwise::RawBlock raw[kMostProducts];
  std::size_t held = 0;
  for (std::size_t i = 0; i < problem.product_count; ++i) held += problem.products[i].c == nullptr;
  const std::int64_t size = block.rows * block.columns;
  auto* memory =
      held == 0 ? nullptr
                : reinterpret_cast<float*>(scratch(held * static_cast<std::size_t>(size) * sizeof(float), ScratchOwner::kGemm));
  for (std::size_t i = 0; i < problem.product_count; ++i) {
    const Product& product = problem.products[i];
    float* const c = product.c ? product.c + block.row * problem.columns + block.column : memory;
    raw[i] = {c, product.c ? problem.columns : block.columns};
    multiply_block(problem, product, blocking, block, c, raw[i].row_step);
    if (product.c == nullptr) memory += size;
  }
  problem.epilogue->apply(block.row, block.rows, block.column, block.columns, {raw, problem.product_count});
}

}  // namespace

namespace ONNXOPT_VARIANT {

void run(const Problem& problem, const Blocking& blocking, std::int64_t row, std::int64_t column) {
  const std::int64_t columns = least(blocking.columns, problem.columns - column);
  if (problem.epilogue == nullptr) {
    const Block block{row, least(blocking.rows, problem.rows - row), column, columns};
    for (std::size_t i = 0; i < problem.product_count; ++i) {
      const Product& product = problem.products[i];
      multiply_block(problem, product, blocking, block, product.c + row * problem.columns + column, problem.columns);
    }
    return;
  }
  // Rows that the epilogue takes together may end before the block does.
  const std::int64_t together = problem.epilogue->rows_together();
  const std::int64_t end = row + least(blocking.rows, together - row % together);
  const std::int64_t fit = kFinished / columns / kRows * kRows;
  const std::int64_t step = fit < kLeastFinished ? kLeastFinished : fit;
  for (; row < end; row += step) finish_block(problem, blocking, {row, least(step, end - row), column, columns});
}

}  // namespace ONNXOPT_VARIANT
}  // namespace onnxopt::gemm
