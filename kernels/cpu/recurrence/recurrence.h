// Recurrences: a step over carried values and elements of sequences, run for all elements without a graph around it.
//
// A step has phases. Each multiplies carried or computed values with constant matrices, and then runs an element-wise program over
// carried values, elements, invariants and products. Values are numbered: carried ones, sequences, invariants, and then for each
// phase its products and the program's outputs. The text of a step, of a gated update of two products for example:
//
//     0@0 0@1 ! 1 2 3 4 ! i0:f32 i1:f32 i2:f32 i3:f32 | ... | t5:f32
//
// value 0 (carried) times matrices 0 and 1 makes values 3 and 4, and the program reads 1 2 3 4. `0@1+2` adds the invariant 2 to
// each row. Phases are parted by ';'.
//
// Stacked values may be summed over the last dim: a step of one phase without products then runs in blocks of as many rows as a
// vector has lanes (blocks.h), so that a sum adds whole vectors and values of a row are read as they lie.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/cpu/common.h"
#include "kernels/cpu/elementwise/elementwise.h"

namespace onnxopt::recurrence {

/// Value `value` times matrix `matrix`, plus the invariant `bias` of the columns where that is a value.
struct Product {
  static constexpr std::size_t kNoBias = static_cast<std::size_t>(-1);
  std::size_t value, matrix, bias = kNoBias;
};

struct Phase {
  std::vector<Product> products;
  std::vector<std::size_t> operands;  // the values that the program's inputs are
  elementwise::Program program;
  std::size_t first;  // number of the first product; the program's outputs come after the products
};

/// How many values of each kind there are, and which of them the next step and the outputs get.
struct Counts {
  std::size_t carried = 0, sequences = 0, invariants = 0, matrices = 0;
};

struct Step {
  Counts counts;
  std::vector<Phase> phases;
  std::vector<std::size_t> next;     // of each carried value, what it is in the next step
  std::vector<std::size_t> stacked;  // the values that are stacked
  std::vector<bool> summed;          // of each of those, whether it is summed over the last dim
  std::size_t values = 0;

  bool has_products = false, has_sums = false;

  std::size_t outer() const { return counts.carried + counts.sequences + counts.invariants; }
  bool is_computed(std::size_t value) const { return value >= outer(); }
};

/// Reads a step, or says what is wrong with it.
Result<Step> parse(std::string_view text, const Counts& counts, std::vector<std::size_t> next, std::vector<std::size_t> stacked,
                   std::vector<bool> summed = {});

/// A tensor whose first dim counts the steps.
struct Sequence {
  const char* data;
  std::int64_t bytes;  // of one element
  bool reverse = false;
};

/// One run. All carried values, computed values and products are float32 of the shape `domain`.
struct Problem {
  const Step* step;
  elementwise::Shape domain;
  std::int64_t steps;
  std::span<const float* const> initial;
  std::span<const Sequence> sequences;
  std::span<const void* const> invariants;
  std::span<const elementwise::Shape> shapes;  // of sequences' elements, then of invariants
  std::span<const float* const> matrices;      // packed: [ceil(W / 16), W, 16], W being the domain's last dim
  std::span<float* const> finals;
  std::span<const Sequence> stacked;  // written to
};

/// Rows of `depth` numbers times columns of a matrix in panels: whole ones but for the last, of which nothing is missing in memory.
struct PackedProduct {
  const float* x;
  std::int64_t rows, depth;
  const float* weights;
  std::int64_t step, panel;  // floats from one row to the next, and from one panel to the next
  const float* bias;         // of the columns; may be null
  std::int64_t columns;
  float* y;
  std::int64_t y_step;  // floats from one row to the next
};

/// A factor of the products of a gated update (gated.h), in blocks of as many rows as a vector has lanes.
struct Factor {
  enum Kind : std::uint8_t { kOne, kRows, kElements, kAll };

  Kind kind;                  // one number, a vector that all elements share, a number or a vector for each element
  const float* data;          // of the first block
  std::int64_t distance = 0;  // floats from one block to the next
};

struct Factors {
  static constexpr std::size_t kMost = 3;
  Factor list[kMost];
  int count = 0;
};

/// One step of a gated update. A block of the state has a vector for each of `width` elements, and one vector of sums.
struct GatedUpdate {
  std::int64_t blocks, width;
  Factors gate, update, read;
  bool exponential;
  const float* state;
  float *next, *sums;
};

/// One implementation, for one instruction set: columns of rows times a packed matrix, and what blocks of as many rows as a vector
/// has lanes are made of and reduced by.
struct Variant {
  const char* name;
  const char* isa;
  std::int64_t lanes;
  void (*multiply)(const PackedProduct& product);
  /// [rows, depth] times [depth, columns], whose rows lie `distance` apart, as those of the result do; neither is packed.
  void (*multiply_plain)(const float* x, std::int64_t rows, std::int64_t depth, const float* matrix, std::int64_t distance,
                         std::int64_t columns, float* y);
  /// e to the power of each number of x minus one of `less`, or minus the only one: not above 0. What would be no normal number is
  /// 0.
  void (*powers)(const float* x, const float* less, bool only, std::int64_t count, float* y);
  /// Each of `count` numbers as one vector.
  void (*spread)(const float* from, std::int64_t count, float* to);
  /// Adds `count` vectors, and `to` as well where there were `more` before, into `to`.
  void (*sum)(const float* vectors, std::int64_t distance, std::int64_t count, bool more, float* to);
  /// What the operations of the update one by one, and `sum`, give.
  void (*update_gated)(const GatedUpdate& update);
};

/// The variants that were built, best first; the portable one is last.
std::span<const Variant> variants();

/// Runs all steps. The results do not depend on how `parallel_for` spreads the work.
Result<bool> run(const Problem& problem, const Variant& variant, const elementwise::Variant& elementwise,
                 const ParallelFor& parallel_for);

}  // namespace onnxopt::recurrence
