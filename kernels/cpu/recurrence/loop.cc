#include "kernels/cpu/recurrence/loop.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "kernels/cpu/gemm/panel.h"
#include "kernels/cpu/recurrence/loop_plan.h"
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
/// Multiplications of a convolution from which on threads share it: some of 10 us are lost where they meet in each step.
constexpr std::int64_t kSharedConvolution = 1 << 21;
constexpr auto kPanelFloats = static_cast<std::int64_t>(gemm::kPanel);

/// Marks the statements that bounds of slices are made of. Empty, or a sentence.
std::string mark_early(LoopStep& step) {
  std::vector<bool> needed(step.values, false);
  for (const Statement& statement : step.statements)
    if (statement.kind == Statement::kSlice) needed[statement.operands[1]] = needed[statement.operands[2]] = true;
  for (std::size_t i = step.statements.size(); i-- > 0;) {
    Statement& statement = step.statements[i];
    for (std::size_t k = 0; k < statement.results; ++k) statement.early = statement.early || needed[statement.first + k];
    if (!statement.early) continue;
    if (statement.kind == Statement::kSlice) return "Bounds of a slice of its step depend on another such slice.";
    for (const std::size_t value : statement.operands) needed[value] = true;
  }
  for (const std::size_t value : step.growing)
    if (needed[1 + value]) return "Bounds of a slice of its step depend on a value whose dims may change.";
  return "";
}

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
  for (const std::size_t value : step.growing)
    if (value >= step.carried) return Made::failure("Its step carries no value " + std::to_string(value) + ".");
  if (const std::string sentence = mark_early(step); !sentence.empty()) return Made::failure(sentence);
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
    const std::int64_t depth = matrix->depth;
    variant->multiply({x, rows, depth, matrix->panels + begin * depth, kPanelFloats, depth * kPanelFloats,
                       bias ? bias + begin : nullptr, end - begin, y + begin, matrix->columns});
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

class Runner {
 public:
  Runner(const LoopProblem& problem, const Variants& variants, const ParallelFor& parallel_for)
      : problem_(problem),
        step_(*problem.step),
        variant_(*variants.recurrence),
        elementwise_(*variants.elementwise),
        norm_(*variants.norm),
        parallel_for_(parallel_for),
        carried_(problem.carried.begin(), problem.carried.end()) {
    problem_.carried = carried_;
    at_.push_back(reinterpret_cast<const char*>(&iteration_));
    for (const LoopInput& one : problem_.carried) at_.push_back(static_cast<const char*>(one.data));
    for (const LoopInput& one : problem_.invariants) at_.push_back(static_cast<const char*>(one.data));
    at_.resize(step_.values);
    for (auto& half : own_) half.resize(step_.values);
    const auto is_slice = [](const Statement& statement) { return statement.kind == Statement::kSlice; };
    plan_.bounds.resize(static_cast<std::size_t>(std::count_if(step_.statements.begin(), step_.statements.end(), is_slice)));
  }

  /// Plans the first step. Empty, or a sentence. A loop that does not run may have nothing that bounds could be read from.
  std::string plan() {
    const bool runs = problem_.begin && problem_.limit > 0;
    std::string sentence = plan_early(problem_, plan_);
    if (!sentence.empty()) return sentence;
    place(true, ScratchOwner::kRecurrenceBounds);
    sentence = read_bounds();
    if (!sentence.empty() && !runs) plan_.bounds.assign(plan_.bounds.size(), {});
    return sentence.empty() || !runs ? plan_rest(runs) : sentence;
  }

  Result<std::vector<LoopOutput>> run() {
    using Outputs = Result<std::vector<LoopOutput>>;
    std::vector<LoopOutput> made(step_.carried);
    for (const std::size_t value : step_.stacked) made.push_back({plan_.values[value].type, plan_.values[value].shape, {}});
    bool keep = problem_.begin;
    for (iteration_ = 0; keep && iteration_ < problem_.limit; ++iteration_) {
      std::string sentence = iteration_ > 0 ? read_bounds() : "";
      if (sentence.empty() && changed_) sentence = plan_rest(true);
      if (sentence.empty()) sentence = run_statements(false);
      for (std::size_t i = 0; sentence.empty() && i < step_.stacked.size(); ++i)
        sentence = stack(made[step_.carried + i], step_.stacked[i]);
      if (!sentence.empty()) return Outputs::failure(std::move(sentence));
      if (step_.keep) keep = *reinterpret_cast<const std::uint8_t*>(at_[*step_.keep]) != 0;
      changed_ = take_shapes();
      carry_on();
    }
    for (std::size_t i = 0; i < step_.carried; ++i) {
      const auto* const data = reinterpret_cast<const std::byte*>(at_[1 + i]);
      made[i] = {carried_[i].type, carried_[i].shape, {data, data + bytes_of(carried_[i])}};
    }
    for (std::size_t i = 0; i < step_.stacked.size(); ++i) {
      Shape& shape = made[step_.carried + i].shape;
      shape.insert(shape.begin(), iteration_);
    }
    return made;
  }

 private:
  const Shape& shape_of(const Statement& statement, std::size_t operand) const {
    return plan_.values[statement.operands[operand]].shape;
  }

  std::string plan_rest(bool runs) {
    std::string sentence = plan_loop(problem_, plan_, runs);
    // The step before has memory of its own.
    plans_ += 1;
    if (sentence.empty()) place(false, plans_ % 2 ? ScratchOwner::kRecurrence : ScratchOwner::kRecurrenceChanged);
    changed_ = false;
    return sentence;
  }

  /// Runs what bounds of slices are made of. Whether the step needs another plan is noted. Empty, or a sentence.
  std::string read_bounds() {
    if (plan_.bounds.empty()) return "";
    std::string sentence = run_statements(true);
    if (!sentence.empty()) return sentence;
    auto bounds = plan_.bounds.begin();
    for (const Statement& statement : step_.statements) {
      if (statement.kind != Statement::kSlice) continue;
      const auto bound = [&](std::size_t i) { return *reinterpret_cast<const std::int64_t*>(at_[statement.operands[i]]); };
      const Bounds now{bound(1), bound(2)};
      if (now != *bounds && plan_.is_whole) {
        LoopValue& value = plan_.values[statement.first];
        Result<View> view = view_of_slice(statement, shape_of(statement, 0), now);
        changed_ = changed_ || !view || view->shape != value.shape;
        if (!changed_) value.view = std::move(*view);
      }
      *bounds++ = now;
    }
    return "";
  }

  /// Memory of what early or other statements make, and of carried values that are copied, twice: for this step and for the one
  /// before.
  void place(bool early, ScratchOwner owner) {
    constexpr std::size_t kLine = 64;
    std::vector<std::size_t> values;
    for (std::size_t value = 1; !early && value <= step_.carried; ++value) values.push_back(value);
    for (const Statement& statement : step_.statements)
      for (std::size_t i = 0; statement.early == early && i < statement.results; ++i)
        if (plan_.has_own_memory(statement.first + i)) values.push_back(statement.first + i);
    std::vector<std::size_t> offsets;
    std::size_t half = 0;
    for (const std::size_t value : values) {
      const std::size_t own = plan_.values[value <= step_.carried ? step_.next[value - 1] : value].bytes();
      offsets.push_back(half);
      half += (own + kLine - 1) / kLine * kLine;
    }
    // What changes step by step should not ask for new memory in each.
    const bool may_change = !early && (!step_.growing.empty() || !plan_.bounds.empty());
    char* const memory = scratch(may_change ? std::bit_ceil(2 * half + kLine) : 2 * half + kLine, owner);
    for (std::size_t i = 0; i < values.size(); ++i) {
      own_[0][values[i]] = memory + offsets[i];
      own_[1][values[i]] = memory + half + offsets[i];
    }
  }

  char* own(std::size_t value) const { return own_[iteration_ & 1][value]; }

  /// Runs what bounds of slices are made of, or the other statements. Empty, or a sentence.
  std::string run_statements(bool early) {
    std::size_t map = 0;
    for (const Statement& statement : step_.statements) {
      if (statement.kind == Statement::kMap) map += 1;
      if (statement.early != early) continue;
      for (std::size_t i = 0; i < statement.results; ++i) at_[statement.first + i] = own(statement.first + i);
      switch (statement.kind) {
        case Statement::kMap: run_map(statement, plan_.maps[map - 1]); break;
        case Statement::kProduct: multiply(statement); break;
        case Statement::kMatmul: multiply_stacks(statement); break;
        case Statement::kSorted: sort(statement); break;
        case Statement::kScatter:
          if (!scatter_into(statement)) return outside(statement);
          break;
        case Statement::kReduction: reduce_any(statement); break;
        case Statement::kArgument:
          find_extreme(statement.largest, floats(statement, 0), plan_.values[statement.first].along,
                       reinterpret_cast<std::int64_t*>(own(statement.first)));
          break;
        case Statement::kNormalize: normalize(statement); break;
        case Statement::kView:
        case Statement::kSlice: move(statement); break;
        case Statement::kConvolution: convolve(statement); break;
        case Statement::kConcat: concatenate(statement); break;
        case Statement::kElement:
          if (!take({&iteration_, 1}, statement)) return outside(statement);
          break;
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
    const DType type = plan_.values[statement.first].type;
    if (type == DType::f32)
      reduce(statement.reduction, floats(statement, 0), plan_.values[statement.first].along, variant_, own_floats(statement));
    else
      reduce_integers(statement.reduction, type == DType::i64, at_[statement.operands[0]], plan_.values[statement.first].along,
                      own(statement.first));
  }

  void sort(const Statement& statement) const {
    char* const to = own(statement.first);
    find_sorted(statement.largest, statement.count, floats(statement, 0), plan_.values[statement.first].along,
                statement.places ? nullptr : reinterpret_cast<float*>(to),
                statement.places ? reinterpret_cast<std::int64_t*>(to) : nullptr);
  }

  bool scatter_into(const Statement& statement) const {
    const Shape& shape = shape_of(statement, 0);
    const Shape& indices = shape_of(statement, 1);
    const auto depth = static_cast<std::size_t>(indices.back());
    const std::size_t bytes = plan_.values[statement.first].bytes();
    if (bytes > 0) std::memcpy(own(statement.first), at_[statement.operands[0]], bytes);
    const auto part =
        static_cast<std::size_t>(along(shape, 0, depth).inner) * elementwise::size_of(plan_.values[statement.first].type);
    const auto* const data = reinterpret_cast<const std::int64_t*>(at_[statement.operands[1]]);
    return scatter(shape, {data, static_cast<std::size_t>(elements_of(indices))}, depth, at_[statement.operands[2]], part,
                   own(statement.first));
  }

  void move(const Statement& statement) {
    const View& view = *plan_.values[statement.first].view;
    const char* const from = at_[statement.operands[0]];
    const std::size_t size = elementwise::size_of(plan_.values[statement.first].type);
    if (plan_.has_own_memory(statement.first))
      copy_view(from, view, size, own(statement.first));
    else
      at_[statement.first] = from + view.first * static_cast<std::int64_t>(size);
  }

  void concatenate(const Statement& statement) const {
    const auto outer = static_cast<std::size_t>(plan_.values[statement.first].along.outer);
    char* to = own(statement.first);
    for (std::size_t i = 0; i < outer; ++i)
      for (const std::size_t value : statement.operands) {
        const std::size_t bytes = plan_.values[value].bytes() / outer;
        if (bytes > 0) std::memcpy(to, at_[value] + i * bytes, bytes);
        to += bytes;
      }
  }

  /// Elements of a tensor along an axis; a single one that lies in one piece is not copied. False where an index lies outside.
  bool take(std::span<const std::int64_t> indices, const Statement& statement) {
    const Along& whole = plan_.values[statement.first].along;
    const std::size_t bytes = static_cast<std::size_t>(whole.inner) * elementwise::size_of(plan_.values[statement.first].type);
    const std::int64_t last = problem_.limit - 1 - (indices.empty() ? 0 : indices[0]);
    if (statement.reverse) indices = {&last, 1};
    if (plan_.has_own_memory(statement.first))
      return gather(at_[statement.operands[0]], whole, indices, bytes, own(statement.first));
    const std::int64_t place = indices[0] < 0 ? indices[0] + whole.middle : indices[0];
    if (place < 0 || place >= whole.middle) return false;
    at_[statement.first] = at_[statement.operands[0]] + static_cast<std::size_t>(place) * bytes;
    return true;
  }

  void normalize(const Statement& statement) const {
    const Along& whole = plan_.values[statement.first].along;
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
    const MatmulPlan& plan = *plan_.values[statement.first].matmul;
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

  void convolve(const Statement& statement) const {
    const Convolution& convolution = *plan_.values[statement.first].convolution;
    const float* const bias = statement.operands.size() > 2 ? floats(statement, 2) : nullptr;
    const ConvolutionData data{floats(statement, 0), floats(statement, 1), bias, own_floats(statement)};
    recurrence::convolve(convolution, data, variant_,
                         convolution.work() < kSharedConvolution ? ParallelFor::inline_loop() : parallel_for_);
  }

  void run_map(const Statement& statement, elementwise::Plan& plan) const {
    for (std::size_t i = 0; i < statement.operands.size(); ++i) plan.inputs[i].data = at_[statement.operands[i]];
    for (std::size_t i = 0; i < statement.results; ++i) plan.outputs[i].data = own(statement.first + i);
    elementwise::run_plan(plan, elementwise_, parallel_for_);
  }

  void multiply(const Statement& statement) const {
    const Matrix& matrix = problem_.matrices[statement.matrix];
    const std::int64_t elements = plan_.values[statement.operands[0]].elements();
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
      const bool copied = plan_.values[value].root < step_.outer();
      if (copied && plan_.values[value].bytes() > 0) std::memcpy(own(1 + i), at_[value], plan_.values[value].bytes());
      next_.push_back(copied ? own(1 + i) : at_[value]);
    }
    std::copy(next_.begin(), next_.end(), at_.begin() + 1);
  }

  /// Notes the shapes of what is carried on. Whether any is another one.
  bool take_shapes() {
    bool changed = false;
    for (const std::size_t i : step_.growing) {
      const Shape& shape = plan_.values[step_.next[i]].shape;
      changed = changed || shape != carried_[i].shape;
      carried_[i].shape = shape;
    }
    return changed;
  }

  static std::size_t bytes_of(const LoopInput& input) {
    return static_cast<std::size_t>(elements_of(input.shape)) * elementwise::size_of(input.type);
  }

  std::string stack(LoopOutput& output, std::size_t value) const {
    if (plan_.values[value].shape != output.shape)
      return "It stacks values of the shapes " + elementwise::text_of(output.shape) + " and " +
             elementwise::text_of(plan_.values[value].shape) + ".";
    const auto* data = reinterpret_cast<const std::byte*>(at_[value]);
    output.bytes.insert(output.bytes.end(), data, data + plan_.values[value].bytes());
    return "";
  }

  LoopProblem problem_;
  const LoopStep& step_;
  const Variant& variant_;
  const elementwise::Variant& elementwise_;
  const norm::Variant& norm_;
  const ParallelFor& parallel_for_;
  std::vector<LoopInput> carried_;  // types and shapes of now
  LoopPlan plan_;
  std::int64_t iteration_ = 0;
  bool changed_ = false;  // whether the next step needs another plan
  std::size_t plans_ = 0;
  std::vector<const char*> at_, next_;  // where values are in this step, and carried ones in the next
  std::vector<char*> own_[2];           // the memory of values in even steps, and in odd ones
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
  if (const std::string sentence = runner.plan(); !sentence.empty()) return Result<std::vector<LoopOutput>>::failure(sentence);
  return runner.run();
}

}  // namespace onnxopt::recurrence
