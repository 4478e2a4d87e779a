#include "kernels/cpu/recurrence/loop.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "kernels/cpu/elementwise/plan.h"
#include "kernels/cpu/recurrence/text.h"
#include "kernels/cpu/scratch.h"

namespace onnxopt::recurrence {

namespace {

using elementwise::DType;
using elementwise::Shape;

constexpr std::array<std::string_view, 7> kReductions = {"max", "min", "sum", "mean", "l1", "l2", "squares"};
/// Multiplications of a product from which on threads share its columns.
constexpr std::int64_t kSharedProduct = 1 << 18;
constexpr std::int64_t kShareColumns = 64;
/// Partial sums of a reduction, the same whatever the vectors.
constexpr std::size_t kSums = 8;

// --- the text ------------------------------------------------------------------------------------------------------
/// The words of a text.
std::vector<std::string_view> words(std::string_view text) {
  std::vector<std::string_view> found = split(text, ' ');
  std::erase(found, std::string_view());
  return found;
}

bool read_map(std::string_view text, std::size_t known, Statement& statement, std::string& sentence) {
  const std::size_t mark = text.find('!');
  if (mark == text.npos) return false;
  for (const std::string_view word : words(text.substr(0, mark))) {
    std::size_t value = 0;
    if (word == "map") continue;
    if (!read_number(word, known, value)) return false;
    statement.operands.push_back(value);
  }
  Result<elementwise::Program> program = elementwise::Program::parse(text.substr(mark + 1));
  if (!program) {
    sentence = "Its step: " + program.error();
    return false;
  }
  statement.program = std::move(*program);
  statement.results = statement.program.outputs().size();
  return statement.program.inputs().size() == statement.operands.size();
}

bool read_product(const std::vector<std::string_view>& parts, std::size_t known, std::size_t matrices, Statement& statement) {
  std::size_t value = 0, bias = 0;
  if (parts.size() < 3 || parts.size() > 4 || !read_number(parts[1], known, value)) return false;
  statement.kind = Statement::kProduct;
  statement.operands = {value};
  if (!read_number(parts[2], matrices, statement.matrix)) return false;
  if (parts.size() == 3) return true;
  statement.operands.push_back(bias);
  return read_number(parts[3], known, statement.operands[1]);
}

bool read_reduction(const std::vector<std::string_view>& parts, std::size_t known, Statement& statement) {
  const auto found = std::find(kReductions.begin(), kReductions.end(), parts[0]);
  std::size_t value = 0, keep = 0;
  if (found == kReductions.end() || parts.size() != 3) return false;
  if (!read_number(parts[1], known, value) || !read_number(parts[2], 2, keep)) return false;
  statement.kind = Statement::kReduction;
  statement.reduction = static_cast<Reduction>(found - kReductions.begin());
  statement.operands = {value};
  statement.keep_dims = keep != 0;
  return true;
}

/// Empty, or a sentence.
std::string read_statement(std::string_view text, const LoopStep& step, Statement& statement) {
  const std::vector<std::string_view> parts = words(text);
  std::string sentence = "'" + std::string(text) + "' is no statement of its step.";
  if (parts.empty()) return sentence;
  const bool read = parts[0] == "map"       ? read_map(text, step.values, statement, sentence)
                    : parts[0] == "product" ? read_product(parts, step.values, step.matrices, statement)
                                            : read_reduction(parts, step.values, statement);
  return read ? "" : sentence;
}

}  // namespace

Result<LoopStep> parse_loop(std::string_view text, LoopStep step) {
  using Made = Result<LoopStep>;
  step.values = step.outer();
  for (const std::string_view one : split(text, ';')) {
    Statement statement;
    statement.first = step.values;
    if (const std::string sentence = read_statement(one, step, statement); !sentence.empty()) return Made::failure(sentence);
    step.values += statement.results;
    step.statements.push_back(std::move(statement));
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

// --- the run -------------------------------------------------------------------------------------------------------
std::int64_t elements_of(const Shape& shape) {
  std::int64_t elements = 1;
  for (const std::int64_t dim : shape) elements *= dim;
  return elements;
}

/// The sum of `of` each element, by partial sums in double: as exact as a float can tell.
template <class Of>
double sum_of(const float* x, std::size_t count, Of of) {
  double sums[kSums] = {};
  std::size_t i = 0;
  for (; i + kSums <= count; i += kSums)
    for (std::size_t k = 0; k < kSums; ++k) sums[k] += of(static_cast<double>(x[i + k]));
  for (; i < count; ++i) sums[0] += of(static_cast<double>(x[i]));
  double total = 0;
  for (const double one : sums) total += one;
  return total;
}

/// The largest element of x, or with `sign` -1 the largest of -x; NaN where one is NaN.
float largest_of(const float* x, std::size_t count, float sign) {
  float best[kSums];
  std::int32_t odd[kSums] = {};
  std::fill(best, best + kSums, -std::numeric_limits<float>::infinity());
  const auto take = [&](std::size_t k, float one) {
    odd[k] |= one != one;
    best[k] = best[k] < one ? one : best[k];
  };
  std::size_t i = 0;
  for (; i + kSums <= count; i += kSums)
    for (std::size_t k = 0; k < kSums; ++k) take(k, sign * x[i + k]);
  for (; i < count; ++i) take(0, sign * x[i]);
  for (std::size_t k = 0; k < kSums; ++k)
    if (odd[k]) return std::numeric_limits<float>::quiet_NaN();
  return *std::max_element(best, best + kSums);
}

float reduce(Reduction kind, const float* x, std::size_t count) {
  const auto squares = [](double v) { return v * v; };
  switch (kind) {
    case Reduction::max: return largest_of(x, count, 1.0f);
    case Reduction::min: return -largest_of(x, count, -1.0f);
    case Reduction::mean: return static_cast<float>(sum_of(x, count, [](double v) { return v; }) / static_cast<double>(count));
    case Reduction::l1: return static_cast<float>(sum_of(x, count, [](double v) { return std::fabs(v); }));
    case Reduction::l2: return static_cast<float>(std::sqrt(sum_of(x, count, squares)));
    case Reduction::squares: return static_cast<float>(sum_of(x, count, squares));
    default: return static_cast<float>(sum_of(x, count, [](double v) { return v; }));
  }
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

class Runner {
 public:
  Runner(const LoopProblem& problem, const Variant& variant, const elementwise::Variant& elementwise,
         const ParallelFor& parallel_for)
      : problem_(problem), step_(*problem.step), variant_(variant), elementwise_(elementwise), parallel_for_(parallel_for) {}

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

  std::vector<LoopOutput> run() {
    std::vector<LoopOutput> made;
    for (std::size_t i = 0; i < step_.carried; ++i) made.push_back({types_[1 + i], shapes_[1 + i], {}});
    for (const std::size_t value : step_.stacked) made.push_back({types_[value], shapes_[value], {}});
    bool keep = problem_.begin;
    for (iteration_ = 0; keep && iteration_ < problem_.limit; ++iteration_) {
      run_step();
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
  void note(DType type, Shape shape, const void* data) {
    types_.push_back(type);
    shapes_.push_back(std::move(shape));
    at_.push_back(static_cast<const char*>(data));
  }

  std::string infer(const Statement& statement) {
    if (statement.kind == Statement::kMap) return infer_map(statement);
    for (const std::size_t value : statement.operands)
      if (types_[value] != DType::f32) return "Value " + std::to_string(value) + " should be float.";
    Shape shape = shapes_[statement.operands[0]];
    if (statement.kind == Statement::kReduction) {
      note(DType::f32, statement.keep_dims ? Shape(shape.size(), 1) : Shape(), nullptr);
      return "";
    }
    const Matrix& matrix = problem_.matrices[statement.matrix];
    if (shape.empty() || shape.back() != matrix.depth)
      return "Value " + std::to_string(statement.operands[0]) + " of the shape " + elementwise::text_of(shape) +
             " cannot be multiplied with a matrix of " + std::to_string(matrix.depth) + " rows.";
    if (statement.operands.size() > 1 && shapes_[statement.operands[1]] != Shape{matrix.columns})
      return "Its bias has the shape " + elementwise::text_of(shapes_[statement.operands[1]]) + " and should have [" +
             std::to_string(matrix.columns) + "].";
    shape.back() = matrix.columns;
    note(DType::f32, std::move(shape), nullptr);
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
    const auto is_own = [&](std::size_t value) { return value >= step_.outer() || (value > 0 && value <= step_.carried); };
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

  void run_step() {
    std::size_t plan = 0;
    for (const Statement& statement : step_.statements) {
      for (std::size_t i = 0; i < statement.results; ++i) at_[statement.first + i] = own(statement.first + i);
      switch (statement.kind) {
        case Statement::kMap: run_map(statement, plans_[plan++]); break;
        case Statement::kProduct: multiply(statement); break;
        case Statement::kReduction: {
          const auto* x = reinterpret_cast<const float*>(at_[statement.operands[0]]);
          const auto count = static_cast<std::size_t>(elements_of(shapes_[statement.operands[0]]));
          *reinterpret_cast<float*>(own(statement.first)) = reduce(statement.reduction, x, count);
        }
      }
    }
  }

  void run_map(const Statement& statement, elementwise::Plan& plan) const {
    for (std::size_t i = 0; i < statement.operands.size(); ++i) plan.inputs[i].data = at_[statement.operands[i]];
    for (std::size_t i = 0; i < statement.results; ++i) plan.outputs[i].data = own(statement.first + i);
    elementwise::run_plan(plan, elementwise_, parallel_for_);
  }

  void multiply(const Statement& statement) const {
    const Matrix& matrix = problem_.matrices[statement.matrix];
    const auto floats = [&](std::size_t i) { return reinterpret_cast<const float*>(at_[statement.operands[i]]); };
    const std::int64_t elements = elements_of(shapes_[statement.operands[0]]);
    if (elements == 0 || matrix.columns == 0) return;
    Multiplication job{&variant_,
                       &matrix,
                       floats(0),
                       statement.operands.size() > 1 ? floats(1) : nullptr,
                       reinterpret_cast<float*>(own(statement.first)),
                       elements / matrix.depth};
    if (elements * matrix.columns < kSharedProduct)
      job.columns(0, matrix.columns);
    else
      parallel_for_(static_cast<std::size_t>((matrix.columns + kShareColumns - 1) / kShareColumns), Multiplication::share, &job);
  }

  /// What the next step finds as carried values. What no statement made is copied, all before any is seen: they may be swapped.
  void carry_on() {
    next_.clear();
    for (std::size_t i = 0; i < step_.carried; ++i) {
      const std::size_t value = step_.next[i];
      if (value < step_.outer()) std::memcpy(own(1 + i), at_[value], bytes_of(value));
      next_.push_back(value < step_.outer() ? own(1 + i) : at_[value]);
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
  const ParallelFor& parallel_for_;
  std::int64_t iteration_ = 0;
  std::vector<DType> types_;  // of each value
  std::vector<Shape> shapes_;
  std::vector<const char*> at_, next_;
  std::vector<std::size_t> offsets_;
  std::vector<elementwise::Plan> plans_;  // of the maps, in their order
  std::size_t half_ = 0;
  char* memory_ = nullptr;
};

}  // namespace

Result<std::vector<LoopOutput>> run_loop(const LoopProblem& problem, const Variant& variant,
                                         const elementwise::Variant& elementwise, const ParallelFor& parallel_for) {
  Runner runner(problem, variant, elementwise, parallel_for);
  if (const std::string sentence = runner.prepare(); !sentence.empty()) return Result<std::vector<LoopOutput>>::failure(sentence);
  return runner.run();
}

}  // namespace onnxopt::recurrence
