// Loops that end by a condition of their own: a step of element-wise programs, products with constant matrices and reductions of
// whole tensors, run until the condition is false, without a graph around it.
//
// Values are numbered: the number of the iteration (an int64 scalar), carried ones, invariants, and then what the statements make,
// in their order. Of Newton's method with a step that is limited by its largest element, for example:
//
//     map 1 2 ! i0:f32 i1:f32 | t0=... | t0:f32; max 3 0; map 4 ! i0:f32 | t0=greater(i0,#...:f32) | t0:bool
//
// A statement is `map OPERANDS ! PROGRAM`, whose outputs have one shape; `product VALUE MATRIX`, with `BIAS` behind where there is
// one; or a reduction (max, min, sum, mean, l1, l2, squares) of all elements, `NAME VALUE KEEP`: a scalar, or with KEEP = 1 a
// tensor of as many dims.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/cpu/common.h"
#include "kernels/cpu/elementwise/elementwise.h"
#include "kernels/cpu/recurrence/recurrence.h"

namespace onnxopt::recurrence {

enum class Reduction : std::uint8_t { max, min, sum, mean, l1, l2, squares };

struct Statement {
  enum Kind : std::uint8_t { kMap, kProduct, kReduction } kind = kMap;
  std::vector<std::size_t> operands;  // of a map, its program's inputs; of a product, the value and perhaps the bias
  elementwise::Program program;
  std::size_t matrix = 0;
  Reduction reduction = Reduction::sum;
  bool keep_dims = false;
  std::size_t first = 0, results = 1;  // the numbers of what it makes
};

struct LoopStep {
  std::size_t carried = 0, invariants = 0, matrices = 0;
  std::vector<Statement> statements;
  std::vector<std::size_t> next;     // of each carried value, what it is in the next step
  std::vector<std::size_t> stacked;  // values of each step that are kept
  std::optional<std::size_t> keep;   // the condition, a bool of one element; without one the limit alone ends the loop
  std::size_t values = 0;

  std::size_t outer() const { return 1 + carried + invariants; }
};

/// Reads a step, whose members but `statements` and `values` are given, or says what is wrong with it.
Result<LoopStep> parse_loop(std::string_view text, LoopStep step);

/// A tensor that a loop reads.
struct LoopInput {
  elementwise::DType type;
  elementwise::Shape shape;
  const void* data;
};

/// Packed: [ceil(columns / 16), depth, 16].
struct Matrix {
  const float* panels;
  std::int64_t depth, columns;
};

/// A tensor that a loop made.
struct LoopOutput {
  elementwise::DType type;
  elementwise::Shape shape;
  std::vector<std::byte> bytes;
};

/// One run: at most `limit` steps, none where `begin` is false.
struct LoopProblem {
  const LoopStep* step;
  std::int64_t limit;
  bool begin;
  std::span<const LoopInput> carried, invariants;
  std::span<const Matrix> matrices;
};

/// The carried values after the last step, then the stacked ones, as long as there were steps. The results do not depend on how
/// `parallel_for` spreads the work.
Result<std::vector<LoopOutput>> run_loop(const LoopProblem& problem, const Variant& variant,
                                         const elementwise::Variant& elementwise, const ParallelFor& parallel_for);

}  // namespace onnxopt::recurrence
