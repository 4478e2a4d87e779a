// What is known of a loop before its first step, or before one whose carried values have other dims than those before: types and
// shapes of its values, what views what, and how products and programs run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/cpu/elementwise/plan.h"
#include "kernels/cpu/recurrence/convolution.h"
#include "kernels/cpu/recurrence/loop.h"
#include "kernels/cpu/recurrence/tensors.h"

namespace onnxopt::recurrence {

/// A product of matrices, or of stacks of them, as one of shapes that do not change.
struct MatmulPlan {
  elementwise::Shape shape;
  std::int64_t rows = 0, depth = 0, columns = 0;
  std::vector<std::int64_t> left_at, right_at;
};

/// What is known of each value.
struct LoopValue {
  elementwise::DType type;
  elementwise::Shape shape;
  std::size_t root = 0;  // the value whose memory this one is; where it has its own, itself
  Along along;           // the operand of the statement that made it, around the axes that it names
  std::optional<View> view;
  std::optional<MatmulPlan> matmul;
  std::optional<Convolution> convolution;

  std::int64_t elements() const;
  std::size_t bytes() const;
};

/// Bounds of a slice as values gave them.
struct Bounds {
  std::int64_t start = 0, end = 0;
  bool operator==(const Bounds&) const = default;
};

struct LoopPlan {
  std::vector<LoopValue> values;
  std::vector<elementwise::Plan> maps;  // in their order
  std::vector<Bounds> bounds;           // of slices whose bounds are values, in their order
  bool is_whole = false;                // whether more than the early statements is planned

  bool has_own_memory(std::size_t value) const { return values[value].root == value; }
};

/// Plans the statements that bounds of slices are made of, once and for all. Empty, or what is wrong with the loop's inputs.
std::string plan_early(const LoopProblem& problem, LoopPlan& plan);

/// Plans the others, or brings their plan up to date after carried values have got other shapes, or slices other bounds. A slice of
/// a loop that does not run is as long as its bounds say.
std::string plan_loop(const LoopProblem& problem, LoopPlan& plan, bool runs);

/// What a statement with these bounds shows of a tensor of that shape, or what is wrong with it.
Result<View> view_of_slice(const Statement& statement, const elementwise::Shape& shape, const Bounds& bounds);

}  // namespace onnxopt::recurrence
