#include "csrc/ops/fused_separable_conv.h"

#include <algorithm>

#include "csrc/ops/convolution.h"
#include "csrc/ops/variants.h"
#include "csrc/ops/window.h"

namespace onnxopt::ops {

namespace {

/// Inputs: X, the depthwise filters [taps, C] and biases [C], the packed product [1, ceil(M / 16), C, 16] and its biases [M], the
/// epilogue's further inputs.
constexpr std::size_t kInputs = 5;

class FusedSeparableConv final : public Kernel {
 public:
  FusedSeparableConv(WindowAttributes window, std::int64_t filters, EpilogueProgram between, EpilogueProgram epilogue,
                     const conv::Variant& variant)
      : window_(std::move(window)),
        filters_(filters),
        between_(std::move(between)),
        epilogue_(std::move(epilogue)),
        variant_(variant) {}

  Result<std::vector<TensorType>> outputs(std::span<const Tensor> inputs) const override {
    using Types = Result<std::vector<TensorType>>;
    if (const std::string sentence = no_floats(inputs, kInputs); !sentence.empty()) return Types::failure(sentence);
    const Result<conv::Separable> made = convolutions(inputs);
    if (!made) return Types::failure(made.error());
    const conv::Geometry& g = made->depthwise.geometry;
    constexpr auto panel = static_cast<std::int64_t>(gemm::kPanel);
    const Shape expected[] = {
        {g.taps(), g.channels}, {g.channels}, {1, (filters_ + panel - 1) / panel, g.channels, panel}, {filters_}};
    if (const std::string sentence = wrong_shapes(inputs, 1, expected); !sentence.empty()) return Types::failure(sentence);
    if (const auto middle = between_.outputs(shape_of(g, window_.rank()), {}); !middle) return middle;
    return epilogue_.outputs(shape_of(made->pointwise.geometry, window_.rank()), inputs.subspan(kInputs));
  }

  Result<bool> run(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                   const Execution& execution) const override {
    conv::Separable separable = *convolutions(inputs);
    separable.pointwise.y = static_cast<float*>(outputs[0]);
    std::optional<elementwise::Epilogue> between, epilogue;
    const Shape middle = shape_of(separable.depthwise.geometry, window_.rank());
    if (Result<bool> set = attach_inside(between_, middle, separable.depthwise, between); !set) return set;
    const Shape raw = shape_of(separable.pointwise.geometry, window_.rank());
    if (Result<bool> set = attach(epilogue_, raw, inputs.subspan(kInputs), types, outputs, separable.pointwise, epilogue); !set)
      return set;
    conv::run(separable, variant_, execution.parallel_for);
    return true;
  }

 private:
  Result<conv::Separable> convolutions(std::span<const Tensor> inputs) const {
    using Made = Result<conv::Separable>;
    const Result<conv::Geometry> geometry = window_.over(inputs[0].shape);
    if (!geometry) return Made::failure(geometry.error());
    const auto data = [&](std::size_t i) { return static_cast<const float*>(inputs[i].data); };
    conv::Separable made{{.geometry = *geometry, .x = data(0), .weights = data(1), .bias = data(2), .y = nullptr},
                         {.geometry = {}, .x = nullptr, .weights = data(3), .bias = data(4), .y = nullptr}};
    made.depthwise.geometry.groups = std::max<std::int64_t>(geometry->channels, 1);
    conv::Geometry& products = made.pointwise.geometry;
    products.batch = geometry->batch;
    products.channels = geometry->channels;
    products.filters = filters_;
    for (int axis = 0; axis < 2; ++axis) products.input[axis] = products.output[axis] = geometry->output[axis];
    return made;
  }

  WindowAttributes window_;
  std::int64_t filters_;
  EpilogueProgram between_, epilogue_;
  const conv::Variant& variant_;
};

Result<std::unique_ptr<Kernel>> create(const Attributes& attributes, std::string_view name) {
  using Made = Result<std::unique_ptr<Kernel>>;
  const auto variant = find_variant(conv::variants(), name);
  if (!variant) return Made::failure(variant.error());
  Result<WindowAttributes> window = WindowAttributes::read(attributes);
  if (!window) return Made::failure(window.error());
  const std::int64_t filters = attributes.integer("filters").value_or(0);
  if (filters < 1) return Made::failure("It needs a positive attribute 'filters'.");
  Result<EpilogueProgram> between = EpilogueProgram::read_of_floats(attributes, (*variant)->isa, "between");
  if (!between) return Made::failure(between.error());
  Result<EpilogueProgram> epilogue = EpilogueProgram::read_of_floats(attributes, (*variant)->isa);
  if (!epilogue) return Made::failure(epilogue.error());
  return Made(
      std::make_unique<FusedSeparableConv>(std::move(*window), filters, std::move(*between), std::move(*epilogue), **variant));
}

}  // namespace

const Op& fused_separable_conv() {
  static const char* const attributes[] = {"kernel_shape", "strides", "pads",    "dilations",
                                           "auto_pad",     "filters", "between", "epilogue"};
  static const std::vector<Variant> list = list_variants(conv::variants());
  static const Op op{"FusedSeparableConv", attributes, list, create, infer_filters};
  return op;
}

}  // namespace onnxopt::ops
