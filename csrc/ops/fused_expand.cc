#include "csrc/ops/fused_expand.h"

#include <algorithm>

#include "csrc/ops/convolution.h"
#include "csrc/ops/variants.h"
#include "kernels/cpu/sizes.h"

namespace onnxopt::ops {

namespace {

/// How often a pixel [batch, height, width, channels] is repeated; with filters, by a transposed convolution. Inputs: X, and with
/// filters the packed weights and the biases of each column of the kernel; the epilogue's further inputs.
struct Layout {
  std::int64_t factors[2] = {1, 1};
  std::int64_t filters = 0;

  std::size_t epilogue() const { return filters > 0 ? 3 : 1; }
};

Result<Layout> read_layout(const Attributes& attributes, bool transposed) {
  using Made = Result<Layout>;
  const char* const name = transposed ? "kernel_shape" : "factors";
  const auto factors = attributes.integers(name);
  if (!factors || factors->size() != 2 || *std::min_element(factors->begin(), factors->end()) < 1 ||
      *std::max_element(factors->begin(), factors->end()) > kMostSize)
    return Made::failure("It needs an attribute '" + std::string(name) + "' of two positive numbers less than 2^31.");
  Layout layout{{(*factors)[0], (*factors)[1]}, transposed ? attributes.integer("filters").value_or(0) : 0};
  if (transposed && (layout.filters < 1 || layout.filters > kMostSize))
    return Made::failure("It needs a positive attribute 'filters' less than 2^31.");
  return layout;
}

class FusedExpand final : public Kernel {
 public:
  FusedExpand(Layout layout, EpilogueProgram epilogue, const conv::Variant& variant)
      : layout_(layout), epilogue_(std::move(epilogue)), variant_(variant) {}

  Result<std::vector<TensorType>> outputs(std::span<const Tensor> inputs) const override {
    using Types = Result<std::vector<TensorType>>;
    if (const std::string sentence = no_floats(inputs, layout_.epilogue()); !sentence.empty()) return Types::failure(sentence);
    const Shape& x = inputs[0].shape;
    if (x.size() != 4) return Types::failure("Input 0 has the shape " + text_of(x) + " and should have 4 dims.");
    if (layout_.filters > 0) {
      constexpr auto panel = static_cast<std::int64_t>(gemm::kPanel);
      const std::int64_t width = layout_.factors[1] * layout_.filters;
      const Shape expected[] = {{layout_.factors[0], (width + panel - 1) / panel, x.back(), panel}, {width}};
      if (const std::string sentence = wrong_shapes(inputs, 1, expected); !sentence.empty()) return Types::failure(sentence);
    }
    if (!is_countable(Shape{x[0], x[1], layout_.factors[0], x[2], layout_.factors[1], std::max(layout_.filters, x[3])}))
      return Types::failure("Its result for input 0 of the shape " + text_of(x) + " is too large.");
    return epilogue_.outputs(result_shape(x), inputs.subspan(layout_.epilogue()));
  }

  Result<bool> run(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                   const Execution& execution) const override {
    const Shape& x = inputs[0].shape;
    const Shape raw = result_shape(x);
    const bool transposed = layout_.filters > 0;
    const auto data = [&](std::size_t i) { return static_cast<const float*>(inputs[i].data); };
    conv::Convolution convolution{.geometry = {},
                                  .x = data(0),
                                  .weights = transposed ? data(1) : nullptr,
                                  .bias = transposed ? data(2) : nullptr,
                                  .y = static_cast<float*>(outputs[0])};
    conv::Geometry& g = convolution.geometry;
    g.batch = x[0];
    g.channels = x[3];
    g.filters = raw[3];
    for (std::size_t axis = 0; axis < 2; ++axis) {
      g.kernel[axis] = g.strides[axis] = layout_.factors[axis];
      g.input[axis] = x[1 + axis];
      g.output[axis] = raw[1 + axis];
    }
    const std::span<const Tensor> further = inputs.subspan(layout_.epilogue());
    std::optional<elementwise::Epilogue> epilogue;
    if (Result<bool> set = attach(epilogue_, raw, further, types, outputs, convolution, epilogue); !set) return set;
    (transposed ? conv::run_transposed : conv::run_repeat)(convolution, variant_, execution.parallel_for);
    return true;
  }

 private:
  Shape result_shape(const Shape& x) const {
    return {x[0], x[1] * layout_.factors[0], x[2] * layout_.factors[1], layout_.filters > 0 ? layout_.filters : x[3]};
  }

  Layout layout_;
  EpilogueProgram epilogue_;
  const conv::Variant& variant_;
};

template <bool kTransposed>
Result<std::unique_ptr<Kernel>> create(const Attributes& attributes, std::string_view name) {
  using Made = Result<std::unique_ptr<Kernel>>;
  const auto variant = find_variant(conv::variants(), name);
  if (!variant) return Made::failure(variant.error());
  const Result<Layout> layout = read_layout(attributes, kTransposed);
  if (!layout) return Made::failure(layout.error());
  Result<EpilogueProgram> epilogue = EpilogueProgram::read_of_floats(attributes, (*variant)->isa);
  if (!epilogue) return Made::failure(epilogue.error());
  return Made(std::make_unique<FusedExpand>(*layout, std::move(*epilogue), **variant));
}

template <bool kTransposed>
std::vector<std::optional<InferredType>> infer(const Attributes& attributes, std::span<const InferredType> inputs) {
  const Result<Layout> layout = read_layout(attributes, kTransposed);
  if (!layout || inputs.empty() || inputs[0].shape.size() != 4) return {};
  std::vector<Dim> shape = inputs[0].shape;
  for (std::size_t axis = 0; axis < 2; ++axis)
    if (layout->factors[axis] > 1)
      shape[1 + axis] = shape[1 + axis].size < 0 ? Dim{-1, fresh_dim()} : Dim{shape[1 + axis].size * layout->factors[axis], ""};
  if (kTransposed) shape[3] = {layout->filters, ""};
  return {InferredType{kFloat, std::move(shape)}};
}

const std::vector<Variant>& variants() {
  static const std::vector<Variant> list = list_variants(conv::variants());
  return list;
}

}  // namespace

const Op& fused_conv_transpose() {
  static const char* const attributes[] = {"kernel_shape", "filters", "epilogue"};
  static const Op op{"FusedConvTranspose", attributes, variants(), create<true>, infer<true>};
  return op;
}

const Op& fused_resize() {
  static const char* const attributes[] = {"factors", "epilogue"};
  static const Op op{"FusedResize", attributes, variants(), create<false>, infer<false>};
  return op;
}

}  // namespace onnxopt::ops
