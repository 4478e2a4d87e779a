#include "csrc/ops/fused_elementwise.h"

#include <functional>

#include "csrc/dispatch/gpu.h"
#include "csrc/dispatch/log.h"
#include "csrc/ops/device.h"
#include "csrc/ops/epilogue.h"
#include "csrc/ops/variants.h"
#include "kernels/cpu/elementwise/elementwise.h"
#include "kernels/cuda/elementwise/compiled.h"
#include "kernels/cuda/elementwise/elementwise.h"

namespace onnxopt::ops {

namespace {

using elementwise::DType;
using elementwise::Program;

constexpr const char* kCudaVariant = "elementwise__cuda";
/// The code of the CUDA kernel on the host: for tests, never chosen.
constexpr std::string_view kEmulatedVariant = "elementwise__cuda_emulated";

/// onnxruntime computes a float16 node that stands alone in float32: it casts the float16 inputs, and expects float32 where the
/// expression makes float16. It has no such casts of bfloat16.
std::string widen(std::string text) {
  for (std::size_t at = text.find("f16"); at != text.npos; at = text.find("f16", at + 3))
    if (at == 0 || text[at - 1] != 'b') text.replace(at, 3, "f32");
  return text;
}

struct Programs {
  Program exact, widened;

  /// The program for these types of the inputs.
  template <typename Inputs>
  const Program& choose(const Inputs& inputs) const {
    for (std::size_t i = 0; i < inputs.size() && i < exact.inputs().size(); ++i)
      if (exact.inputs()[i] == DType::f16) return inputs[i].type == kFloat ? widened : exact;
    return exact;
  }
};

Result<Programs> parse(const Attributes& attributes) {
  const std::optional<std::string> text = attributes.string("expr");
  if (!text) return Result<Programs>::failure("The node has no attribute 'expr'.");
  Result<Program> exact = Program::parse(*text);
  if (!exact) return Result<Programs>::failure(exact.error());
  Result<Program> widened = Program::parse(widen(*text));
  if (!widened) return Result<Programs>::failure(widened.error());
  return Programs{std::move(*exact), std::move(*widened)};
}

/// A sentence that says which input is missing or has the wrong type; empty when none is.
std::string wrong_input(const Program& program, std::span<const Tensor> inputs) {
  if (inputs.size() != program.inputs().size())
    return "It got " + number(inputs.size()) + " inputs and its expression has " + number(program.inputs().size()) + ".";
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].type == kUndefined) return "Input " + number(i) + " is missing or no tensor.";
    if (inputs[i].type != element_type(program.inputs()[i]))
      return "Input " + number(i) + " is of type " + name_of(inputs[i].type) + " and should be " +
             std::string(elementwise::name_of(program.inputs()[i])) + ".";
  }
  return "";
}

/// The shapes of as many inputs as a program may have.
class InputShapes {
 public:
  explicit InputShapes(std::span<const Tensor> inputs) : count_(inputs.size()) {
    for (std::size_t i = 0; i < count_; ++i) shapes_[i] = inputs[i].shape;
  }
  operator std::span<const std::span<const std::int64_t>>() const { return {shapes_, count_}; }  // NOLINT: it is no more than that

 private:
  std::span<const std::int64_t> shapes_[Program::kMaxInputs];
  std::size_t count_;
};

/// The tensors of one run, as programs take them.
struct Tensors {
  std::span<const Tensor> inputs;
  std::span<const TensorType> types;
  std::span<void* const> outputs;

  template <class Use>
  Result<bool> use(const Use& use) const {
    const void* data[Program::kMaxInputs];
    for (std::size_t i = 0; i < inputs.size(); ++i) data[i] = inputs[i].data;
    std::vector<Shape> output_shapes;
    output_shapes.reserve(types.size());
    for (const TensorType& type : types) output_shapes.push_back(type.shape);
    return use(elementwise::Arguments{{data, inputs.size()}, InputShapes(inputs), outputs, output_shapes});
  }
};

/// Runs a program on tensors.
using Run = std::function<Result<bool>(const Program&, const Tensors&, const Execution&)>;

Run on_cpu(const elementwise::Variant& variant) {
  return [&](const Program& program, const Tensors& tensors, const Execution& execution) {
    return tensors.use(
        [&](const auto& arguments) { return elementwise::run(program, variant, arguments, execution.parallel_for); });
  };
}

Result<bool> run_emulated(const Program& program, const Tensors& tensors, const Execution&) {
  return tensors.use([&](const auto& arguments) { return elementwise::cuda::emulate(program, arguments); });
}

#if defined(ONNXOPT_HAVE_CUDA)
/// The expression as NVRTC compiles it, else interpreted.
Result<Run> on_cuda(const Program& compiled_program) {
  if (const Result<bool> prepared = elementwise::cuda::interpreter().prepare(); !prepared)
    return Result<Run>::failure(prepared.error());
  const Result<int> most = dispatch::max_sm();
  if (!most) return Result<Run>::failure(most.error());
  std::shared_ptr<elementwise::cuda::Compiled> compiled;
  if (Result<std::unique_ptr<elementwise::cuda::Compiled>> made = elementwise::cuda::compile(compiled_program, *most))
    compiled = std::move(*made);
  else
    dispatch::log_once("FusedElementwise interprets its expressions: " + made.error());
  return Run([compiled, &compiled_program](const Program& program, const Tensors& tensors, const Execution& execution) {
    const auto start = [&](auto inputs, auto outputs, void* stream) {
      const elementwise::cuda::Compiled* usable = &program == &compiled_program ? compiled.get() : nullptr;
      return Tensors{inputs, tensors.types, outputs}.use(
          [&](const auto& arguments) { return elementwise::cuda::run(usable, program, arguments, stream); });
    };
    return run_on_device(tensors.inputs, tensors.types, tensors.outputs, execution, start);
  });
}
#endif

class FusedElementwise final : public Kernel {
 public:
  FusedElementwise(std::unique_ptr<const Programs> programs, Run run) : programs_(std::move(programs)), run_(std::move(run)) {}

  Result<std::vector<TensorType>> outputs(std::span<const Tensor> inputs) const override {
    using Types = std::vector<TensorType>;
    const Program& program = programs_->choose(inputs);
    if (const std::string sentence = wrong_input(program, inputs); !sentence.empty()) return Result<Types>::failure(sentence);
    Result<std::vector<Shape>> shapes = elementwise::output_shapes(program, InputShapes(inputs));
    if (!shapes) return Result<Types>::failure(shapes.error());
    Types types;
    types.reserve(shapes->size());
    for (std::size_t i = 0; i < shapes->size(); ++i) types.push_back({element_type(program.outputs()[i]), std::move((*shapes)[i])});
    return types;
  }

  Result<bool> run(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                   const Execution& execution) const override {
    return run_(programs_->choose(inputs), {inputs, types, outputs}, execution);
  }

 private:
  std::unique_ptr<const Programs> programs_;
  Run run_;
};

Result<std::unique_ptr<Kernel>> create(const Attributes& attributes, std::string_view variant) {
  using Made = Result<std::unique_ptr<Kernel>>;
  Result<Programs> programs = parse(attributes);
  if (!programs) return Made::failure(programs.error());
  auto kept = std::make_unique<const Programs>(std::move(*programs));
  if (variant == kEmulatedVariant) return Made(std::make_unique<FusedElementwise>(std::move(kept), run_emulated));
#if defined(ONNXOPT_HAVE_CUDA)
  if (variant == kCudaVariant) {
    Result<Run> run = on_cuda(kept->exact);
    if (!run) return Made::failure(run.error());
    return Made(std::make_unique<FusedElementwise>(std::move(kept), std::move(*run)));
  }
#endif
  const auto found = find_variant(elementwise::variants(), variant);
  if (!found) return Made::failure(found.error());
  return Made(std::make_unique<FusedElementwise>(std::move(kept), on_cpu(**found)));
}

/// The broadcast of two dims. Two different unknown dims make a third one.
Dim merge_dims(const Dim& a, const Dim& b) {
  if (b.size == 1) return a;
  if (a.size == 1) return b;
  if (a.size > 1) return a;
  if (b.size > 1) return b;
  if (a.size == b.size && a.name == b.name && (a.size >= 0 || !a.name.empty())) return a;
  return {-1, fresh_dim()};
}

}  // namespace

std::optional<std::vector<Dim>> infer_shape(const Program& program, std::size_t output, std::span<const InferredType> inputs) {
  std::vector<Dim> shape;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!(program.dependencies(output) >> i & 1)) continue;
    const std::vector<Dim>& other = inputs[i].shape;
    if (other.empty()) return std::nullopt;
    if (other.size() > shape.size()) shape.insert(shape.begin(), other.size() - shape.size(), Dim{});
    for (std::size_t axis = 0; axis < other.size(); ++axis) {
      Dim& dim = shape[shape.size() - other.size() + axis];
      dim = merge_dims(dim, other[axis]);
    }
  }
  return shape;
}

namespace {

std::vector<std::optional<InferredType>> infer(const Attributes& attributes, std::span<const InferredType> inputs) {
  const Result<Programs> programs = parse(attributes);
  if (!programs || programs->exact.inputs().size() != inputs.size()) return {};
  const Program& program = programs->choose(inputs);
  std::vector<std::optional<InferredType>> types;
  for (std::size_t i = 0; i < program.outputs().size(); ++i) {
    std::optional<std::vector<Dim>> shape = infer_shape(program, i, inputs);
    types.push_back(shape ? std::optional(InferredType{element_type(program.outputs()[i]), std::move(*shape)}) : std::nullopt);
  }
  return types;
}

}  // namespace

const Op& fused_elementwise() {
  static const char* const attributes[] = {"expr"};
  static const std::vector<Variant> list = list_variants(elementwise::variants(), {{kCudaVariant, "cuda"}});
  static const Op op{"FusedElementwise", attributes, list, create, infer};
  return op;
}

}  // namespace onnxopt::ops
