#include "csrc/ops/qconv.h"

#include "csrc/ops/bound_program.h"
#include "csrc/ops/device.h"
#include "csrc/ops/epilogue.h"
#include "csrc/ops/variants.h"
#include "csrc/ops/window.h"
#include "kernels/cpu/qconv/qconv.h"
#include "kernels/cuda/qconv/qconv.h"

namespace onnxopt::ops {

namespace {

/// Inputs: X, the packed weights, their scales and sums, X's scale and zero point, the biases (`biased`), scale and
/// zero point that the results are rounded to (`rounded`), a tensor that is added
/// with its scale and zero point (`added`), scale and zero point of a result of bytes, the epilogue's further inputs.
struct Layout {
  std::int64_t filters = 0, groups = 1;
  int type = kFloat;  // of the result
  bool biased = false, rounded = false, added = false;

  static constexpr std::size_t kX = 0, kWeights = 1, kScales = 2, kSums = 3, kScale = 4, kZero = 5, kBias = 6;
  bool quantized() const { return type != kFloat; }
  std::size_t rounding() const { return kBias + (biased ? 1 : 0); }
  std::size_t addend() const { return rounding() + (rounded ? 2 : 0); }
  std::size_t result() const { return addend() + (added ? 3 : 0); }
  std::size_t epilogue() const { return result() + (quantized() ? 2 : 0); }
};

Result<Layout> read_layout(const Attributes& attributes) {
  using Made = Result<Layout>;
  Layout layout;
  layout.filters = attributes.integer("filters").value_or(0);
  layout.groups = attributes.integer("group").value_or(1);
  layout.type = static_cast<int>(attributes.integer("output_dtype").value_or(kFloat));
  layout.biased = attributes.integer("biased").value_or(0) != 0;
  layout.rounded = attributes.integer("rounded").value_or(0) != 0;
  layout.added = attributes.integer("added").value_or(0) != 0;
  if (layout.filters < 1) return Made::failure("It needs a positive attribute 'filters'.");
  if (layout.groups < 1 || layout.filters % layout.groups != 0)
    return Made::failure("Its attribute 'group' is " + number(layout.groups) + " and should divide its " + number(layout.filters) +
                         " filters.");
  if (layout.type != kFloat && layout.type != kUint8 && layout.type != kInt8)
    return Made::failure("Its attribute 'output_dtype' should be that of float, uint8 or int8.");
  return layout;
}

bool is_byte(int type) { return type == kUint8 || type == kInt8; }

qconv::Type type_of(int type) {
  return type == kUint8 ? qconv::Type::kUint8 : type == kInt8 ? qconv::Type::kInt8 : qconv::Type::kFloat;
}

/// A tensor of bytes; its scale and zero point follow at `scale`.
qconv::Tensor tensor(std::span<const Tensor> inputs, const void* data, int type, std::size_t scale) {
  const void* const zero = inputs[scale + 1].data;
  return {data, type_of(type), *static_cast<const float*>(inputs[scale].data),
          type == kInt8 ? *static_cast<const std::int8_t*>(zero) : *static_cast<const std::uint8_t*>(zero)};
}

/// What kernels of all devices share: the sizes.
class QConv : public Kernel {
 public:
  QConv(WindowAttributes window, Layout layout, EpilogueProgram epilogue)
      : window_(std::move(window)), layout_(layout), epilogue_(std::move(epilogue)) {}

  Result<std::vector<TensorType>> outputs(std::span<const Tensor> inputs) const override {
    using Types = Result<std::vector<TensorType>>;
    if (const std::string sentence = too_few(inputs, layout_.epilogue()); !sentence.empty()) return Types::failure(sentence);
    const Result<conv::Geometry> geometry = geometry_of(inputs);
    if (!geometry) return Types::failure(geometry.error());
    if (const std::string sentence = wrong_input(inputs, *geometry); !sentence.empty()) return Types::failure(sentence);
    Result<std::vector<TensorType>> types =
        epilogue_.outputs(shape_of(*geometry, window_.rank()), inputs.subspan(layout_.epilogue()));
    if (types) types->front().type = layout_.type;
    return types;
  }

 protected:
  Result<conv::Geometry> geometry_of(std::span<const Tensor> inputs) const {
    Result<conv::Geometry> geometry = window_.over(inputs[0].shape);
    if (!geometry) return geometry;
    geometry->filters = layout_.filters;
    geometry->groups = layout_.groups;
    return geometry;
  }

  WindowAttributes window_;
  Layout layout_;
  EpilogueProgram epilogue_;

 private:
  /// A sentence that says which input does not fit; empty when all do.
  std::string wrong_input(std::span<const Tensor> inputs, const conv::Geometry& geometry) const {
    if (!is_byte(inputs[0].type)) return "Input 0 is of type " + name_of(inputs[0].type) + " and should be uint8 or int8.";
    if (geometry.channels % geometry.groups != 0)
      return "Input 0 has " + number(geometry.channels) + " channels, which " + number(geometry.groups) + " groups cannot share.";
    const Shape filters{layout_.filters};
    if (std::string s = wrong(inputs, Layout::kWeights, kInt8, packed(geometry)); !s.empty()) return s;
    if (std::string s = wrong(inputs, Layout::kScales, kFloat, filters); !s.empty()) return s;
    if (std::string s = wrong(inputs, Layout::kSums, kInt32, filters); !s.empty()) return s;
    if (std::string s = wrong_quantization(inputs, Layout::kScale, inputs[0].type); !s.empty()) return s;
    if (layout_.biased)
      if (std::string s = wrong(inputs, Layout::kBias, kFloat, filters); !s.empty()) return s;
    if (layout_.rounded) {
      const int type = inputs[layout_.rounding() + 1].type;
      if (std::string s = wrong_quantization(inputs, layout_.rounding(), type == kInt8 ? kInt8 : kUint8); !s.empty()) return s;
    }
    if (layout_.added) {
      const std::size_t at = layout_.addend();
      if (!is_byte(inputs[at].type))
        return "Input " + number(at) + " is of type " + name_of(inputs[at].type) + " and should be uint8 or int8.";
      if (std::string s = wrong(inputs, at, inputs[at].type, shape_of(geometry, window_.rank())); !s.empty()) return s;
      if (std::string s = wrong_quantization(inputs, at + 1, inputs[at].type); !s.empty()) return s;
    }
    return layout_.quantized() ? wrong_quantization(inputs, layout_.result(), layout_.type) : "";
  }

  static Shape packed(const conv::Geometry& g) {
    const auto panel = static_cast<std::int64_t>(qgemm::kPanel), group = static_cast<std::int64_t>(qgemm::kGroup);
    if (g.is_depthwise()) return {g.kernel[1], (g.kernel[0] + group - 1) / group, g.channels, group};
    const std::int64_t panels = (g.filters / g.groups + panel - 1) / panel;
    return {g.groups, panels, qconv::stretches(g) * ((qconv::stretch(g) + group - 1) / group), panel, group};
  }

  static std::string wrong_quantization(std::span<const Tensor> inputs, std::size_t scale, int type) {
    if (std::string s = wrong(inputs, scale, kFloat, {}); !s.empty()) return s;
    return wrong(inputs, scale + 1, type, {});
  }
};

class CpuQConv final : public QConv {
 public:
  CpuQConv(WindowAttributes window, Layout layout, EpilogueProgram epilogue, const qconv::Variant& variant)
      : QConv(std::move(window), layout, std::move(epilogue)), variant_(variant) {}

  Result<bool> run(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                   const Execution& execution) const override {
    qconv::Convolution convolution{};
    convolution.geometry = *geometry_of(inputs);
    convolution.x = tensor(inputs, inputs[Layout::kX].data, inputs[Layout::kX].type, Layout::kScale);
    convolution.weights = static_cast<const std::int8_t*>(inputs[Layout::kWeights].data);
    convolution.weight_scales = static_cast<const float*>(inputs[Layout::kScales].data);
    convolution.sums = static_cast<const std::int32_t*>(inputs[Layout::kSums].data);
    convolution.bias = layout_.biased ? static_cast<const float*>(inputs[Layout::kBias].data) : nullptr;
    convolution.y = outputs[0];
    convolution.result.type = type_of(layout_.type);
    if (layout_.quantized()) convolution.result = tensor(inputs, nullptr, layout_.type, layout_.result());
    if (layout_.rounded) convolution.rounded = tensor(inputs, nullptr, inputs[layout_.rounding() + 1].type, layout_.rounding());
    if (layout_.added) {
      const Tensor& added = inputs[layout_.addend()];
      convolution.added = tensor(inputs, added.data, added.type, layout_.addend() + 1);
    }
    const Shape raw = shape_of(convolution.geometry, window_.rank());
    const std::span<const Tensor> further = inputs.subspan(layout_.epilogue());
    convolution.clip = epilogue_.clip();
    std::optional<elementwise::Epilogue> epilogue;
    if (const auto sum = epilogue_.sum(raw, further); sum && !layout_.added) {
      convolution.added = {sum->added, qconv::Type::kFloat};
      convolution.clip = sum->clip;
    } else if (epilogue_.gate()) {
      convolution.gate = epilogue_.gate();
    } else if (epilogue_.present()) {
      const std::vector<TensorType> floats(1, TensorType{kFloat, types[0].shape});
      Result<elementwise::Epilogue> bound = epilogue_.bind(raw, further, floats, outputs);
      if (!bound) return Result<bool>::failure(bound.error());
      epilogue = std::move(*bound);
      convolution.epilogue = &*epilogue;
    }
    qconv::run(convolution, variant_, execution.parallel_for);
    return true;
  }

 private:
  const qconv::Variant& variant_;
};

class CudaQConv final : public QConv {
 public:
  CudaQConv(WindowAttributes window, Layout layout, EpilogueProgram epilogue, Place<qconv::cuda::Problem> place)
      : QConv(std::move(window), layout, std::move(epilogue)), place_(place) {}

  Result<bool> run(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                   const Execution& execution) const override {
    const auto start = [&](std::span<const Tensor> tensors, std::span<void* const> memory, void* stream) {
      return this->start(tensors, memory, stream);
    };
    return place_.run(inputs, types, outputs, execution, start);
  }

 private:
  /// A tensor of bytes; its scale and zero point follow at `scale`.
  static qconv::cuda::Tensor tensor(std::span<const Tensor> inputs, const void* data, int type, std::size_t scale) {
    return {data, type_of(type), static_cast<const float*>(inputs[scale].data), inputs[scale + 1].data};
  }

  Result<bool> start(std::span<const Tensor> inputs, std::span<void* const> outputs, void* stream) const {
    qconv::cuda::Problem problem;
    problem.geometry = *geometry_of(inputs);
    if (problem.geometry.pixels() == 0) return true;
    problem.x = tensor(inputs, inputs[Layout::kX].data, inputs[Layout::kX].type, Layout::kScale);
    problem.weights = static_cast<const std::int8_t*>(inputs[Layout::kWeights].data);
    problem.weight_scales = static_cast<const float*>(inputs[Layout::kScales].data);
    problem.sums = static_cast<const std::int32_t*>(inputs[Layout::kSums].data);
    problem.bias = layout_.biased ? static_cast<const float*>(inputs[Layout::kBias].data) : nullptr;
    problem.y = outputs[0];
    problem.result.type = type_of(layout_.type);
    if (layout_.quantized()) problem.result = tensor(inputs, nullptr, layout_.type, layout_.result());
    if (layout_.rounded) problem.rounded = tensor(inputs, nullptr, inputs[layout_.rounding() + 1].type, layout_.rounding());
    if (layout_.added) {
      const Tensor& added = inputs[layout_.addend()];
      problem.added = tensor(inputs, added.data, added.type, layout_.addend() + 1);
    }
    return finish(inputs, outputs, problem, stream);
  }

  /// Starts with what the epilogue says: what the kernel itself computes, or else a program.
  Result<bool> finish(std::span<const Tensor> inputs, std::span<void* const> outputs, qconv::cuda::Problem& problem,
                      void* stream) const {
    const Shape raw = shape_of(problem.geometry, window_.rank());
    const std::span<const Tensor> further = inputs.subspan(layout_.epilogue());
    const gemm::Bounds* clip = epilogue_.clip();
    if (const auto sum = epilogue_.sum(raw, further); sum && !layout_.added) {
      problem.added = {sum->added, qconv::Type::kFloat};
      clip = sum->clip;
    } else if (epilogue_.gate()) {
      problem.gated = true;
      problem.gate = *epilogue_.gate();
    } else if (epilogue_.present()) {
      BoundProgram after;
      after.take(1, raw);
      after.read(further);
      after.write(outputs, raw);
      const elementwise::cuda::Bound epilogue = after.bound(*epilogue_.program());
      problem.epilogue = &epilogue;
      return place_.start(problem, stream);
    }
    problem.clipped = clip != nullptr;
    if (clip) problem.clip = *clip;
    return place_.start(problem, stream);
  }

  Place<qconv::cuda::Problem> place_;
};

constexpr const char* kCudaVariant = "qconv__cuda";
/// The code of the CUDA kernel on the host: for tests, never chosen.
constexpr std::string_view kEmulatedVariant = "qconv__cuda_emulated";

/// A kernel for a CUDA device, or its code on the host.
Result<std::unique_ptr<Kernel>> make_cuda_kernel(WindowAttributes window, const Layout& layout, EpilogueProgram epilogue,
                                                 std::string_view name) {
  using Made = Result<std::unique_ptr<Kernel>>;
  const auto place = place_of<qconv::cuda::Problem, qconv::cuda::emulate, qconv::cuda::kernels>(name == kEmulatedVariant);
  if (!place) return Made::failure(place.error());
  return Made(std::make_unique<CudaQConv>(std::move(window), layout, std::move(epilogue), *place));
}

Result<std::unique_ptr<Kernel>> create(const Attributes& attributes, std::string_view name) {
  using Made = Result<std::unique_ptr<Kernel>>;
  const auto variant = find_variant(qconv::variants(), name);
  const bool for_cuda = name == kCudaVariant || name == kEmulatedVariant;
  if (!variant && !for_cuda) return Made::failure(variant.error());
  Result<WindowAttributes> window = WindowAttributes::read(attributes);
  if (!window) return Made::failure(window.error());
  const Result<Layout> layout = read_layout(attributes);
  if (!layout) return Made::failure(layout.error());
  Result<EpilogueProgram> epilogue = EpilogueProgram::read_of_floats(attributes, for_cuda ? "scalar" : (*variant)->isa);
  if (!epilogue) return Made::failure(epilogue.error());
  if (for_cuda) return make_cuda_kernel(std::move(*window), *layout, std::move(*epilogue), name);
  return Made(std::make_unique<CpuQConv>(std::move(*window), *layout, std::move(*epilogue), **variant));
}

std::vector<std::optional<InferredType>> infer(const Attributes& attributes, std::span<const InferredType> inputs) {
  const Result<Layout> layout = read_layout(attributes);
  if (!layout || inputs.empty()) return {};
  return infer_windows(attributes, inputs[0].shape, layout->type, layout->filters);
}

}  // namespace

const Op& qconv() {
  static const char* const attributes[] = {"kernel_shape", "strides", "pads",    "dilations", "auto_pad", "filters",
                                           "group",        "biased",  "rounded", "added",     "epilogue", "output_dtype"};
  static const std::vector<Variant> list = list_variants(qconv::variants(), {{kCudaVariant, "cuda"}});
  static const Op op{"QConv", attributes, list, create, infer};
  return op;
}

}  // namespace onnxopt::ops
