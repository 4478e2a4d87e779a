// The product of a block of rows with a block of columns: one template, instantiated once per instruction set.
#include "kernels/cpu/qgemm/micro.h"
#include "kernels/cpu/qgemm/qgemm.h"
#include "kernels/cpu/qgemm/quantize.h"
#include "kernels/cpu/scratch.h"

namespace onnxopt::qgemm {
namespace {

/// Results that stay in the second-level cache until they are finished, and rows of them that the weights are read for at least.
constexpr std::int64_t kFinished = 16 << 10, kLeastFinished = 48;

inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

/// Multiplies rows by columns, into C or a block of the caller's, one row right after the other.
void multiply_block(const Problem& problem, const Operand& a, std::int64_t row, std::int64_t rows, std::int64_t column,
                    std::int64_t columns, float* to) {
  constexpr auto kTogether = static_cast<std::int64_t>(kColumns);
  const auto groups =
      static_cast<std::size_t>((problem.depth + static_cast<std::int64_t>(kGroup) - 1) / static_cast<std::int64_t>(kGroup));
  const auto panel = static_cast<std::ptrdiff_t>(groups) * kPanelBytes;
  float* const c = to ? to : problem.c + row * problem.columns + column;
  const std::int64_t ld = to ? columns : problem.columns;
  const std::int64_t blocks = (rows + Dot::kRows - 1) / Dot::kRows;  // of nearly as many rows each
  for (std::int64_t j = 0; j < columns; j += kTogether) {
    const std::int64_t first = column + j;
    const Columns b{problem.weights + first / static_cast<std::int64_t>(kPanel) * panel, panel};
    for (std::int64_t block = 0; block < blocks; ++block) {
      const std::int64_t i = rows * block / blocks, end = rows * (block + 1) / blocks, at = row + i - a.first;
      Target target{c + i * ld + j,      ld,           static_cast<std::size_t>(least(columns - j, kTogether)),
                    a.scales + at,       a.zeros + at, problem.weight_scales + first,
                    problem.sums + first};
      target.bias = problem.bias ? problem.bias + first : nullptr;
      target.clip = problem.clip;
      target.gelu = problem.gelu;
      target.added = problem.added ? problem.added + (row + i) * problem.columns + first : nullptr;
      target.added_ld = problem.columns;
      if (first + kTogether < problem.columns) b.fetch_next(block, blocks);
      multiply(static_cast<int>(end - i), Strided{a.data + at * a.row_step, a.row_step}, 1, groups, b, target);
    }
  }
}

/// Multiplies, and makes of the results what the epilogue says, and bytes of that.
void finish(const Problem& problem, const Operand& a, std::int64_t row, std::int64_t rows, std::int64_t column,
            std::int64_t columns) {
  float* block = nullptr;
  if (problem.c == nullptr)
    block = reinterpret_cast<float*>(scratch(static_cast<std::size_t>(rows * columns) * sizeof(float), ScratchOwner::kGemm));
  multiply_block(problem, a, row, rows, column, columns, block);
  const elementwise::RawBlock raw{block ? block : problem.c + row * problem.columns + column, block ? columns : problem.columns};
  if (problem.epilogue) problem.epilogue->apply(row, rows, column, columns, {&raw, 1}, problem.bytes ? block : nullptr);
  if (problem.bytes == nullptr) return;
  const Quantization of_bytes{problem.bytes_scale, problem.bytes_zero, problem.bytes_lowest};
  for (std::int64_t i = 0; i < rows; ++i)
    quantize_exactly(raw.data + i * raw.row_step, columns, of_bytes, problem.bytes + (row + i) * problem.columns + column);
}

}  // namespace

namespace ONNXOPT_VARIANT {

void quantize(const Problem& problem, std::int64_t row, std::uint8_t* to, float* scale, std::int32_t* zero) {
  const std::int64_t first = row * problem.depth;
  *scale = problem.scale;
  *zero = problem.zero;
  if (problem.source == Source::kUint8 || problem.source == Source::kInt8) {
    const std::uint8_t flip = problem.source == Source::kInt8 ? 0x80 : 0;
    const auto* const from = static_cast<const std::uint8_t*>(problem.a) + first;
    const std::int64_t count = problem.depth;  // held here: what is written are bytes, which might be the problem's own
    for (std::int64_t i = 0; i < count; ++i) to[i] = from[i] ^ flip;
    return;
  }
  const auto* const from = static_cast<const float*>(problem.a) + first;
  if (problem.source == Source::kFloatRows) {
    const Quantization own = quantization_of(from, problem.depth);
    *scale = own.scale;
    *zero = own.zero;
  }
  quantize_floats(from, problem.depth, {*scale, *zero}, to);
}

std::int64_t occupy(std::int64_t rounds) { return Dot::occupy(rounds); }

void run(const Problem& problem, const Operand& a, const Blocking& blocking, std::int64_t row, std::int64_t column) {
  // Rows that the epilogue takes together may end before the block does.
  const std::int64_t together = problem.epilogue ? problem.epilogue->rows_together() : problem.rows;
  const std::int64_t end = row + least(blocking.rows, together - row % together);
  const std::int64_t columns = least(blocking.columns, problem.columns - column);
  if (problem.epilogue == nullptr && problem.bytes == nullptr)
    return multiply_block(problem, a, row, end - row, column, columns, nullptr);
  const std::int64_t most = kFinished / columns / Dot::kRows * Dot::kRows;
  const std::int64_t step = most < kLeastFinished ? kLeastFinished : most;
  for (; row < end; row += step) finish(problem, a, row, least(step, end - row), column, columns);
}

}  // namespace ONNXOPT_VARIANT
}  // namespace onnxopt::qgemm
