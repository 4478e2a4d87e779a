#include "csrc/ops/fused_recurrence.h"

#include <algorithm>
#include <functional>

#include "csrc/ops/device.h"
#include "csrc/ops/variants.h"
#include "kernels/cpu/gemm/panel.h"
#include "kernels/cuda/recurrence/recurrence.h"

namespace onnxopt::ops {

namespace {

/// The node's attributes. Inputs: carried values, sequences, invariants, matrices, in this order.
struct Form {
  recurrence::Step step;
  std::vector<bool> reverse;          // of each sequence
  std::vector<bool> reverse_stacked;  // of each stacked output
  std::vector<bool> read;             // of each sequence and invariant: whether a program reads it

  std::size_t inputs() const {
    const recurrence::Counts& counts = step.counts;
    return counts.carried + counts.sequences + counts.invariants + counts.matrices;
  }
};

std::size_t count(const Attributes& attributes, const char* name) {
  return static_cast<std::size_t>(std::clamp<std::int64_t>(attributes.integer(name).value_or(0), 0, 1000));
}

std::vector<std::size_t> numbers(const Attributes& attributes, const char* name) {
  std::vector<std::size_t> list;
  // A number below zero becomes one that no value has.
  for (const std::int64_t one : attributes.integers(name).value_or(std::vector<std::int64_t>{}))
    list.push_back(static_cast<std::size_t>(one));
  return list;
}

std::vector<bool> flags(const Attributes& attributes, const char* name, std::size_t size) {
  std::vector<bool> list(size, false);
  const std::vector<std::size_t> given = numbers(attributes, name);
  for (std::size_t i = 0; i < std::min(size, given.size()); ++i) list[i] = given[i] != 0;
  return list;
}

/// Which sequences and invariants have to be float32 tensors that fit the domain.
std::vector<bool> values_read(const recurrence::Step& step) {
  std::vector<bool> read(step.counts.sequences + step.counts.invariants, false);
  const auto mark = [&](std::size_t value) {
    if (value >= step.counts.carried && value - step.counts.carried < read.size()) read[value - step.counts.carried] = true;
  };
  for (const recurrence::Phase& phase : step.phases) {
    for (const std::size_t value : phase.operands) mark(value);
    for (const recurrence::Product& product : phase.products) {
      mark(product.value);
      if (product.bias != recurrence::Product::kNoBias) mark(product.bias);
    }
  }
  for (const std::size_t value : step.next) mark(value);
  for (const std::size_t value : step.stacked) mark(value);
  return read;
}

Result<Form> read_form(const Attributes& attributes) {
  using Made = Result<Form>;
  recurrence::Counts counts{count(attributes, "carried"), count(attributes, "sequences"), count(attributes, "invariants"),
                            count(attributes, "matrices")};
  if (counts.carried == 0) return Made::failure("Its attribute 'carried' should be at least 1.");
  if (counts.sequences == 0) return Made::failure("Its attribute 'sequences' should be at least 1.");
  const std::optional<std::string> text = attributes.string("step");
  if (!text) return Made::failure("It has no attribute 'step'.");
  std::vector<std::size_t> stacked = numbers(attributes, "stacked");
  std::vector<bool> summed = flags(attributes, "summed", stacked.size());
  Result<recurrence::Step> step =
      recurrence::parse(*text, counts, numbers(attributes, "next"), std::move(stacked), std::move(summed));
  if (!step) return Made::failure(step.error());
  Form form{std::move(*step), flags(attributes, "reverse", counts.sequences), {}, {}};
  form.reverse_stacked = flags(attributes, "reverse_stacked", form.step.stacked.size());
  form.read = values_read(form.step);
  return form;
}

/// Runs a problem.
using Run = std::function<Result<bool>(const recurrence::Problem&, const Execution&)>;

class FusedRecurrence final : public Kernel {
 public:
  FusedRecurrence(Form form, Run run, bool on_device) : form_(std::move(form)), run_(std::move(run)), on_device_(on_device) {}

  Result<std::vector<TensorType>> outputs(std::span<const Tensor> inputs) const override {
    using Types = Result<std::vector<TensorType>>;
    if (const std::string sentence = wrong_input(inputs); !sentence.empty()) return Types::failure(sentence);
    const recurrence::Counts& counts = form_.step.counts;
    std::vector<TensorType> types(counts.carried, TensorType{kFloat, inputs[0].shape});
    for (const bool summed : form_.step.summed) {
      Shape stacked = inputs[0].shape;
      if (summed) stacked.pop_back();
      stacked.insert(stacked.begin(), inputs[counts.carried].shape[0]);
      types.push_back({kFloat, stacked});
    }
    return types;
  }

  Result<bool> run(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                   const Execution& execution) const override {
#if defined(ONNXOPT_HAVE_CUDA)
    if (on_device_)
      return run_on_device(inputs, types, outputs, execution, [&](auto tensors, auto memory, void* stream) {
        Execution started = execution;
        started.stream = stream;
        return run_problem(tensors, memory, started);
      });
#else
    static_cast<void>(types), static_cast<void>(on_device_);
#endif
    return run_problem(inputs, outputs, execution);
  }

 private:
  Result<bool> run_problem(std::span<const Tensor> inputs, std::span<void* const> outputs, const Execution& execution) const {
    const recurrence::Counts& counts = form_.step.counts;
    recurrence::Problem problem{&form_.step, inputs[0].shape, inputs[counts.carried].shape[0], {}, {}, {}, {}, {}, {}, {}};
    std::vector<const float*> initial, matrices;
    std::vector<const void*> invariants;
    std::vector<recurrence::Sequence> sequences, stacked;
    std::vector<Shape> shapes;
    std::size_t at = 0;
    for (std::size_t i = 0; i < counts.carried; ++i) initial.push_back(static_cast<const float*>(inputs[at++].data));
    for (std::size_t i = 0; i < counts.sequences; ++i, ++at) {
      shapes.emplace_back(inputs[at].shape.begin() + 1, inputs[at].shape.end());
      sequences.push_back({static_cast<const char*>(inputs[at].data), bytes_of(shapes.back()), form_.reverse[i]});
    }
    for (std::size_t i = 0; i < counts.invariants; ++i, ++at) {
      shapes.push_back(inputs[at].shape);
      invariants.push_back(inputs[at].data);
    }
    for (std::size_t i = 0; i < counts.matrices; ++i) matrices.push_back(static_cast<const float*>(inputs[at++].data));
    std::vector<float*> finals;
    for (std::size_t i = 0; i < counts.carried; ++i) finals.push_back(static_cast<float*>(outputs[i]));
    for (std::size_t i = 0; i < form_.step.stacked.size(); ++i) {
      Shape shape = inputs[0].shape;
      if (form_.step.summed[i]) shape.pop_back();
      stacked.push_back({static_cast<const char*>(outputs[counts.carried + i]), bytes_of(shape), form_.reverse_stacked[i]});
    }
    problem.initial = initial;
    problem.sequences = sequences;
    problem.invariants = invariants;
    problem.shapes = shapes;
    problem.matrices = matrices;
    problem.finals = finals;
    problem.stacked = stacked;
    return run_(problem, execution);
  }

  static std::int64_t bytes_of(const Shape& shape) {
    std::int64_t bytes = sizeof(float);
    for (const std::int64_t dim : shape) bytes *= dim;
    return bytes;
  }

  /// A sentence that says which input does not fit; empty when all do.
  std::string wrong_input(std::span<const Tensor> inputs) const {
    const recurrence::Counts& counts = form_.step.counts;
    if (inputs.size() != form_.inputs())
      return "It got " + number(inputs.size()) + " inputs and needs " + number(form_.inputs()) + ".";
    const Shape& domain = inputs[0].shape;
    if (form_.step.counts.matrices > 0 && domain.empty()) return "Input 0 is a scalar, which cannot be multiplied with a matrix.";
    if (form_.step.has_sums && domain.empty()) return "Input 0 is a scalar, which has no last dim to sum over.";
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const bool outer = i >= counts.carried && i - counts.carried < form_.read.size();
      const bool sequence = outer && i < counts.carried + counts.sequences;
      if (sequence && inputs[i].shape.empty()) return "Input " + number(i) + " is a scalar and should be a sequence.";
      if (sequence && inputs[i].shape[0] != inputs[counts.carried].shape[0])
        return "Input " + number(i) + " has " + std::to_string(inputs[i].shape[0]) + " elements where input " +
               number(counts.carried) + " has " + std::to_string(inputs[counts.carried].shape[0]) + ".";
      if (outer && !form_.read[i - counts.carried]) continue;
      if (inputs[i].type != kFloat)
        return "Input " + number(i) + " is of type " + name_of(inputs[i].type) + " and should be float.";
      if (const std::string sentence = wrong_shape(inputs, i, outer, sequence); !sentence.empty()) return sentence;
    }
    return copied_shapes(inputs);
  }

  std::string wrong_shape(std::span<const Tensor> inputs, std::size_t i, bool outer, bool sequence) const {
    const Shape& domain = inputs[0].shape;
    if (!outer) {
      const auto panel = static_cast<std::int64_t>(gemm::kPanel);
      const Shape expected =
          i < form_.step.counts.carried ? domain : Shape{(domain.back() + panel - 1) / panel, domain.back(), panel};
      if (inputs[i].shape == expected) return "";
      return "Input " + number(i) + " has the shape " + text_of(inputs[i].shape) + " and should have " + text_of(expected) + ".";
    }
    const Shape shape(inputs[i].shape.begin() + (sequence ? 1 : 0), inputs[i].shape.end());
    bool fits = shape.size() <= domain.size();
    for (std::size_t axis = 0; fits && axis < shape.size(); ++axis) {
      const std::int64_t size = domain[domain.size() - shape.size() + axis];
      fits = shape[axis] == size || shape[axis] == 1;
    }
    if (fits) return "";
    return "Input " + number(i) + " has elements of the shape " + text_of(shape) + ", which cannot be broadcast to " +
           text_of(domain) + ".";
  }

  /// Values that go on, out, or into a product as they are have the whole shape.
  std::string copied_shapes(std::span<const Tensor> inputs) const {
    const recurrence::Counts& counts = form_.step.counts;
    const auto check = [&](std::size_t value) -> std::string {
      if (value < counts.carried || value - counts.carried >= form_.read.size()) return "";
      const Tensor& input = inputs[value];
      const Shape shape(input.shape.begin() + (value < counts.carried + counts.sequences ? 1 : 0), input.shape.end());
      if (shape == inputs[0].shape) return "";
      return "Input " + number(value) + " has elements of the shape " + text_of(shape) + " and should have " +
             text_of(inputs[0].shape) + ".";
    };
    std::vector<std::size_t> values = form_.step.next;
    values.insert(values.end(), form_.step.stacked.begin(), form_.step.stacked.end());
    for (const recurrence::Phase& phase : form_.step.phases)
      for (const recurrence::Product& product : phase.products) values.push_back(product.value);
    for (const std::size_t value : values)
      if (std::string sentence = check(value); !sentence.empty()) return sentence;
    for (const recurrence::Phase& phase : form_.step.phases)
      for (const recurrence::Product& product : phase.products)
        if (product.bias != recurrence::Product::kNoBias && inputs[product.bias].shape != Shape{inputs[0].shape.back()})
          return "Input " + number(product.bias) + " has the shape " + text_of(inputs[product.bias].shape) + " and should have " +
                 text_of({inputs[0].shape.back()}) + ".";
    return "";
  }

  Form form_;
  Run run_;
  bool on_device_;
};

constexpr const char* kCudaVariant = "recurrence__cuda";
/// The code of the CUDA kernel on the host: for tests, never chosen.
constexpr std::string_view kEmulatedVariant = "recurrence__cuda_emulated";

/// How a variant runs a problem, or what is wrong with its name.
Result<Run> run_of(std::string_view name) {
  if (name == kEmulatedVariant)
    return Run([](const recurrence::Problem& problem, const Execution&) { return recurrence::cuda::emulate(problem); });
#if defined(ONNXOPT_HAVE_CUDA)
  if (name == kCudaVariant) {
    if (const Result<bool> prepared = recurrence::cuda::kernels().prepare(); !prepared)
      return Result<Run>::failure(prepared.error());
    return Run([](const recurrence::Problem& problem, const Execution& execution) {
      return recurrence::cuda::kernels().run(problem, execution.stream);
    });
  }
#endif
  const auto variant = find_variant(recurrence::variants(), name);
  if (!variant) return Result<Run>::failure(variant.error());
  const auto same = elementwise_beside((*variant)->isa);
  if (!same) return Result<Run>::failure(same.error());
  return Run([&variant = **variant, &same = **same](const recurrence::Problem& problem, const Execution& execution) {
    return recurrence::run(problem, variant, same, execution.parallel_for);
  });
}

Result<std::unique_ptr<Kernel>> create(const Attributes& attributes, std::string_view name) {
  using Made = Result<std::unique_ptr<Kernel>>;
  Result<Run> run = run_of(name);
  if (!run) return Made::failure(run.error());
  Result<Form> form = read_form(attributes);
  if (!form) return Made::failure(form.error());
  return Made(std::make_unique<FusedRecurrence>(std::move(*form), std::move(*run), name == kCudaVariant));
}

std::vector<std::optional<InferredType>> infer(const Attributes& attributes, std::span<const InferredType> inputs) {
  const Result<Form> form = read_form(attributes);
  if (!form || inputs.size() != form->inputs() || inputs[0].shape.empty()) return {};
  const recurrence::Counts& counts = form->step.counts;
  std::vector<std::optional<InferredType>> types;
  for (std::size_t i = 0; i < counts.carried; ++i) types.push_back(InferredType{kFloat, inputs[0].shape});
  const InferredType& sequence = inputs[counts.carried];
  InferredType stacked{kFloat, inputs[0].shape};
  stacked.shape.insert(stacked.shape.begin(), sequence.shape.empty() ? Dim{-1, fresh_dim()} : sequence.shape[0]);
  for (const bool summed : form->step.summed) {
    types.push_back(stacked);
    if (summed) types.back()->shape.pop_back();
  }
  return types;
}

}  // namespace

const Op& fused_recurrence() {
  static const char* const attributes[] = {"carried", "sequences", "invariants", "matrices", "step",
                                           "next",    "stacked",   "summed",     "reverse",  "reverse_stacked"};
  static const std::vector<Variant> list = list_variants(recurrence::variants(), {{kCudaVariant, "cuda"}});
  static const Op op{"FusedRecurrence", attributes, list, create, infer};
  return op;
}

}  // namespace onnxopt::ops
