#include "kernels/cpu/recurrence/loop_plan.h"

#include <algorithm>
#include <limits>
#include <span>

#include "kernels/cpu/sizes.h"

namespace onnxopt::recurrence {

namespace {

using elementwise::DType;
using elementwise::Shape;

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

/// A convolution of a tensor with weights, by the numbers of a statement; or what is wrong.
Result<Convolution> plan_convolution(const Shape& x, const Shape& weights, std::span<const std::int64_t> numbers) {
  using Made = Result<Convolution>;
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  const std::string shapes = "A tensor of the shape " + elementwise::text_of(x) +
                             " cannot be convolved with weights of the shape " + elementwise::text_of(weights) + ".";
  const std::size_t dims = numbers.size() / 4;
  const std::int64_t groups = numbers[0];
  if (x.size() != dims + 2 || weights.size() != dims + 2) return Made::failure(shapes);
  for (std::size_t i = 0; i < numbers.size(); ++i)
    if (numbers[i] < (i <= 2 * dims ? 1 : 0) || numbers[i] >= kMost)
      return Made::failure("A number of its convolution is too large or small.");
  if (x[1] % groups != 0 || weights[0] % groups != 0 || x[1] / groups != weights[1]) return Made::failure(shapes);
  Convolution made;
  made.batch = x[0];
  made.groups = groups;
  made.channels = x[1] / groups;
  made.filters = weights[0] / groups;
  for (std::size_t i = 0; i < dims; ++i) {
    // An image of one dim is one line.
    Window& window = made.windows[2 - dims + i];
    window = {x[2 + i], weights[2 + i], 0, numbers[1 + i], numbers[1 + dims + i], numbers[1 + 2 * dims + i]};
    const std::int64_t whole = window.size + window.padding + numbers[1 + 3 * dims + i];
    const std::int64_t reach = (window.kernel - 1) * window.dilation + 1;
    if (window.kernel < 1 || window.kernel >= kMost || whole < reach) return Made::failure(shapes);
    window.places = (whole - reach) / window.stride + 1;
  }
  return made;
}

/// Plans the statements that bounds are made of, or the others.
class Planner {
 public:
  Planner(const LoopProblem& problem, LoopPlan& plan, bool early, bool runs)
      : problem_(problem),
        step_(*problem.step),
        plan_(plan),
        early_(early),
        runs_(runs),
        is_first_(!plan.is_whole),
        changed_(step_.values, is_first_) {
    plan.values.resize(step_.values);
  }

  /// Empty, or a sentence.
  std::string plan() {
    note(DType::i64, {});
    for (const LoopInput& one : problem_.carried) note(one.type, one.shape);
    for (const LoopInput& one : problem_.invariants) note(one.type, one.shape);
    for (const Statement& statement : step_.statements) {
      next_ = statement.first;
      if (statement.kind == Statement::kSlice) slice_ += 1;
      if (!is_concerned(statement)) continue;
      if (std::string sentence = infer(statement); !sentence.empty()) return sentence;
      // It may be what somebody asks for at run time.
      if (const Shape& made = plan_.values[statement.first].shape; !is_countable(made))
        return "Value " + std::to_string(statement.first) + " of the shape " + elementwise::text_of(made) + " is too large.";
    }
    if (std::string sentence = early_ ? check_bounds() : check(); !sentence.empty()) return sentence;
    plan_.is_whole = !early_;
    return make_plans();
  }

 private:
  void note(DType type, Shape shape, std::optional<std::size_t> root = std::nullopt, const Along& along = {}) {
    const std::size_t value = next_++;
    LoopValue& known = plan_.values[value];
    const bool same = !is_first_ && known.shape == shape && known.root == root.value_or(value);
    changed_[value] = !same;
    known = {type, std::move(shape), root.value_or(value), along, {}, {}, {}};
  }

  /// The value that was noted last.
  LoopValue& noted() { return plan_.values[next_ - 1]; }

  /// Whether a statement reads anything that is not as it was in the plan before.
  bool is_concerned(const Statement& statement) const {
    if (statement.early != early_) return false;
    return is_first_ || statement.kind == Statement::kSlice ||
           std::any_of(statement.operands.begin(), statement.operands.end(), [&](std::size_t value) { return changed_[value]; });
  }

  DType type_of(const Statement& statement, std::size_t operand) const { return plan_.values[statement.operands[operand]].type; }

  const Shape& shape_of(const Statement& statement, std::size_t operand) const {
    return plan_.values[statement.operands[operand]].shape;
  }

  /// What a step makes of carried values and of its condition; empty, or a sentence.
  std::string check() const {
    for (std::size_t i = 0; i < step_.carried; ++i) {
      const LoopValue &before = plan_.values[1 + i], &after = plan_.values[step_.next[i]];
      const bool grows = std::find(step_.growing.begin(), step_.growing.end(), i) != step_.growing.end();
      if (after.type != before.type || (grows ? after.shape.size() != before.shape.size() : after.shape != before.shape))
        return "Carried value " + std::to_string(i) + " is of the shape " + elementwise::text_of(before.shape) +
               " and becomes another type or one of the shape " + elementwise::text_of(after.shape) + ".";
    }
    if (step_.keep && (plan_.values[*step_.keep].type != DType::boolean || plan_.values[*step_.keep].elements() != 1))
      return "Its condition is no bool of one element.";
    return "";
  }

  /// Before any is read.
  std::string check_bounds() const {
    for (const Statement& statement : step_.statements)
      for (std::size_t i = 1; statement.kind == Statement::kSlice && i < 3; ++i) {
        const LoopValue& bound = plan_.values[statement.operands[i]];
        if (bound.type != DType::i64 || bound.elements() != 1) return "A bound of a slice of its step is no int64 of one element.";
      }
    return "";
  }

  std::string infer(const Statement& statement) {
    switch (statement.kind) {
      case Statement::kSlice: return infer_slice(statement);
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
      if (plan_.values[value].type != DType::f32) return "Value " + std::to_string(value) + " should be float.";
    switch (statement.kind) {
      case Statement::kProduct: return infer_product(statement);
      case Statement::kMatmul: return infer_matmul(statement);
      case Statement::kConvolution: return infer_convolution(statement);
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
    note(DType::f32, std::move(shape));
    return "";
  }

  std::string infer_matmul(const Statement& statement) {
    std::optional<MatmulPlan> plan = plan_matmul(shape_of(statement, 0), shape_of(statement, 1));
    if (!plan)
      return "Values of the shapes " + elementwise::text_of(shape_of(statement, 0)) + " and " +
             elementwise::text_of(shape_of(statement, 1)) + " cannot be multiplied.";
    note(DType::f32, plan->shape);
    noted().matmul = std::move(*plan);
    return "";
  }

  std::string infer_convolution(const Statement& statement) {
    Result<Convolution> made = plan_convolution(shape_of(statement, 0), shape_of(statement, 1), statement.numbers);
    if (!made) return made.error();
    const std::int64_t filters = made->groups * made->filters;
    if (statement.operands.size() > 2 && shape_of(statement, 2) != Shape{filters})
      return "Its bias has the shape " + elementwise::text_of(shape_of(statement, 2)) + " and should have [" +
             std::to_string(filters) + "].";
    Shape shape{made->batch, filters};
    for (std::size_t i = 4 - shape_of(statement, 0).size(); i < 2; ++i) shape.push_back(made->windows[i].places);
    note(DType::f32, std::move(shape));
    noted().convolution = *made;
    return "";
  }

  std::string wrong_axes(const Statement& statement) const {
    return "A tensor of the shape " + elementwise::text_of(shape_of(statement, 0)) + " does not have the axes that its step names.";
  }

  std::string infer_reduced(const Statement& statement) {
    Shape shape = shape_of(statement, 0);
    std::size_t begin = 0, end = 0;
    if (!find_axes(statement.numbers, shape.size(), begin, end)) return wrong_axes(statement);
    const DType type = type_of(statement, 0);
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
    note(argument ? DType::i64 : type, std::move(shape), std::nullopt, whole);
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
    note(statement.places ? DType::i64 : DType::f32, std::move(shape), std::nullopt, whole);
    return "";
  }

  std::string infer_scatter(const Statement& statement) {
    const Shape data = shape_of(statement, 0), indices = shape_of(statement, 1), updates = shape_of(statement, 2);
    const std::size_t value = statement.operands[0];
    if (plan_.values[statement.operands[1]].type != DType::i64 ||
        plan_.values[statement.operands[2]].type != plan_.values[value].type)
      return "Its indices or updates are of another type.";
    const bool deep = !indices.empty() && indices.back() >= 1 && indices.back() <= static_cast<std::int64_t>(data.size());
    Shape wanted;
    if (deep) {
      wanted.assign(indices.begin(), indices.end() - 1);
      wanted.insert(wanted.end(), data.begin() + indices.back(), data.end());
    }
    if (!deep || wanted != updates) return "Updates of the shape " + elementwise::text_of(updates) + " do not fit their indices.";
    note(plan_.values[value].type, data);
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
    note(DType::f32, Shape(shape), std::nullopt, along(shape, begin, end));
    return "";
  }

  std::string infer_view(const Statement& statement) {
    const std::size_t value = statement.operands[0];
    std::vector<std::int64_t> numbers = statement.numbers;
    if (statement.operands.size() > 1) {
      const std::size_t given = statement.operands[1];
      const bool outside = given > step_.carried && given < step_.outer();
      if (!outside || plan_.values[given].type != DType::i64 || plan_.values[given].shape.size() != 1)
        return "A shape of its step is no list of numbers from outside.";
      const auto* const data = static_cast<const std::int64_t*>(problem_.invariants[given - 1 - step_.carried].data);
      numbers.assign(data, data + plan_.values[given].shape[0]);
    }
    Result<View> view = view_of(statement.move, plan_.values[value].shape, numbers);
    if (!view) return view.error();
    note(plan_.values[value].type, view->shape, view->is_dense() ? std::optional(plan_.values[value].root) : std::nullopt);
    noted().view = std::move(*view);
    return "";
  }

  std::string infer_slice(const Statement& statement) {
    const std::size_t value = statement.operands[0];
    const Bounds bounds = plan_.bounds[slice_ - 1];
    Result<View> view = view_of_slice(statement, plan_.values[value].shape, bounds);
    if (!view) return view.error();
    if (!runs_) {
      std::size_t axis = 0, end = 0;
      find_axes(std::span(statement.numbers).first(1), view->shape.size(), axis, end);
      view->shape[axis] = length_without_end(bounds, statement.numbers[1], view->shape[axis]);
    }
    note(plan_.values[value].type, view->shape, view->is_dense() ? std::optional(plan_.values[value].root) : std::nullopt);
    noted().view = std::move(*view);
    return "";
  }

  /// Of a tensor that does not end; one that is asked for to its end has what is there.
  static std::int64_t length_without_end(const Bounds& bounds, std::int64_t step, std::int64_t there) {
    constexpr std::int64_t kEnd = std::numeric_limits<std::int32_t>::max();
    if (step < 0 || bounds.start < 0 || bounds.end < bounds.start || bounds.end >= kEnd) return there;
    return (bounds.end - bounds.start + step - 1) / step;
  }

  std::string infer_concat(const Statement& statement) {
    Shape shape = shape_of(statement, 0);
    std::size_t axis = 0, end = 0;
    if (!find_axes(statement.numbers, shape.size(), axis, end) || end != axis + 1) return wrong_axes(statement);
    for (std::size_t i = 1; i < statement.operands.size(); ++i) {
      Shape other = shape_of(statement, i);
      if (other.size() != shape.size() || plan_.values[statement.operands[i]].type != type_of(statement, 0))
        return "It concatenates tensors that do not fit.";
      const std::int64_t size = other[axis];
      other[axis] = shape[axis];
      if (other != shape) return "It concatenates tensors that do not fit.";
      shape[axis] += size;
    }
    const Along whole = along(shape, axis, end);
    note(type_of(statement, 0), std::move(shape), std::nullopt, whole);
    return "";
  }

  std::string infer_gather(const Statement& statement) {
    const Shape& data = shape_of(statement, 0);
    const Shape& indices = shape_of(statement, 1);
    std::size_t axis = 0, end = 0;
    if (!find_axes(statement.numbers, data.size(), axis, end) || end != axis + 1) return wrong_axes(statement);
    if (plan_.values[statement.operands[1]].type != DType::i64)
      return "Value " + std::to_string(statement.operands[1]) + " should be int64.";
    Shape shape(data.begin(), data.begin() + static_cast<std::ptrdiff_t>(axis));
    shape.insert(shape.end(), indices.begin(), indices.end());
    shape.insert(shape.end(), data.begin() + static_cast<std::ptrdiff_t>(end), data.end());
    const Along whole = along(data, axis, end);
    const bool part = whole.outer == 1 && plan_.values[statement.operands[1]].elements() == 1;
    note(type_of(statement, 0), std::move(shape), part ? std::optional(plan_.values[statement.operands[0]].root) : std::nullopt,
         whole);
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
    note(type_of(statement, 0), std::move(shape), part ? std::optional(plan_.values[statement.operands[0]].root) : std::nullopt,
         whole);
    return "";
  }

  std::string infer_map(const Statement& statement) {
    for (std::size_t i = 0; i < statement.operands.size(); ++i)
      if (plan_.values[statement.operands[i]].type != statement.program.inputs()[i])
        return "Value " + std::to_string(statement.operands[i]) + " should be " +
               std::string(elementwise::name_of(statement.program.inputs()[i])) + ".";
    const Result<std::vector<Shape>> made = elementwise::output_shapes(statement.program, shapes_of(statement));
    if (!made) return made.error();
    for (std::size_t i = 0; i < made->size(); ++i) {
      if ((*made)[i] != (*made)[0]) return "A program of its step makes outputs of several shapes.";
      note(statement.program.outputs()[i], (*made)[i]);
    }
    return "";
  }

  std::vector<std::span<const std::int64_t>> shapes_of(const Statement& statement) const {
    std::vector<std::span<const std::int64_t>> shapes;
    for (const std::size_t value : statement.operands) shapes.emplace_back(plan_.values[value].shape);
    return shapes;
  }

  std::string make_plans() {
    std::size_t map = 0;
    for (const Statement& statement : step_.statements) {
      if (statement.kind != Statement::kMap) continue;
      const std::size_t number = map++;
      if (plan_.maps.size() < map) plan_.maps.emplace_back();
      if (!is_concerned(statement)) continue;
      const auto shapes = shapes_of(statement);
      const std::vector<const void*> inputs(shapes.size());
      const std::vector<void*> targets(statement.results);
      const std::vector<Shape> made(statement.results, plan_.values[statement.first].shape);
      const Result<bool> planned = elementwise::for_each_plan(statement.program, {inputs, shapes, targets, made},
                                                              [&](const elementwise::Plan& plan) -> Result<bool> {
                                                                plan_.maps[number] = plan;
                                                                return true;
                                                              });
      if (!planned) return planned.error();
    }
    return "";
  }

  const LoopProblem& problem_;
  const LoopStep& step_;
  LoopPlan& plan_;
  const bool early_, runs_;
  const bool is_first_;
  std::vector<bool> changed_;  // of each value, whether its shape or place is not as it was
  std::size_t next_ = 0;       // the value that is noted next
  std::size_t slice_ = 0;      // how many slices with bounds that are values have come
};

}  // namespace

std::int64_t LoopValue::elements() const {
  std::int64_t elements = 1;
  for (const std::int64_t dim : shape) elements *= dim;
  return elements;
}

std::size_t LoopValue::bytes() const { return static_cast<std::size_t>(elements()) * elementwise::size_of(type); }

std::string plan_early(const LoopProblem& problem, LoopPlan& plan) { return Planner(problem, plan, true, true).plan(); }

std::string plan_loop(const LoopProblem& problem, LoopPlan& plan, bool runs) { return Planner(problem, plan, false, runs).plan(); }

Result<View> view_of_slice(const Statement& statement, const Shape& shape, const Bounds& bounds) {
  const std::int64_t numbers[] = {statement.numbers[0], bounds.start, bounds.end, statement.numbers[1]};
  return view_of(Move::kSlice, shape, numbers);
}

}  // namespace onnxopt::recurrence
