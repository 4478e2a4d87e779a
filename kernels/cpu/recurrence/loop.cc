#include "kernels/cpu/recurrence/loop.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "kernels/cpu/elementwise/plan.h"
#include "kernels/cpu/recurrence/statement.h"
#include "kernels/cpu/recurrence/text.h"
#include "kernels/cpu/scratch.h"

namespace onnxopt::recurrence {

namespace {

using elementwise::DType;
using elementwise::Shape;

/// Multiplications of a product from which on threads share its columns.
constexpr std::int64_t kSharedProduct = 1 << 18;
constexpr std::int64_t kShareColumns = 64;

}  // namespace

Result<LoopStep> parse_loop(std::string_view text, LoopStep step) {
  using Made = Result<LoopStep>;
  step.values = step.outer();
  for (const std::string_view one : split(text, ';')) {
    Result<Statement> statement = read_statement(one, step.values, step.matrices);
    if (!statement) return Made::failure(statement.error());
    statement->first = step.values;
    step.values += statement->results;
    step.statements.push_back(std::move(*statement));
  }
  if (step.next.size() != step.carried)
    return Made::failure("Its attribute 'next' has " + std::to_string(step.next.size()) + " numbers for " +
                         std::to_string(step.carried) + " carried values.");
  std::vector<std::size_t> named = step.next;
  named.insert(named.end(), step.stacked.begin(), step.stacked.end());
  if (step.keep) named.push_back(*step.keep);
  for (const std::size_t value : named)
    if (value >= step.values) return Made::failure("Its step has no value " + std::to_string(value) + ".");
  return step;
}

namespace {

std::int64_t elements_of(const Shape& shape) {
  std::int64_t elements = 1;
  for (const std::int64_t dim : shape) elements *= dim;
  return elements;
}

/// A product whose columns threads share.
struct Multiplication {
  const Variant* variant;
  const Matrix* matrix;
  const float *x, *bias;
  float* y;
  std::int64_t rows;

  void columns(std::int64_t begin, std::int64_t end) const {
    variant->multiply(x, rows, matrix->depth, matrix->panels + begin * matrix->depth, bias ? bias + begin : nullptr, end - begin,
                      y + begin, matrix->columns);
  }

  static void share(void* user, std::size_t index) {
    const auto& self = *static_cast<const Multiplication*>(user);
    const std::int64_t begin = static_cast<std::int64_t>(index) * kShareColumns;
    self.columns(begin, std::min(begin + kShareColumns, self.matrix->columns));
  }
};

/// Stacks of matrices whose blocks threads share. A product of one stack member is [rows, depth] by [depth, columns].
struct StackedMultiplication {
  static constexpr std::int64_t kRows = 16, kColumns = 256;

  const Variant* variant;
  const float *left, *right;
  float* y;
  std::int64_t rows, depth, columns, row_blocks, column_blocks;
  const std::vector<std::int64_t>*left_at, *right_at;  // of each member of the stack, where its operands are

  void block(std::int64_t member, std::int64_t i, std::int64_t some_rows, std::int64_t j, std::int64_t some_columns) const {
    const auto at = static_cast<std::size_t>(member);
    variant->multiply_plain(left + (*left_at)[at] + i * depth, some_rows, depth, right + (*right_at)[at] + j, columns, some_columns,
                            y + (member * rows + i) * columns + j);
  }

  static void share(void* user, std::size_t index) {
    const auto& self = *static_cast<const StackedMultiplication*>(user);
    const auto number = static_cast<std::int64_t>(index);
    const std::int64_t i = number / self.column_blocks % self.row_blocks * kRows, j = number % self.column_blocks * kColumns;
    self.block(number / self.column_blocks / self.row_blocks, i, std::min(kRows, self.rows - i), j,
               std::min(kColumns, self.columns - j));
  }
};

/// A product of matrices, or of stacks of them, as one of shapes that do not change.
struct MatmulPlan {
  Shape shape;
  std::int64_t rows = 0, depth = 0, columns = 0;
  std::vector<std::int64_t> left_at, right_at;
};

/// Where the members of a stack of `dims` lie in an operand whose own stack is broadcast to it.
std::vector<std::int64_t> places(const Shape& dims, const Shape& own, std::int64_t size) {
  const View view = *view_of(Move::kExpand, own, dims);
  std::vector<std::int64_t> found(1, 0);
  for (std::size_t axis = 0; axis < dims.size(); ++axis) {
    std::vector<std::int64_t> next;
    for (const std::int64_t place : found)
      for (std::int64_t i = 0; i < dims[axis]; ++i) next.push_back(place + i * view.steps[axis] * size);
    found = std::move(next);
  }
  return found;
}

/// Vectors are matrices of one row, or one column, whose dim is left out of the result.
std::optional<MatmulPlan> plan_matmul(Shape left, Shape right) {
  if (left.empty() || right.empty()) return std::nullopt;
  const bool row = left.size() == 1, column = right.size() == 1;
  if (row) left.insert(left.begin(), 1);
  if (column) right.push_back(1);
  const std::int64_t rows = left[left.size() - 2], depth = left.back(), columns = right.back();
  if (right[right.size() - 2] != depth) return std::nullopt;
  left.resize(left.size() - 2);
  right.resize(right.size() - 2);
  const Result<View> stack = view_of(Move::kExpand, left, right);
  if (!stack) return std::nullopt;
  MatmulPlan plan{
      stack->shape, rows, depth, columns, places(stack->shape, left, rows * depth), places(stack->shape, right, depth * columns)};
  if (!row) plan.shape.push_back(rows);
  if (!column) plan.shape.push_back(columns);
  return plan;
}

class Runner {
 public:
  Runner(const LoopProblem& problem, const Variants& variants, const ParallelFor& parallel_for)
      : problem_(problem),
        step_(*problem.step),
        variant_(*variants.recurrence),
        elementwise_(*variants.elementwise),
        norm_(*variants.norm),
        parallel_for_(parallel_for) {}

  /// Finds types, shapes and memory; empty, or a sentence.
  std::string prepare() {
    note(DType::i64, {}, &iteration_);
    for (const LoopInput& one : problem_.carried) note(one.type, one.shape, one.data);
    for (const LoopInput& one : problem_.invariants) note(one.type, one.shape, one.data);
    for (const Statement& statement : step_.statements)
      if (std::string sentence = infer(statement); !sentence.empty()) return sentence;
    for (std::size_t i = 0; i < step_.carried; ++i)
      if (types_[step_.next[i]] != types_[1 + i] || shapes_[step_.next[i]] != shapes_[1 + i])
        return "Carried value " + std::to_string(i) + " is of the shape " + elementwise::text_of(shapes_[1 + i]) +
               " and becomes another type or one of the shape " + elementwise::text_of(shapes_[step_.next[i]]) + ".";
    if (step_.keep && (types_[*step_.keep] != DType::boolean || elements_of(shapes_[*step_.keep]) != 1))
      return "Its condition is no bool of one element.";
    place();
    return make_plans();
  }

  Result<std::vector<LoopOutput>> run() {
    std::vector<LoopOutput> made;
    for (std::size_t i = 0; i < step_.carried; ++i) made.push_back({types_[1 + i], shapes_[1 + i], {}});
    for (const std::size_t value : step_.stacked) made.push_back({types_[value], shapes_[value], {}});
    bool keep = problem_.begin;
    for (iteration_ = 0; keep && iteration_ < problem_.limit; ++iteration_) {
      if (std::string sentence = run_step(); !sentence.empty())
        return Result<std::vector<LoopOutput>>::failure(std::move(sentence));
      for (std::size_t i = 0; i < step_.stacked.size(); ++i) append(made[step_.carried + i], step_.stacked[i]);
      if (step_.keep) keep = *reinterpret_cast<const std::uint8_t*>(at_[*step_.keep]) != 0;
      carry_on();
    }
    for (std::size_t i = 0; i < step_.carried; ++i) append(made[i], 1 + i);
    for (std::size_t i = 0; i < step_.stacked.size(); ++i) {
      Shape& shape = made[step_.carried + i].shape;
      shape.insert(shape.begin(), iteration_);
    }
    return made;
  }

 private:
  /// `root` is the value whose memory this one is; where it has its own, itself. `whole` is an operand, around the axes of its
  /// statement.
  void note(DType type, Shape shape, const void* data, std::optional<std::size_t> root = std::nullopt, const Along& whole = {}) {
    alongs_.push_back(whole);
    roots_.push_back(root.value_or(types_.size()));
    types_.push_back(type);
    shapes_.push_back(std::move(shape));
    at_.push_back(static_cast<const char*>(data));
    views_.emplace_back();
    matmuls_.emplace_back();
  }

  const Shape& shape_of(const Statement& statement, std::size_t operand) const { return shapes_[statement.operands[operand]]; }

  std::string infer(const Statement& statement) {
    switch (statement.kind) {
      case Statement::kMap: return infer_map(statement);
      case Statement::kView: return infer_view(statement);
      case Statement::kConcat: return infer_concat(statement);
      case Statement::kGather: return infer_gather(statement);
      case Statement::kScatter: return infer_scatter(statement);
      case Statement::kReduction: return infer_reduced(statement);
      case Statement::kElement: return infer_element(statement);
      default: break;
    }
    for (const std::size_t value : statement.operands)
      if (types_[value] != DType::f32) return "Value " + std::to_string(value) + " should be float.";
    switch (statement.kind) {
      case Statement::kProduct: return infer_product(statement);
      case Statement::kMatmul: return infer_matmul(statement);
      case Statement::kNormalize: return infer_normalized(statement);
      case Statement::kSorted: return infer_sorted(statement);
      default: return infer_reduced(statement);
    }
  }

  std::string infer_product(const Statement& statement) {
    Shape shape = shape_of(statement, 0);
    const Matrix& matrix = problem_.matrices[statement.matrix];
    if (shape.empty() || shape.back() != matrix.depth)
      return "Value " + std::to_string(statement.operands[0]) + " of the shape " + elementwise::text_of(shape) +
             " cannot be multiplied with a matrix of " + std::to_string(matrix.depth) + " rows.";
    if (statement.operands.size() > 1 && shape_of(statement, 1) != Shape{matrix.columns})
      return "Its bias has the shape " + elementwise::text_of(shape_of(statement, 1)) + " and should have [" +
             std::to_string(matrix.columns) + "].";
    shape.back() = matrix.columns;
    note(DType::f32, std::move(shape), nullptr);
    return "";
  }

  std::string infer_matmul(const Statement& statement) {
    std::optional<MatmulPlan> plan = plan_matmul(shape_of(statement, 0), shape_of(statement, 1));
    if (!plan)
      return "Values of the shapes " + elementwise::text_of(shape_of(statement, 0)) + " and " +
             elementwise::text_of(shape_of(statement, 1)) + " cannot be multiplied.";
    note(DType::f32, plan->shape, nullptr);
    matmuls_.back() = std::move(*plan);
    return "";
  }

  std::string wrong_axes(const Statement& statement) const {
    return "A tensor of the shape " + elementwise::text_of(shape_of(statement, 0)) + " does not have the axes that its step names.";
  }

  std::string infer_reduced(const Statement& statement) {
    Shape shape = shape_of(statement, 0);
    std::size_t begin = 0, end = 0;
    if (!find_axes(statement.numbers, shape.size(), begin, end)) return wrong_axes(statement);
    const DType type = types_[statement.operands[0]];
    const bool argument = statement.kind == Statement::kArgument;
    const Along whole = along(shape, begin, end);
    if (!is_reduced(type, statement.reduction))
      return "Value " + std::to_string(statement.operands[0]) + " is of a type that is not reduced so.";
    if (argument && whole.middle == 0) return "It asks for the largest of no elements.";
    const auto first = shape.begin() + static_cast<std::ptrdiff_t>(begin), last = shape.begin() + static_cast<std::ptrdiff_t>(end);
    if (statement.keep_dims)
      std::fill(first, last, 1);
    else
      shape.erase(first, last);
    note(argument ? DType::i64 : type, std::move(shape), nullptr, std::nullopt, whole);
    return "";
  }

  static bool is_reduced(DType type, Reduction kind) {
    const bool simple = kind == Reduction::max || kind == Reduction::min || kind == Reduction::sum || kind == Reduction::prod;
    return type == DType::f32 || (simple && (type == DType::i32 || type == DType::i64));
  }

  std::string infer_sorted(const Statement& statement) {
    Shape shape = shape_of(statement, 0);
    std::size_t axis = 0, end = 0;
    if (!find_axes(statement.numbers, shape.size(), axis, end) || end != axis + 1) return wrong_axes(statement);
    if (statement.count > shape[axis]) return "It asks for more of the largest elements than there are.";
    const Along whole = along(shape, axis, end);
    shape[axis] = statement.count;
    note(statement.places ? DType::i64 : DType::f32, std::move(shape), nullptr, std::nullopt, whole);
    return "";
  }

  std::string infer_scatter(const Statement& statement) {
    const Shape data = shape_of(statement, 0), indices = shape_of(statement, 1), updates = shape_of(statement, 2);
    const std::size_t value = statement.operands[0];
    if (types_[statement.operands[1]] != DType::i64 || types_[statement.operands[2]] != types_[value])
      return "Its indices or updates are of another type.";
    const bool deep = !indices.empty() && indices.back() >= 0 && indices.back() <= static_cast<std::int64_t>(data.size());
    Shape wanted;
    if (deep) {
      wanted.assign(indices.begin(), indices.end() - 1);
      wanted.insert(wanted.end(), data.begin() + indices.back(), data.end());
    }
    if (!deep || wanted != updates) return "Updates of the shape " + elementwise::text_of(updates) + " do not fit their indices.";
    note(types_[value], data, nullptr);
    return "";
  }

  std::string infer_normalized(const Statement& statement) {
    const Shape& shape = shape_of(statement, 0);
    std::size_t begin = 0, end = 0;
    if (!find_axes(statement.numbers, shape.size(), begin, end)) return wrong_axes(statement);
    const auto first = shape.begin() + static_cast<std::ptrdiff_t>(begin);
    for (std::size_t i = 1; i < statement.operands.size(); ++i)
      if (shape_of(statement, i) != Shape(first, shape.end()))
        return "Its scale or bias has the shape " + elementwise::text_of(shape_of(statement, i)) +
               " and should have that of a row.";
    note(DType::f32, Shape(shape), nullptr, std::nullopt, along(shape, begin, end));
    return "";
  }

  std::string infer_view(const Statement& statement) {
    const std::size_t value = statement.operands[0];
    std::vector<std::int64_t> numbers = statement.numbers;
    if (statement.operands.size() > 1) {
      const std::size_t given = statement.operands[1];
      const bool outside = given > step_.carried && given < step_.outer();
      if (!outside || types_[given] != DType::i64 || shapes_[given].size() != 1)
        return "A shape of its step is no list of numbers from outside.";
      const auto* const data = reinterpret_cast<const std::int64_t*>(at_[given]);
      numbers.assign(data, data + shapes_[given][0]);
    }
    Result<View> view = view_of(statement.move, shapes_[value], numbers);
    if (!view) return view.error();
    note(types_[value], view->shape, nullptr, view->is_dense() ? std::optional(roots_[value]) : std::nullopt);
    views_.back() = std::move(*view);
    return "";
  }

  std::string infer_concat(const Statement& statement) {
    Shape shape = shape_of(statement, 0);
    std::size_t axis = 0, end = 0;
    if (!find_axes(statement.numbers, shape.size(), axis, end) || end != axis + 1) return wrong_axes(statement);
    for (std::size_t i = 1; i < statement.operands.size(); ++i) {
      Shape other = shape_of(statement, i);
      if (other.size() != shape.size() || types_[statement.operands[i]] != types_[statement.operands[0]])
        return "It concatenates tensors that do not fit.";
      const std::int64_t size = other[axis];
      other[axis] = shape[axis];
      if (other != shape) return "It concatenates tensors that do not fit.";
      shape[axis] += size;
    }
    const Along whole = along(shape, axis, end);
    note(types_[statement.operands[0]], std::move(shape), nullptr, std::nullopt, whole);
    return "";
  }

  std::string infer_gather(const Statement& statement) {
    const Shape& data = shape_of(statement, 0);
    const Shape& indices = shape_of(statement, 1);
    std::size_t axis = 0, end = 0;
    if (!find_axes(statement.numbers, data.size(), axis, end) || end != axis + 1) return wrong_axes(statement);
    if (types_[statement.operands[1]] != DType::i64) return "Value " + std::to_string(statement.operands[1]) + " should be int64.";
    Shape shape(data.begin(), data.begin() + static_cast<std::ptrdiff_t>(axis));
    shape.insert(shape.end(), indices.begin(), indices.end());
    shape.insert(shape.end(), data.begin() + static_cast<std::ptrdiff_t>(end), data.end());
    const Along whole = along(data, axis, end);
    const bool part = whole.outer == 1 && elements_of(indices) == 1;
    note(types_[statement.operands[0]], std::move(shape), nullptr,
         part ? std::optional(roots_[statement.operands[0]]) : std::nullopt, whole);
    return "";
  }

  std::string infer_element(const Statement& statement) {
    Shape shape = shape_of(statement, 0);
    std::size_t axis = 0, end = 0;
    if (!find_axes(statement.numbers, shape.size(), axis, end) || end != axis + 1) return wrong_axes(statement);
    if (problem_.limit > shape[axis])
      return "A sequence of the shape " + elementwise::text_of(shape) + " is shorter than its limit.";
    const Along whole = along(shape, axis, end);
    const bool part = whole.outer == 1;
    shape.erase(shape.begin() + static_cast<std::ptrdiff_t>(axis));
    note(types_[statement.operands[0]], std::move(shape), nullptr,
         part ? std::optional(roots_[statement.operands[0]]) : std::nullopt, whole);
    return "";
  }

  std::string infer_map(const Statement& statement) {
    for (std::size_t i = 0; i < statement.operands.size(); ++i)
      if (types_[statement.operands[i]] != statement.program.inputs()[i])
        return "Value " + std::to_string(statement.operands[i]) + " should be " +
               std::string(elementwise::name_of(statement.program.inputs()[i])) + ".";
    const Result<std::vector<Shape>> made = elementwise::output_shapes(statement.program, shapes_of(statement));
    if (!made) return made.error();
    for (std::size_t i = 0; i < made->size(); ++i) {
      if ((*made)[i] != (*made)[0]) return "A program of its step makes outputs of several shapes.";
      note(statement.program.outputs()[i], (*made)[i], nullptr);
    }
    return "";
  }

  std::vector<std::span<const std::int64_t>> shapes_of(const Statement& statement) const {
    std::vector<std::span<const std::int64_t>> shapes;
    for (const std::size_t value : statement.operands) shapes.emplace_back(shapes_[value]);
    return shapes;
  }

  std::size_t bytes_of(std::size_t value) const {
    return static_cast<std::size_t>(elements_of(shapes_[value])) * elementwise::size_of(types_[value]);
  }

  /// Memory of computed values and of carried ones that are copied, twice: for this step and for the one before.
  void place() {
    constexpr std::size_t kLine = 64;
    std::size_t bytes = 0;
    offsets_.assign(step_.values, 0);
    const auto is_own = [&](std::size_t value) {
      return value >= step_.outer() ? has_own_memory(value) : value > 0 && value <= step_.carried;
    };
    for (std::size_t value = 0; value < step_.values; ++value) {
      if (!is_own(value)) continue;
      offsets_[value] = bytes;
      bytes += (bytes_of(value) + kLine - 1) / kLine * kLine;
    }
    half_ = bytes;
    memory_ = scratch(2 * bytes + kLine, ScratchOwner::kRecurrence);
  }

  char* own(std::size_t value) const { return memory_ + (iteration_ & 1 ? half_ : 0) + offsets_[value]; }

  std::string make_plans() {
    for (const Statement& statement : step_.statements) {
      if (statement.kind != Statement::kMap) continue;
      const auto shapes = shapes_of(statement);
      const std::vector<const void*> inputs(shapes.size(), nullptr);
      const std::vector<void*> targets(statement.results, nullptr);
      const std::vector<Shape> made(statement.results, shapes_[statement.first]);
      const Result<bool> planned = elementwise::for_each_plan(statement.program, {inputs, shapes, targets, made},
                                                              [&](const elementwise::Plan& plan) -> Result<bool> {
                                                                plans_.push_back(plan);
                                                                return true;
                                                              });
      if (!planned) return planned.error();
    }
    return "";
  }

  std::string run_step() {
    std::size_t plan = 0;
    for (const Statement& statement : step_.statements) {
      for (std::size_t i = 0; i < statement.results; ++i) at_[statement.first + i] = own(statement.first + i);
      switch (statement.kind) {
        case Statement::kMap: run_map(statement, plans_[plan++]); break;
        case Statement::kProduct: multiply(statement); break;
        case Statement::kMatmul: multiply_stacks(statement); break;
        case Statement::kSorted: sort(statement); break;
        case Statement::kScatter:
          if (!scatter_into(statement)) return outside(statement);
          break;
        case Statement::kReduction: reduce_any(statement); break;
        case Statement::kArgument:
          find_extreme(statement.largest, floats(statement, 0), alongs_[statement.first],
                       reinterpret_cast<std::int64_t*>(own(statement.first)));
          break;
        case Statement::kNormalize: normalize(statement); break;
        case Statement::kView: move(statement); break;
        case Statement::kConcat: concatenate(statement); break;
        case Statement::kElement: take({&iteration_, 1}, statement); break;
        case Statement::kGather: {
          const auto* const indices = reinterpret_cast<const std::int64_t*>(at_[statement.operands[1]]);
          if (!take({indices, static_cast<std::size_t>(elements_of(shape_of(statement, 1)))}, statement)) return outside(statement);
        }
      }
    }
    return "";
  }

  const float* floats(const Statement& statement, std::size_t operand) const {
    return reinterpret_cast<const float*>(at_[statement.operands[operand]]);
  }
  float* own_floats(const Statement& statement) const { return reinterpret_cast<float*>(own(statement.first)); }

  std::string outside(const Statement& statement) const {
    return "An index of its step lies outside of a tensor of the shape " + elementwise::text_of(shape_of(statement, 0)) + ".";
  }

  void reduce_any(const Statement& statement) const {
    const DType type = types_[statement.first];
    if (type == DType::f32)
      reduce(statement.reduction, floats(statement, 0), alongs_[statement.first], own_floats(statement));
    else
      reduce_integers(statement.reduction, type == DType::i64, at_[statement.operands[0]], alongs_[statement.first],
                      own(statement.first));
  }

  void sort(const Statement& statement) const {
    char* const to = own(statement.first);
    find_sorted(statement.largest, statement.count, floats(statement, 0), alongs_[statement.first],
                statement.places ? nullptr : reinterpret_cast<float*>(to),
                statement.places ? reinterpret_cast<std::int64_t*>(to) : nullptr);
  }

  bool scatter_into(const Statement& statement) const {
    const Shape& shape = shape_of(statement, 0);
    const Shape& indices = shape_of(statement, 1);
    const auto depth = static_cast<std::size_t>(indices.back());
    const std::size_t bytes = bytes_of(statement.first);
    if (bytes > 0) std::memcpy(own(statement.first), at_[statement.operands[0]], bytes);
    const auto part = static_cast<std::size_t>(along(shape, 0, depth).inner) * elementwise::size_of(types_[statement.first]);
    if (depth == 0) {
      // Each update is the whole tensor: the last one stays.
      const std::int64_t updates =
          elements_of(indices) == 0 && indices.size() > 1 ? along(indices, 0, indices.size() - 1).middle : 1;
      if (updates > 0 && part > 0)
        std::memcpy(own(statement.first), at_[statement.operands[2]] + static_cast<std::size_t>(updates - 1) * part, part);
      return true;
    }
    const auto* const data = reinterpret_cast<const std::int64_t*>(at_[statement.operands[1]]);
    return scatter(shape, {data, static_cast<std::size_t>(elements_of(indices))}, depth, at_[statement.operands[2]], part,
                   own(statement.first));
  }

  bool has_own_memory(std::size_t value) const { return roots_[value] == value; }

  void move(const Statement& statement) {
    const View& view = *views_[statement.first];
    const char* const from = at_[statement.operands[0]];
    const std::size_t size = elementwise::size_of(types_[statement.first]);
    if (has_own_memory(statement.first))
      copy_view(from, view, size, own(statement.first));
    else
      at_[statement.first] = from + view.first * static_cast<std::int64_t>(size);
  }

  void concatenate(const Statement& statement) const {
    const auto outer = static_cast<std::size_t>(alongs_[statement.first].outer);
    char* to = own(statement.first);
    for (std::size_t i = 0; i < outer; ++i)
      for (const std::size_t value : statement.operands) {
        const std::size_t bytes = bytes_of(value) / outer;
        if (bytes > 0) std::memcpy(to, at_[value] + i * bytes, bytes);
        to += bytes;
      }
  }

  /// Elements of a tensor along an axis; a single one that lies in one piece is not copied. False where an index lies outside.
  bool take(std::span<const std::int64_t> indices, const Statement& statement) {
    const Along& whole = alongs_[statement.first];
    const std::size_t bytes = static_cast<std::size_t>(whole.inner) * elementwise::size_of(types_[statement.first]);
    const std::int64_t last = problem_.limit - 1 - (indices.empty() ? 0 : indices[0]);
    if (statement.reverse) indices = {&last, 1};
    if (has_own_memory(statement.first)) return gather(at_[statement.operands[0]], whole, indices, bytes, own(statement.first));
    const std::int64_t place = indices[0] < 0 ? indices[0] + whole.middle : indices[0];
    if (place < 0 || place >= whole.middle) return false;
    at_[statement.first] = at_[statement.operands[0]] + static_cast<std::size_t>(place) * bytes;
    return true;
  }

  void normalize(const Statement& statement) const {
    const Along& whole = alongs_[statement.first];
    norm::Problem problem;
    problem.kind = statement.norm;
    problem.rows = whole.outer * whole.inner;
    problem.width = whole.middle;
    problem.inner = whole.inner;
    problem.line = whole.inner == 1 ? whole.middle : whole.inner;
    problem.epsilon = statement.epsilon;
    problem.x = floats(statement, 0);
    problem.y = own_floats(statement);
    if (statement.operands.size() > 1) problem.affine.scale = floats(statement, 1);
    if (statement.operands.size() > 2) problem.affine.bias = floats(statement, 2);
    if (problem.rows > 0 && problem.width > 0) norm::run(problem, norm_, parallel_for_);
  }

  void multiply_stacks(const Statement& statement) const {
    const MatmulPlan& plan = *matmuls_[statement.first];
    const auto members = static_cast<std::int64_t>(plan.left_at.size());
    const auto blocks = [](std::int64_t size, std::int64_t block) { return (size + block - 1) / block; };
    const StackedMultiplication job{&variant_,
                                    floats(statement, 0),
                                    floats(statement, 1),
                                    own_floats(statement),
                                    plan.rows,
                                    plan.depth,
                                    plan.columns,
                                    blocks(plan.rows, StackedMultiplication::kRows),
                                    blocks(plan.columns, StackedMultiplication::kColumns),
                                    &plan.left_at,
                                    &plan.right_at};
    if (members * plan.rows * plan.columns == 0) return;
    if (members * plan.rows * plan.depth * plan.columns < kSharedProduct)
      for (std::int64_t member = 0; member < members; ++member) job.block(member, 0, plan.rows, 0, plan.columns);
    else
      parallel_for_(static_cast<std::size_t>(members * job.row_blocks * job.column_blocks), StackedMultiplication::share,
                    const_cast<StackedMultiplication*>(&job));
  }

  void run_map(const Statement& statement, elementwise::Plan& plan) const {
    for (std::size_t i = 0; i < statement.operands.size(); ++i) plan.inputs[i].data = at_[statement.operands[i]];
    for (std::size_t i = 0; i < statement.results; ++i) plan.outputs[i].data = own(statement.first + i);
    elementwise::run_plan(plan, elementwise_, parallel_for_);
  }

  void multiply(const Statement& statement) const {
    const Matrix& matrix = problem_.matrices[statement.matrix];
    const std::int64_t elements = elements_of(shapes_[statement.operands[0]]);
    if (elements == 0 || matrix.columns == 0) return;
    Multiplication job{&variant_,
                       &matrix,
                       floats(statement, 0),
                       statement.operands.size() > 1 ? floats(statement, 1) : nullptr,
                       own_floats(statement),
                       elements / matrix.depth};
    if (elements * matrix.columns < kSharedProduct)
      job.columns(0, matrix.columns);
    else
      parallel_for_(static_cast<std::size_t>((matrix.columns + kShareColumns - 1) / kShareColumns), Multiplication::share, &job);
  }

  /// What the next step finds as carried values. What no statement made, or what views such a value, is copied, all before any is
  /// seen: they may be swapped.
  void carry_on() {
    next_.clear();
    for (std::size_t i = 0; i < step_.carried; ++i) {
      const std::size_t value = step_.next[i];
      const bool copied = roots_[value] < step_.outer();
      if (copied && bytes_of(value) > 0) std::memcpy(own(1 + i), at_[value], bytes_of(value));
      next_.push_back(copied ? own(1 + i) : at_[value]);
    }
    std::copy(next_.begin(), next_.end(), at_.begin() + 1);
  }

  void append(LoopOutput& output, std::size_t value) const {
    const auto* data = reinterpret_cast<const std::byte*>(at_[value]);
    output.bytes.insert(output.bytes.end(), data, data + bytes_of(value));
  }

  const LoopProblem& problem_;
  const LoopStep& step_;
  const Variant& variant_;
  const elementwise::Variant& elementwise_;
  const norm::Variant& norm_;
  const ParallelFor& parallel_for_;
  std::int64_t iteration_ = 0;
  std::vector<DType> types_;  // of each value
  std::vector<Shape> shapes_;
  std::vector<const char*> at_, next_;
  std::vector<std::size_t> roots_;
  std::vector<Along> alongs_;
  std::vector<std::optional<View>> views_;  // of what moves make
  std::vector<std::optional<MatmulPlan>> matmuls_;
  std::vector<std::size_t> offsets_;
  std::vector<elementwise::Plan> plans_;  // of the maps, in their order
  std::size_t half_ = 0;
  char* memory_ = nullptr;
};

}  // namespace

Result<Variants> variants_of(std::string_view name) {
  const auto find = [](auto list, auto fits) {
    const auto found = std::find_if(list.begin(), list.end(), fits);
    return found == list.end() ? nullptr : &*found;
  };
  Variants made;
  made.recurrence = find(variants(), [&](const auto& one) { return name == one.name; });
  if (!made.recurrence) return Result<Variants>::failure("There is no variant '" + std::string(name) + "'.");
  const std::string_view isa = made.recurrence->isa;
  made.elementwise = find(elementwise::variants(), [&](const auto& one) { return isa == one.isa; });
  made.norm = find(norm::variants(), [&](const auto& one) { return isa == one.isa; });
  if (!made.elementwise || !made.norm)
    return Result<Variants>::failure("There are no element-wise kernels and norms for " + std::string(isa) + ".");
  return made;
}

Result<std::vector<LoopOutput>> run_loop(const LoopProblem& problem, const Variants& variants, const ParallelFor& parallel_for) {
  Runner runner(problem, variants, parallel_for);
  if (const std::string sentence = runner.prepare(); !sentence.empty()) return Result<std::vector<LoopOutput>>::failure(sentence);
  return runner.run();
}

}  // namespace onnxopt::recurrence
