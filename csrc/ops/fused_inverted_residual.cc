#include "csrc/ops/fused_inverted_residual.h"

#include "csrc/ops/convolution.h"
#include "csrc/ops/variants.h"
#include "csrc/ops/window.h"

namespace onnxopt::ops {

namespace {

/// Inputs: X, the product that expands [1, ceil(E / 16), C, 16] and its biases [E], the depthwise filters [taps, E] and biases [E],
/// the product that projects [1, ceil(M / 16), E, 16] and its biases [M], the epilogue's further inputs.
constexpr std::size_t kInputs = 7;

/// What is computed of the three results.
struct Programs {
  EpilogueProgram expanded, between, epilogue;
};

class FusedInvertedResidual final : public Kernel {
 public:
  FusedInvertedResidual(WindowAttributes window, std::int64_t expanded, std::int64_t filters, Programs programs,
                        const conv::Variant& variant)
      : window_(std::move(window)), expanded_(expanded), filters_(filters), programs_(std::move(programs)), variant_(variant) {}

  Result<std::vector<TensorType>> outputs(std::span<const Tensor> inputs) const override {
    using Types = Result<std::vector<TensorType>>;
    if (const std::string sentence = no_floats(inputs, kInputs); !sentence.empty()) return Types::failure(sentence);
    const Result<conv::InvertedResidual> made = convolutions(inputs);
    if (!made) return Types::failure(made.error());
    const conv::Geometry &inner = made->expand.geometry, &g = made->depthwise.geometry;
    constexpr auto panel = static_cast<std::int64_t>(gemm::kPanel);
    const auto packed = [](std::int64_t depth, std::int64_t filters) {
      return Shape{1, (filters + panel - 1) / panel, depth, panel};
    };
    const Shape expected[] = {packed(inner.channels, expanded_), {expanded_}, {g.taps(), expanded_}, {expanded_},
                              packed(expanded_, filters_),       {filters_}};
    if (const std::string sentence = wrong_shapes(inputs, 1, expected); !sentence.empty()) return Types::failure(sentence);
    if (const auto raw = programs_.expanded.outputs(shape_of(inner, window_.rank()), {}); !raw) return raw;
    if (const auto raw = programs_.between.outputs(shape_of(g, window_.rank()), {}); !raw) return raw;
    return programs_.epilogue.outputs(shape_of(made->project.geometry, window_.rank()), inputs.subspan(kInputs));
  }

  Result<bool> run(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                   const Execution& execution) const override {
    conv::InvertedResidual block = *convolutions(inputs);
    block.project.y = static_cast<float*>(outputs[0]);
    std::optional<elementwise::Epilogue> expanded, between, epilogue;
    const auto raw = [&](const conv::Convolution& convolution) { return shape_of(convolution.geometry, window_.rank()); };
    if (Result<bool> set = attach_inside(programs_.expanded, raw(block.expand), block.expand, expanded); !set) return set;
    if (Result<bool> set = attach_inside(programs_.between, raw(block.depthwise), block.depthwise, between); !set) return set;
    const std::span<const Tensor> further = inputs.subspan(kInputs);
    if (Result<bool> set = attach(programs_.epilogue, raw(block.project), further, types, outputs, block.project, epilogue); !set)
      return set;
    conv::run(block, variant_, execution.parallel_for);
    return true;
  }

 private:
  Result<conv::InvertedResidual> convolutions(std::span<const Tensor> inputs) const {
    using Made = Result<conv::InvertedResidual>;
    const Result<conv::Geometry> geometry = window_.over(inputs[0].shape);
    if (!geometry) return Made::failure(geometry.error());
    const auto product = [&](const std::int64_t (&size)[2], std::int64_t channels, std::int64_t filters) {
      conv::Geometry g;
      g.batch = geometry->batch;
      g.channels = channels;
      g.filters = filters;
      for (int axis = 0; axis < 2; ++axis) g.input[axis] = g.output[axis] = size[axis];
      return g;
    };
    const auto convolution = [&](const conv::Geometry& g, std::size_t weights) {
      const auto data = [&](std::size_t i) { return static_cast<const float*>(inputs[i].data); };
      return conv::Convolution{.geometry = g, .x = data(0), .weights = data(weights), .bias = data(weights + 1), .y = nullptr};
    };
    conv::Geometry windows = *geometry;
    windows.channels = windows.filters = windows.groups = expanded_;
    return conv::InvertedResidual{convolution(product(geometry->input, geometry->channels, expanded_), 1), convolution(windows, 3),
                                  convolution(product(geometry->output, expanded_, filters_), 5)};
  }

  WindowAttributes window_;
  std::int64_t expanded_, filters_;
  Programs programs_;
  const conv::Variant& variant_;
};

Result<std::unique_ptr<Kernel>> create(const Attributes& attributes, std::string_view name) {
  using Made = Result<std::unique_ptr<Kernel>>;
  const auto variant = find_variant(conv::variants(), name);
  if (!variant) return Made::failure(variant.error());
  Result<WindowAttributes> window = WindowAttributes::read(attributes);
  if (!window) return Made::failure(window.error());
  std::int64_t channels[2];
  const char* const counts[] = {"expanded", "filters"};
  for (int i = 0; i < 2; ++i) {
    channels[i] = attributes.integer(counts[i]).value_or(0);
    if (channels[i] < 1) return Made::failure("It needs a positive attribute '" + std::string(counts[i]) + "'.");
  }
  EpilogueProgram programs[3];
  const char* const texts[] = {"expansion", "between", "epilogue"};
  for (int i = 0; i < 3; ++i) {
    Result<EpilogueProgram> program = EpilogueProgram::read_of_floats(attributes, (*variant)->isa, texts[i]);
    if (!program) return Made::failure(program.error());
    programs[i] = std::move(*program);
  }
  return Made(std::make_unique<FusedInvertedResidual>(
      std::move(*window), channels[0], channels[1],
      Programs{std::move(programs[0]), std::move(programs[1]), std::move(programs[2])}, **variant));
}

}  // namespace

const Op& fused_inverted_residual() {
  static const char* const attributes[] = {"kernel_shape", "strides", "pads",      "dilations", "auto_pad",
                                           "expanded",     "filters", "expansion", "between",   "epilogue"};
  static const std::vector<Variant> list = list_variants(conv::variants());
  static const Op op{"FusedInvertedResidual", attributes, list, create, infer_filters};
  return op;
}

}  // namespace onnxopt::ops
