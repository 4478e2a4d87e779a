#include "csrc/ops/fused_pool.h"

#include "csrc/ops/convolution.h"
#include "csrc/ops/variants.h"
#include "csrc/ops/window.h"

namespace onnxopt::ops {

namespace {

/// `kind` is "max", "average", "average_with_pads", or "global_average", which has no windows.
struct Kind {
  bool global = false;
  conv::Pool pool = conv::Pool::kMax;
};

Result<Kind> read_kind(const Attributes& attributes) {
  const std::string kind = attributes.string("kind").value_or("");
  if (kind == "max") return Kind{false, conv::Pool::kMax};
  if (kind == "average") return Kind{false, conv::Pool::kAverage};
  if (kind == "average_with_pads") return Kind{false, conv::Pool::kAverageWithPads};
  if (kind == "global_average") return Kind{true, conv::Pool::kAverage};
  return Result<Kind>::failure("Its attribute 'kind' is '" + kind + "', which is no pooling.");
}

/// `bytes` are taken by maxima.
std::string wrong_inputs(std::span<const Tensor> inputs, bool bytes) {
  if (inputs.size() != 1) return "It got " + std::to_string(inputs.size()) + " inputs and takes 1.";
  const int type = inputs[0].type;
  if (type == kFloat || (bytes && (type == kUint8 || type == kInt8))) return "";
  return "Input 0 is of type " + name_of(type) + " and should be float" + (bytes ? ", uint8 or int8." : ".");
}

conv::Element element_of(int type) {
  return type == kUint8 ? conv::Element::kUint8 : type == kInt8 ? conv::Element::kInt8 : conv::Element::kFloat;
}

class FusedPool final : public Kernel {
 public:
  FusedPool(WindowAttributes window, conv::Pool pool, const conv::Variant& variant)
      : window_(std::move(window)), pool_(pool), variant_(variant) {}

  Result<std::vector<TensorType>> outputs(std::span<const Tensor> inputs) const override {
    using Types = Result<std::vector<TensorType>>;
    const bool takes_bytes = pool_ == conv::Pool::kMax;
    if (const std::string sentence = wrong_inputs(inputs, takes_bytes); !sentence.empty()) return Types::failure(sentence);
    const Result<conv::Geometry> geometry = window_.over(inputs[0].shape);
    if (!geometry) return Types::failure(geometry.error());
    return std::vector<TensorType>{{inputs[0].type, shape_of(*geometry, window_.rank())}};
  }

  Result<bool> run(std::span<const Tensor> inputs, std::span<const TensorType>, std::span<void* const> outputs,
                   const Execution& execution) const override {
    const conv::Pooling pooling{*window_.over(inputs[0].shape), pool_, inputs[0].data, outputs[0], element_of(inputs[0].type)};
    conv::run(pooling, variant_, execution.parallel_for);
    return true;
  }

 private:
  WindowAttributes window_;
  conv::Pool pool_;
  const conv::Variant& variant_;
};

class GlobalPool final : public Kernel {
 public:
  explicit GlobalPool(const conv::Variant& variant) : variant_(variant) {}

  Result<std::vector<TensorType>> outputs(std::span<const Tensor> inputs) const override {
    using Types = Result<std::vector<TensorType>>;
    if (const std::string sentence = wrong_inputs(inputs, false); !sentence.empty()) return Types::failure(sentence);
    const Shape& x = inputs[0].shape;
    if (x.size() < 3) return Types::failure("Input 0 has the shape " + text_of(x) + " and should have at least 3 dims.");
    Shape shape(x.size(), 1);
    shape.front() = x.front();
    shape.back() = x.back();
    return std::vector<TensorType>{{kFloat, shape}};
  }

  Result<bool> run(std::span<const Tensor> inputs, std::span<const TensorType>, std::span<void* const> outputs,
                   const Execution& execution) const override {
    const Shape& x = inputs[0].shape;
    conv::GlobalAverage average{x.front(), 1, x.back(), static_cast<const float*>(inputs[0].data), static_cast<float*>(outputs[0])};
    for (std::size_t axis = 1; axis + 1 < x.size(); ++axis) average.pixels *= x[axis];
    conv::run(average, variant_, execution.parallel_for);
    return true;
  }

 private:
  const conv::Variant& variant_;
};

Result<std::unique_ptr<Kernel>> create(const Attributes& attributes, std::string_view name) {
  using Made = Result<std::unique_ptr<Kernel>>;
  const auto variant = find_variant(conv::variants(), name);
  if (!variant) return Made::failure(variant.error());
  const Result<Kind> kind = read_kind(attributes);
  if (!kind) return Made::failure(kind.error());
  if (kind->global) return Made(std::make_unique<GlobalPool>(**variant));
  Result<WindowAttributes> window = WindowAttributes::read(attributes);
  if (!window) return Made::failure(window.error());
  return Made(std::make_unique<FusedPool>(std::move(*window), kind->pool, **variant));
}

std::vector<std::optional<InferredType>> infer(const Attributes& attributes, std::span<const InferredType> inputs) {
  const Result<Kind> kind = read_kind(attributes);
  if (!kind || inputs.empty()) return {};
  if (kind->global) {
    if (inputs[0].shape.size() < 3) return {};
    std::vector<Dim> shape(inputs[0].shape.size(), Dim{1, ""});
    shape.front() = inputs[0].shape.front();
    shape.back() = inputs[0].shape.back();
    return {InferredType{kFloat, std::move(shape)}};
  }
  return infer_windows(attributes, inputs[0].shape, inputs[0].type, -1);
}

}  // namespace

const Op& fused_pool() {
  static const char* const attributes[] = {"kind", "kernel_shape", "strides", "pads", "dilations", "auto_pad", "ceil_mode"};
  static const std::vector<Variant> list = list_variants(conv::variants());
  static const Op op{"FusedPool", attributes, list, create, infer};
  return op;
}

}  // namespace onnxopt::ops
