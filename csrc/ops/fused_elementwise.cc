#include "csrc/ops/fused_elementwise.h"

#include <algorithm>
#include <memory>
#include <new>
#include <string>

#include "csrc/dispatch/cpu.h"
#include "csrc/ort/adapter.h"
#include "kernels/cpu/elementwise/elementwise.h"
#if defined(ONNXOPT_HAVE_CUDA)
#include "kernels/cuda/elementwise/elementwise.h"
#endif

namespace onnxopt::ops {

namespace {

using elementwise::DType;
using elementwise::Program;
using elementwise::Shape;

constexpr std::string_view kName = "FusedElementwise";

int element_type(DType type) {
  switch (type) {
    case DType::f32: return ort::kFloat;
    case DType::f16: return ort::kFloat16;
    case DType::i32: return ort::kInt32;
    case DType::i64: return ort::kInt64;
    case DType::boolean: return ort::kBool;
  }
  return ort::kUndefined;
}

/// onnxruntime computes a float16 node that stands alone in float32: it casts the float16 inputs, and expects float32 where the
/// expression makes float16.
std::string widen(std::string text) {
  for (std::size_t at = text.find("f16"); at != text.npos; at = text.find("f16", at)) text.replace(at, 3, "f32");
  return text;
}

struct Kernel {
  Program program, widened;
  const elementwise::Variant* variant;

  /// The program for these types of the inputs.
  const Program& choose(const std::vector<int>& types) const {
    for (std::size_t i = 0; i < types.size() && i < program.inputs().size(); ++i)
      if (program.inputs()[i] == DType::f16) return types[i] == ort::kFloat ? widened : program;
    return program;
  }
};

Result<Kernel> parse(const std::string& text) {
  Result<Program> program = Program::parse(text);
  if (!program) return Result<Kernel>::failure(program.error());
  Result<Program> widened = Program::parse(widen(text));
  if (!widened) return Result<Kernel>::failure(widened.error());
  return Kernel{std::move(*program), std::move(*widened), nullptr};
}

std::string number(std::size_t value) { return std::to_string(value); }

OrtStatus* create(const ort::CustomOp*, const void*, const OrtKernelInfo* info, void** kernel) try {
  const std::optional<std::string> text = ort::string_attribute(info, "expr");
  if (!text) return ort::failure(kName, "The node has no attribute 'expr'.");
  Result<Kernel> parsed = parse(*text);
  if (!parsed) return ort::failure(kName, parsed.error());
  if (const auto cap = dispatch::max_isa(); !cap) return ort::failure(kName, cap.error());
  parsed->variant = dispatch::choose(elementwise::variants());
  if (parsed->variant == nullptr) return ort::failure(kName, "No kernel variant runs on this processor.");
  *kernel = new Kernel(std::move(*parsed));
  return nullptr;
} catch (const std::exception& error) {
  return ort::failure(kName, error.what(), ort::kFail);
}

#if defined(ONNXOPT_HAVE_CUDA)
OrtStatus* create_on_cuda(const ort::CustomOp* op, const void* table, const OrtKernelInfo* info, void** kernel) {
  const Result<bool> prepared = elementwise::cuda::interpreter().prepare();
  return prepared ? create(op, table, info, kernel) : ort::failure(kName, prepared.error(), ort::kFail);
}
#endif

/// Reads the inputs; a sentence says which one is missing.
Result<std::vector<ort::TensorView>> read_inputs(const Program& program, const OrtKernelContext* context) {
  using Views = std::vector<ort::TensorView>;
  std::size_t count = 0;
  if (!ort::succeeded(ort::api().KernelContext_GetInputCount(context, &count)) || count != program.inputs().size())
    return Result<Views>::failure("It got " + number(count) + " inputs and its expression has " + number(program.inputs().size()) +
                                  ".");
  Views views;
  for (std::size_t i = 0; i < count; ++i) {
    std::optional<ort::TensorView> view = ort::input(context, i);
    if (!view) return Result<Views>::failure("Input " + number(i) + " is missing or no tensor.");
    views.push_back(std::move(*view));
  }
  return views;
}

/// What ONNX calls an element type.
std::string onnx_name_of(int type) {
  constexpr std::string_view names[] = {"undefined", "float",  "uint8",     "int8",       "uint16",  "int16",
                                        "int32",     "int64",  "string",    "bool",       "float16", "double",
                                        "uint32",    "uint64", "complex64", "complex128", "bfloat16"};
  const bool known = type >= 0 && static_cast<std::size_t>(type) < std::size(names);
  return known ? std::string(names[type]) : "number " + std::to_string(type);
}

/// Nothing, or a sentence that says which input has the wrong type.
std::optional<std::string> wrong_type(const Program& program, const std::vector<int>& types) {
  for (std::size_t i = 0; i < types.size(); ++i)
    if (types[i] != element_type(program.inputs()[i]))
      return "Input " + number(i) + " is of type " + onnx_name_of(types[i]) + " and should be " +
             std::string(elementwise::name_of(program.inputs()[i])) + ".";
  return std::nullopt;
}

/// Allocates the outputs; a sentence says which one cannot be made.
Result<std::vector<void*>> make_outputs(const std::vector<Shape>& shapes, OrtKernelContext* context) {
  using Outputs = std::vector<void*>;
  std::size_t count = 0;
  if (!ort::succeeded(ort::api().KernelContext_GetOutputCount(context, &count)) || count != shapes.size())
    return Result<Outputs>::failure("It has " + number(count) + " outputs and its expression " + number(shapes.size()) + ".");
  Outputs outputs;
  for (std::size_t i = 0; i < count; ++i) {
    const Result<void*> memory = ort::output(context, i, shapes[i]);
    if (!memory)
      return Result<Outputs>::failure("Output " + number(i) + " of shape " + elementwise::text_of(shapes[i]) +
                                      " cannot be made: " + memory.error());
    outputs.push_back(*memory);
  }
  return outputs;
}

/// Runs a program on tensors of the provider's device.
using Run = Result<bool> (*)(const Kernel&, const Program&, const elementwise::Arguments&, const OrtKernelContext*);

Result<bool> run_on_cpu(const Kernel& kernel, const Program& program, const elementwise::Arguments& arguments,
                        const OrtKernelContext* context) {
  return elementwise::run(program, *kernel.variant, arguments, ort::thread_pool(context));
}

#if defined(ONNXOPT_HAVE_CUDA)
Result<bool> run_on_cuda(const Kernel&, const Program& program, const elementwise::Arguments& arguments,
                         const OrtKernelContext* context) {
  const std::optional<void*> stream = ort::gpu_stream(context);
  if (!stream) return Result<bool>::failure("onnxruntime gives no CUDA stream.");
  return elementwise::cuda::interpreter().run(program, arguments, *stream);
}
#endif

template <Run run>
OrtStatus* compute(void* state, OrtKernelContext* context) try {
  const Kernel& kernel = *static_cast<const Kernel*>(state);
  const Result<std::vector<ort::TensorView>> inputs = read_inputs(kernel.program, context);
  if (!inputs) return ort::failure(kName, inputs.error());
  std::vector<int> types;
  for (const ort::TensorView& view : *inputs) types.push_back(view.type);
  const Program& program = kernel.choose(types);
  if (const std::optional<std::string> sentence = wrong_type(program, types)) return ort::failure(kName, *sentence);
  std::vector<std::span<const std::int64_t>> input_shapes;
  std::vector<const void*> data;
  for (const ort::TensorView& view : *inputs) {
    input_shapes.emplace_back(view.shape);
    data.push_back(view.data);
  }
  const Result<std::vector<Shape>> shapes = elementwise::output_shapes(program, input_shapes);
  if (!shapes) return ort::failure(kName, shapes.error());
  const Result<std::vector<void*>> outputs = make_outputs(*shapes, context);
  if (!outputs) return ort::failure(kName, outputs.error(), ort::kFail);
  const elementwise::Arguments arguments{data, input_shapes, *outputs, *shapes};
  const Result<bool> done = run(kernel, program, arguments, context);
  return done ? nullptr : ort::failure(kName, done.error());
} catch (const std::exception& error) {
  return ort::failure(kName, error.what(), ort::kFail);
}

void destroy(void* kernel) { delete static_cast<Kernel*>(kernel); }

/// The broadcast of two dims. Two different unknown dims make a third one.
ort::InferredDim merge_dims(const ort::InferredDim& a, const ort::InferredDim& b) {
  if (b.size == 1) return a;
  if (a.size == 1) return b;
  if (a.size > 1) return a;
  if (b.size > 1) return b;
  if (a.size == b.size && a.name == b.name && (a.size >= 0 || !a.name.empty())) return a;
  return {-1, ort::fresh_dim()};
}

/// The shape of an output; nothing when an input's rank may be unknown, which onnxruntime shows as rank 0.
std::optional<ort::InferredShape> infer_shape(const Program& program, std::size_t output,
                                              const std::vector<ort::InferredShape>& inputs) {
  ort::InferredShape shape;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!(program.dependencies(output) >> i & 1)) continue;
    const ort::InferredShape& other = inputs[i];
    if (other.empty()) return std::nullopt;
    if (other.size() > shape.size()) shape.insert(shape.begin(), other.size() - shape.size(), ort::InferredDim{});
    for (std::size_t axis = 0; axis < other.size(); ++axis) {
      ort::InferredDim& dim = shape[shape.size() - other.size() + axis];
      dim = merge_dims(dim, other[axis]);
    }
  }
  for (ort::InferredDim& dim : shape)
    if (dim.size < 0 && dim.name.empty()) dim.name = ort::fresh_dim();
  return shape;
}

OrtStatus* infer(const ort::CustomOp*, OrtShapeInferContext* context) try {
  const std::optional<std::string> text = ort::string_attribute(context, "expr");
  const Result<Kernel> kernel = parse(text.value_or(""));
  std::size_t count = 0;
  if (!kernel || !ort::succeeded(ort::api().ShapeInferContext_GetInputCount(context, &count))) return nullptr;
  if (count != kernel->program.inputs().size()) return nullptr;
  std::vector<ort::InferredShape> inputs;
  std::vector<int> types;
  for (std::size_t i = 0; i < count; ++i) {
    std::optional<ort::InferredInput> one = ort::inferred_input(context, i);
    if (!one) return nullptr;
    inputs.push_back(std::move(one->shape));
    types.push_back(one->type);
  }
  const Program& program = kernel->choose(types);
  for (std::size_t i = 0; i < program.outputs().size(); ++i)
    if (const std::optional<ort::InferredShape> shape = infer_shape(program, i, inputs))
      ort::set_inferred_output(context, i, element_type(program.outputs()[i]), *shape);
  return nullptr;
} catch (const std::exception&) {
  return nullptr;  // what cannot be inferred is checked when the kernel runs
}

ort::CustomOp describe() {
  ort::CustomOp op{};
  op.version = ort::kApiVersion;
  op.GetName = [](const ort::CustomOp*) { return "FusedElementwise"; };
  op.GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return nullptr; };
  op.GetInputType = [](const ort::CustomOp*, std::size_t) -> int { return ort::kUndefined; };
  op.GetInputTypeCount = [](const ort::CustomOp*) -> std::size_t { return 1; };
  op.GetOutputType = [](const ort::CustomOp*, std::size_t) -> int { return ort::kUndefined; };
  op.GetOutputTypeCount = [](const ort::CustomOp*) -> std::size_t { return 1; };
  op.GetInputCharacteristic = [](const ort::CustomOp*, std::size_t) -> int { return ort::kVariadic; };
  op.GetOutputCharacteristic = [](const ort::CustomOp*, std::size_t) -> int { return ort::kVariadic; };
  op.GetInputMemoryType = [](const ort::CustomOp*, std::size_t) { return 0; };
  op.GetVariadicInputMinArity = [](const ort::CustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const ort::CustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = [](const ort::CustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const ort::CustomOp*) { return 0; };
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute<run_on_cpu>;
  op.KernelDestroy = destroy;
  op.InferOutputShapeFn = infer;
  op.GetStartVersion = [](const ort::CustomOp*) { return 1; };
  op.GetEndVersion = [](const ort::CustomOp*) { return 2147483647; };
  return op;
}

}  // namespace

const ort::CustomOp* fused_elementwise() {
  static const ort::CustomOp op = describe();
  return &op;
}

#if defined(ONNXOPT_HAVE_CUDA)
const ort::CustomOp* fused_elementwise_on_cuda() {
  static const ort::CustomOp op = [] {
    ort::CustomOp made = describe();
    made.CreateKernelV2 = create_on_cuda;
    made.GetExecutionProviderType = [](const ort::CustomOp*) { return "CUDAExecutionProvider"; };
    made.KernelComputeV2 = compute<run_on_cuda>;
    return made;
  }();
  return &op;
}
#endif

}  // namespace onnxopt::ops
