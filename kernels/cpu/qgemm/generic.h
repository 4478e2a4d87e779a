// The product of a block of rows with a block of columns: one template, instantiated once per instruction set.
#include "kernels/cpu/qgemm/micro.h"
#include "kernels/cpu/qgemm/qgemm.h"
#include "kernels/cpu/qgemm/quantize.h"
#include "kernels/cpu/scratch.h"

namespace onnxopt::qgemm {
namespace {

inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

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
  const std::int64_t rows = least(blocking.rows, together - row % together);
  const std::int64_t columns = least(blocking.columns, problem.columns - column);
  const auto groups =
      static_cast<std::size_t>((problem.depth + static_cast<std::int64_t>(kGroup) - 1) / static_cast<std::int64_t>(kGroup));
  float* c = problem.c ? problem.c + row * problem.columns + column : nullptr;
  std::int64_t ld = problem.columns;
  if (c == nullptr) {
    c = reinterpret_cast<float*>(scratch(static_cast<std::size_t>(rows * columns) * sizeof(float), ScratchOwner::kGemm));
    ld = columns;
  }
  const auto panel = static_cast<std::ptrdiff_t>(groups) * kPanelBytes;
  for (std::int64_t j = 0; j < columns; j += static_cast<std::int64_t>(kColumns)) {
    const std::int64_t first = column + j;
    const Columns b{problem.weights + first / static_cast<std::int64_t>(kPanel) * panel, panel};
    for (std::int64_t i = 0; i < rows; i += Dot::kRows) {
      const std::int64_t at = row + i;
      Target target{
          c + i * ld + j,      ld,           static_cast<std::size_t>(least(columns - j, static_cast<std::int64_t>(kColumns))),
          a.scales + at,       a.zeros + at, problem.weight_scales + first,
          problem.sums + first};
      target.bias = problem.bias ? problem.bias + first : nullptr;
      target.clip = problem.clip;
      target.added = problem.added ? problem.added + at * problem.columns + first : nullptr;
      target.added_ld = problem.columns;
      multiply(static_cast<int>(least(Dot::kRows, rows - i)), Strided{a.data + at * a.row_step, a.row_step}, 1, groups, b, target);
    }
  }
  const elementwise::RawBlock raw{c, ld};
  if (problem.epilogue) problem.epilogue->apply(row, rows, column, columns, {&raw, 1}, problem.bytes ? c : nullptr);
  if (problem.bytes == nullptr) return;
  const Quantization of_bytes{problem.bytes_scale, problem.bytes_zero, problem.bytes_lowest};
  for (std::int64_t i = 0; i < rows; ++i)
    quantize_exactly(c + i * ld, columns, of_bytes, problem.bytes + (row + i) * problem.columns + column);
}

}  // namespace ONNXOPT_VARIANT
}  // namespace onnxopt::qgemm
