#include "csrc/ops/fused_conv.h"

#include <algorithm>

#include "csrc/ops/convolution.h"
#include "csrc/ops/variants.h"
#include "csrc/ops/window.h"

namespace onnxopt::ops {

namespace {

/// What a node says besides its windows. Inputs: X, the packed weights, the biases if there are any, the epilogue's further inputs.
struct Layout {
  std::int64_t filters = 0, groups = 1;
  bool biased = false;
  bool planar = false;  // X is [batch, channels, (height,) width]

  std::size_t epilogue() const { return biased ? 3 : 2; }
};

Result<Layout> read_layout(const Attributes& attributes) {
  using Made = Result<Layout>;
  Layout layout{attributes.integer("filters").value_or(0), attributes.integer("group").value_or(1),
                attributes.integer("biased").value_or(0) != 0, attributes.integer("planar").value_or(0) != 0};
  if (layout.filters < 1) return Made::failure("It needs a positive attribute 'filters'.");
  if (layout.groups < 1 || layout.filters % layout.groups != 0)
    return Made::failure("Its attribute 'group' is " + number(layout.groups) + " and should divide its " + number(layout.filters) +
                         " filters.");
  if (layout.planar && layout.groups != 1) return Made::failure("With 'planar' it cannot have groups.");
  return layout;
}

/// A shape [batch, channels, ...], channels-last.
template <typename Shape>
Shape channels_last(Shape shape) {
  if (shape.size() > 2) std::rotate(shape.begin() + 1, shape.begin() + 2, shape.end());
  return shape;
}

class FusedConv final : public Kernel {
 public:
  FusedConv(WindowAttributes window, Layout layout, EpilogueProgram epilogue, const conv::Variant& variant)
      : window_(std::move(window)), layout_(layout), epilogue_(std::move(epilogue)), variant_(variant) {}

  Result<std::vector<TensorType>> outputs(std::span<const Tensor> inputs) const override {
    using Types = Result<std::vector<TensorType>>;
    if (const std::string sentence = no_floats(inputs, layout_.epilogue()); !sentence.empty()) return Types::failure(sentence);
    const Result<conv::Geometry> geometry = geometry_of(inputs);
    if (!geometry) return Types::failure(geometry.error());
    if (const std::string sentence = wrong_weights(inputs, *geometry); !sentence.empty()) return Types::failure(sentence);
    return epilogue_.outputs(shape_of(*geometry, window_.rank()), inputs.subspan(layout_.epilogue()));
  }

  Result<bool> run(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                   const Execution& execution) const override {
    const auto data = [&](std::size_t i) { return static_cast<const float*>(inputs[i].data); };
    conv::Convolution convolution{.geometry = *geometry_of(inputs),
                                  .x = data(0),
                                  .weights = data(1),
                                  .bias = layout_.biased ? data(2) : nullptr,
                                  .y = static_cast<float*>(outputs[0]),
                                  .planar = layout_.planar};
    const Shape raw = shape_of(convolution.geometry, window_.rank());
    const std::span<const Tensor> further = inputs.subspan(layout_.epilogue());
    std::optional<elementwise::Epilogue> epilogue;
    if (Result<bool> set = attach(epilogue_, raw, further, types, outputs, convolution, epilogue); !set) return set;
    conv::run(convolution, variant_, execution.parallel_for);
    return true;
  }

 private:
  Result<conv::Geometry> geometry_of(std::span<const Tensor> inputs) const {
    Result<conv::Geometry> geometry = window_.over(layout_.planar ? channels_last(inputs[0].shape) : inputs[0].shape);
    if (!geometry) return geometry;
    geometry->filters = layout_.filters;
    geometry->groups = layout_.groups;
    return geometry;
  }

  /// A sentence that says which input does not fit; empty when all do.
  std::string wrong_weights(std::span<const Tensor> inputs, const conv::Geometry& geometry) const {
    if (geometry.channels % geometry.groups != 0)
      return "Input 0 has " + number(geometry.channels) + " channels, which " + number(geometry.groups) + " groups cannot share.";
    constexpr auto panel = static_cast<std::int64_t>(gemm::kPanel);
    const std::int64_t panels = (geometry.filters / geometry.groups + panel - 1) / panel;
    const Shape packed = geometry.is_lanewise()
                             ? Shape{geometry.taps() * (geometry.channels / geometry.groups), geometry.filters}
                             : Shape{geometry.groups, panels, geometry.taps() * (geometry.channels / geometry.groups), panel};
    if (inputs[1].shape != packed)
      return "Input 1 has the shape " + text_of(inputs[1].shape) + " and should have " + text_of(packed) + ".";
    if (layout_.planar && geometry.dilations[1] != 1) return "With 'planar' it cannot be dilated along lines.";
    if (layout_.biased && inputs[2].shape != Shape{geometry.filters})
      return "Input 2 has the shape " + text_of(inputs[2].shape) + " and should have " + text_of({geometry.filters}) + ".";
    return "";
  }

  WindowAttributes window_;
  Layout layout_;
  EpilogueProgram epilogue_;
  const conv::Variant& variant_;
};

Result<std::unique_ptr<Kernel>> create(const Attributes& attributes, std::string_view name) {
  using Made = Result<std::unique_ptr<Kernel>>;
  const auto variant = find_variant(conv::variants(), name);
  if (!variant) return Made::failure(variant.error());
  Result<WindowAttributes> window = WindowAttributes::read(attributes);
  if (!window) return Made::failure(window.error());
  const Result<Layout> layout = read_layout(attributes);
  if (!layout) return Made::failure(layout.error());
  Result<EpilogueProgram> epilogue = EpilogueProgram::read_of_floats(attributes, (*variant)->isa);
  if (!epilogue) return Made::failure(epilogue.error());
  return Made(std::make_unique<FusedConv>(std::move(*window), *layout, std::move(*epilogue), **variant));
}

std::vector<std::optional<InferredType>> infer(const Attributes& attributes, std::span<const InferredType> inputs) {
  const Result<Layout> layout = read_layout(attributes);
  if (!layout || inputs.empty()) return {};
  const std::vector<Dim>& x = inputs[0].shape;
  return infer_windows(attributes, layout->planar ? channels_last(x) : x, kFloat, layout->filters);
}

}  // namespace

const Op& fused_conv() {
  static const char* const attributes[] = {"kernel_shape", "strides", "pads",   "dilations", "auto_pad",
                                           "filters",      "group",   "biased", "planar",    "epilogue"};
  static const std::vector<Variant> list = list_variants(conv::variants());
  static const Op op{"FusedConv", attributes, list, create, infer};
  return op;
}

}  // namespace onnxopt::ops
