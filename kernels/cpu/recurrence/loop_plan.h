// What is known of a loop before its first step, or before one whose carried values have other dims than those before: types and
// shapes of its values, what views what, and how products and programs run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/cpu/elementwise/plan.h"
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

  std::int64_t elements() const;
  std::size_t bytes() const;
};

struct LoopPlan {
  std::vector<LoopValue> values;
  std::vector<elementwise::Plan> maps;  // in their order

  bool has_own_memory(std::size_t value) const { return values[value].root == value; }
};

/// Plans a loop, or brings its plan up to date after carried values have got other shapes. Empty, or what is wrong with its inputs.
std::string plan_loop(const LoopProblem& problem, LoopPlan& plan);

}  // namespace onnxopt::recurrence
