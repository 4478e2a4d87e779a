#include "csrc/ops/fused_loop.h"

#include <algorithm>

#include "csrc/ops/epilogue.h"
#include "csrc/ops/variants.h"
#include "kernels/cpu/gemm/panel.h"
#include "kernels/cpu/recurrence/loop.h"

namespace onnxopt::ops {

namespace {

using elementwise::DType;

/// The inputs before the carried values: the limit and the condition.
constexpr std::size_t kFirst = 2;

/// The node's attributes. Inputs: limit, condition, carried values, invariants, matrices.
struct Form {
  recurrence::LoopStep step;
  std::vector<std::int64_t> columns;  // of each matrix

  std::size_t inputs() const { return kFirst + step.carried + step.invariants + step.matrices; }
};

std::vector<std::size_t> numbers(const Attributes& attributes, const char* name) {
  std::vector<std::size_t> list;
  // A number below zero becomes one that no value has.
  for (const std::int64_t one : attributes.integers(name).value_or(std::vector<std::int64_t>{}))
    list.push_back(static_cast<std::size_t>(one));
  return list;
}

Result<Form> read_form(const Attributes& attributes) {
  using Made = Result<Form>;
  const auto count = [&](const char* name) {
    return static_cast<std::size_t>(std::clamp<std::int64_t>(attributes.integer(name).value_or(0), 0, 1000));
  };
  recurrence::LoopStep step;
  Form form;
  form.columns = attributes.integers("columns").value_or(std::vector<std::int64_t>{});
  step.carried = count("carried");
  step.invariants = count("invariants");
  step.matrices = form.columns.size();
  step.next = numbers(attributes, "next");
  step.stacked = numbers(attributes, "stacked");
  step.growing = numbers(attributes, "growing");
  if (const std::optional<std::int64_t> keep = attributes.integer("keep")) step.keep = static_cast<std::size_t>(*keep);
  const std::optional<std::string> text = attributes.string("step");
  if (!text) return Made::failure("It has no attribute 'step'.");
  Result<recurrence::LoopStep> read = recurrence::parse_loop(*text, std::move(step));
  if (!read) return Made::failure(read.error());
  form.step = std::move(*read);
  return form;
}

std::optional<DType> type_of(int type) {
  switch (type) {
    case kFloat: return DType::f32;
    case kInt32: return DType::i32;
    case kInt64: return DType::i64;
    case kBool: return DType::boolean;
    default: return std::nullopt;
  }
}

std::int64_t elements_of(const Shape& shape) {
  std::int64_t elements = 1;
  for (const std::int64_t dim : shape) elements *= dim;
  return elements;
}

class FusedLoop final : public ShapingKernel {
 public:
  FusedLoop(Form form, const recurrence::Variants& variants) : form_(std::move(form)), variants_(variants) {}

  Result<std::vector<Made>> make(std::span<const Tensor> inputs, const Execution& execution) const override {
    using Outputs = Result<std::vector<Made>>;
    if (const std::string sentence = wrong_input(inputs); !sentence.empty()) return Outputs::failure(sentence);
    const recurrence::LoopStep& step = form_.step;
    std::vector<recurrence::LoopInput> values;
    std::vector<recurrence::Matrix> matrices;
    for (std::size_t i = kFirst; i < kFirst + step.carried + step.invariants; ++i)
      values.push_back({*type_of(inputs[i].type), inputs[i].shape, inputs[i].data});
    for (std::size_t i = 0; i < step.matrices; ++i) {
      const Tensor& packed = inputs[kFirst + step.carried + step.invariants + i];
      matrices.push_back({static_cast<const float*>(packed.data), packed.shape[1], form_.columns[i]});
    }
    const auto all = std::span<const recurrence::LoopInput>(values);
    const recurrence::LoopProblem problem{&step,
                                          *static_cast<const std::int64_t*>(inputs[0].data),
                                          *static_cast<const std::uint8_t*>(inputs[1].data) != 0,
                                          all.first(step.carried),
                                          all.subspan(step.carried),
                                          matrices};
    Result<std::vector<recurrence::LoopOutput>> run = recurrence::run_loop(problem, variants_, execution.parallel_for);
    if (!run) return Outputs::failure(run.error());
    std::vector<Made> made;
    for (recurrence::LoopOutput& one : *run) made.push_back({{element_type(one.type), std::move(one.shape)}, std::move(one.bytes)});
    return made;
  }

 private:
  /// A sentence that says which input does not fit; empty when all do.
  std::string wrong_input(std::span<const Tensor> inputs) const {
    if (inputs.size() != form_.inputs())
      return "It got " + number(inputs.size()) + " inputs and needs " + number(form_.inputs()) + ".";
    if (inputs[0].type != kInt64 || elements_of(inputs[0].shape) != 1) return "Input 0, the limit, is no int64 of one element.";
    if (inputs[1].type != kBool || elements_of(inputs[1].shape) != 1) return "Input 1, the condition, is no bool of one element.";
    const std::size_t values = kFirst + form_.step.carried + form_.step.invariants;
    for (std::size_t i = kFirst; i < values; ++i)
      if (!type_of(inputs[i].type)) return "Input " + number(i) + " is of type " + name_of(inputs[i].type) + ".";
    constexpr auto panel = static_cast<std::int64_t>(gemm::kPanel);
    for (std::size_t i = values; i < inputs.size(); ++i) {
      const std::int64_t columns = form_.columns[i - values];
      const Shape& shape = inputs[i].shape;
      if (inputs[i].type != kFloat || columns < 1 || shape.size() != 3 || shape[0] != (columns + panel - 1) / panel ||
          shape[1] < 1 || shape[2] != panel)
        return "Input " + number(i) + " of the shape " + text_of(shape) + " is no packed matrix of " + std::to_string(columns) +
               " columns.";
    }
    return "";
  }

  Form form_;
  recurrence::Variants variants_;
};

Result<std::unique_ptr<Kernel>> create(const Attributes& attributes, std::string_view name) {
  using Created = Result<std::unique_ptr<Kernel>>;
  const Result<recurrence::Variants> variants = recurrence::variants_of(name);
  if (!variants) return Created::failure(variants.error());
  Result<Form> form = read_form(attributes);
  if (!form) return Created::failure(form.error());
  return Created(std::make_unique<FusedLoop>(std::move(*form), *variants));
}

/// Carried values keep their types and, unless they grow, their shapes; what is stacked is known from the model alone.
std::vector<std::optional<InferredType>> infer(const Attributes& attributes, std::span<const InferredType> inputs) {
  const Result<Form> form = read_form(attributes);
  if (!form || inputs.size() != form->inputs()) return {};
  std::vector<std::optional<InferredType>> types;
  for (std::size_t i = 0; i < form->step.carried; ++i) types.push_back(inputs[kFirst + i]);
  for (const std::size_t value : form->step.growing)
    for (Dim& dim : types[value]->shape) dim = {-1, fresh_dim()};
  return types;
}

}  // namespace

const Op& fused_loop() {
  static const char* const attributes[] = {"carried", "invariants", "columns", "step", "next", "stacked", "growing", "keep"};
  static const std::vector<Variant> list = list_variants(recurrence::variants());
  static const Op op{"FusedLoop", attributes, list, create, infer};
  return op;
}

}  // namespace onnxopt::ops
