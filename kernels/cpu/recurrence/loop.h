// Loops that no other kernel takes: a step of element-wise programs, products, reductions and moves of elements, run until the
// limit is reached or the condition is false, without a graph around it.
//
// Values are numbered: the number of the iteration (an int64 scalar), carried ones, invariants, and then what the statements make,
// in their order. Of Newton's method with a step that is limited by its largest element, for example:
//
//     map 1 2 ! i0:f32 i1:f32 | t0=... | t0:f32; max 3 0; map 4 ! i0:f32 | t0=greater(i0,#...:f32) | t0:bool
//
// A statement is `map OPERANDS ! PROGRAM`, whose outputs have one shape, or a name, values, and the numbers that say what is done:
//
//     product VALUE MATRIX [BIAS]      a product with a constant matrix
//     matmul LEFT RIGHT                a product of matrices, or of stacks of them
//     max|min|sum|mean|l1|l2|squares|prod|logsumexp VALUE KEEP AXES
//                                      a reduction along neighbouring axes (none: all), which stay as dims of 1 where KEEP is 1
//     argmax|argmin VALUE KEEP AXIS    where the first of the largest, or least, elements is
//     topk|topkplace VALUE COUNT AXIS LARGEST   the largest (or least) elements in their order, or where they are
//     softmax|logsoftmax VALUE AXIS
//     layer VALUE AXIS EPSILON [SCALE [BIAS]]   a normalization of rows along the last axis
//     reshape VALUE DIMS, squeeze VALUE AXES, unsqueeze VALUE AXES, transpose VALUE PERMUTATION, slice VALUE AXIS START END STEP
//     reshape_as VALUE SHAPE, expand_as VALUE SHAPE   to what a value from outside says
//     slice_at VALUE AXIS START END STEP   a slice whose bounds are values, of one int64 each
//     conv DIMS GROUP STRIDES DILATIONS PADS VALUE WEIGHTS [BIAS]   a convolution of images of one or two DIMS, channels first
//     concat AXIS VALUES
//     gather VALUE AXIS INDICES
//     scatter VALUE INDICES UPDATES    a copy with parts replaced, as ScatterND says
//     element VALUE AXIS REVERSE       what belongs to the iteration, in a sequence as long as the limit
//
// What only views a value copies nothing where the elements lie one after the other. Where the dims of a carried value change, as
// those of a cache that a step appends to, the next step is planned anew. What bounds of slices are made of runs before the rest of
// a step, so that it can be planned for slices of another size as well; nothing that changes its dims may be among it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/cpu/common.h"
#include "kernels/cpu/elementwise/elementwise.h"
#include "kernels/cpu/norm/norm.h"
#include "kernels/cpu/recurrence/recurrence.h"
#include "kernels/cpu/recurrence/tensors.h"

namespace onnxopt::recurrence {

struct Statement {
  enum Kind : std::uint8_t {
    kMap,
    kProduct,
    kMatmul,
    kReduction,
    kArgument,
    kSorted,
    kNormalize,
    kView,
    kSlice,
    kConvolution,
    kConcat,
    kGather,
    kScatter,
    kElement
  };

  Kind kind = kMap;
  std::vector<std::size_t> operands;  // values, in the order of the text
  elementwise::Program program;       // of a map
  std::size_t matrix = 0;             // of a product
  Reduction reduction = Reduction::sum;
  norm::Kind norm = norm::Kind::kSoftmax;
  Move move = Move::kReshape;
  bool largest = false, keep_dims = false, reverse = false, places = false;
  bool early = false;      // bounds of a slice are made of what it makes
  std::int64_t count = 0;  // of the largest elements
  float epsilon = 0.0f;
  std::vector<std::int64_t> numbers;   // axes, dims or bounds, in the order of the text
  std::size_t first = 0, results = 1;  // the numbers of what it makes
};

struct LoopStep {
  std::size_t carried = 0, invariants = 0, matrices = 0;
  std::vector<Statement> statements;
  std::vector<std::size_t> next;     // of each carried value, what it is in the next step
  std::vector<std::size_t> stacked;  // values of each step that are kept
  std::vector<std::size_t> growing;  // the carried values whose dims may change from step to step
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

/// The kernels of one instruction set that a step is made of.
struct Variants {
  const Variant* recurrence = nullptr;
  const elementwise::Variant* elementwise = nullptr;
  const norm::Variant* norm = nullptr;
};

/// Those around the recurrence variant of that name, or a sentence.
Result<Variants> variants_of(std::string_view name);

/// The carried values after the last step, then the stacked ones, as long as there were steps. The results do not depend on how
/// `parallel_for` spreads the work.
Result<std::vector<LoopOutput>> run_loop(const LoopProblem& problem, const Variants& variants, const ParallelFor& parallel_for);

}  // namespace onnxopt::recurrence
