#include "csrc/ops/fused_squeeze_excite.h"

#include "csrc/ops/convolution.h"
#include "csrc/ops/variants.h"

namespace onnxopt::ops {

namespace {

/// Inputs: X, the packed product [1, ceil(R / 16), C, 16] that squeezes C means and its biases [R], the packed product
/// [1, ceil(C / 16), R, 16] that makes gates and its biases [C], the epilogue's further inputs.
constexpr std::size_t kInputs = 5;

Shape packed_shape(std::int64_t depth, std::int64_t filters) {
  constexpr auto panel = static_cast<std::int64_t>(gemm::kPanel);
  return {1, (filters + panel - 1) / panel, depth, panel};
}

/// A product of vectors, one per image.
conv::Convolution product(std::int64_t batch, std::int64_t channels, std::int64_t filters, const Tensor& weights,
                          const Tensor& bias) {
  conv::Convolution made{.geometry = {},
                         .x = nullptr,
                         .weights = static_cast<const float*>(weights.data),
                         .bias = static_cast<const float*>(bias.data),
                         .y = nullptr};
  made.geometry.batch = batch;
  made.geometry.channels = channels;
  made.geometry.filters = filters;
  return made;
}

class FusedSqueezeExcite final : public Kernel {
 public:
  FusedSqueezeExcite(EpilogueProgram between, EpilogueProgram gate, EpilogueProgram epilogue, const conv::Variant& variant)
      : between_(std::move(between)), gate_(std::move(gate)), epilogue_(std::move(epilogue)), variant_(variant) {}

  Result<std::vector<TensorType>> outputs(std::span<const Tensor> inputs) const override {
    using Types = Result<std::vector<TensorType>>;
    if (const std::string sentence = no_floats(inputs, kInputs); !sentence.empty()) return Types::failure(sentence);
    const Shape& x = inputs[0].shape;
    if (x.size() < 3) return Types::failure("Input 0 has the shape " + text_of(x) + " and should have at least 3 dims.");
    if (inputs[2].shape.size() != 1)
      return Types::failure("Input 2 has the shape " + text_of(inputs[2].shape) + " and should have 1 dim.");
    const std::int64_t channels = x.back(), squeezed = inputs[2].shape[0];
    const Shape expected[] = {packed_shape(channels, squeezed), {squeezed}, packed_shape(squeezed, channels), {channels}};
    if (const std::string sentence = wrong_shapes(inputs, 1, expected); !sentence.empty()) return Types::failure(sentence);
    if (const auto inner = between_.outputs({x[0], squeezed}, {}); !inner) return inner;
    if (const auto inner = gate_.outputs({x[0], channels}, {}); !inner) return inner;
    return epilogue_.outputs(x, inputs.subspan(kInputs));
  }

  Result<bool> run(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                   const Execution& execution) const override {
    const Shape& x = inputs[0].shape;
    const std::int64_t batch = x.front(), channels = x.back(), squeezed = inputs[2].shape[0];
    conv::SqueezeExcite block{product(batch, channels, squeezed, inputs[1], inputs[2]),
                              product(batch, squeezed, channels, inputs[3], inputs[4]),
                              {.geometry = {},
                               .x = static_cast<const float*>(inputs[0].data),
                               .weights = nullptr,
                               .bias = nullptr,
                               .y = static_cast<float*>(outputs[0])}};
    conv::Geometry& g = block.scaled.geometry;
    g.batch = batch;
    g.channels = g.filters = channels;
    for (std::size_t axis = 1; axis + 1 < x.size(); ++axis) g.input[0] = g.output[0] *= x[axis];
    std::optional<elementwise::Epilogue> between, gate, epilogue;
    if (Result<bool> set = attach_inside(between_, {batch, squeezed}, block.squeeze, between); !set) return set;
    if (Result<bool> set = attach_inside(gate_, {batch, channels}, block.excite, gate); !set) return set;
    const std::span<const Tensor> further = inputs.subspan(kInputs);
    if (Result<bool> set = attach(epilogue_, x, further, types, outputs, block.scaled, epilogue); !set) return set;
    conv::run(block, variant_, execution.parallel_for);
    return true;
  }

 private:
  EpilogueProgram between_, gate_, epilogue_;
  const conv::Variant& variant_;
};

Result<std::unique_ptr<Kernel>> create(const Attributes& attributes, std::string_view name) {
  using Made = Result<std::unique_ptr<Kernel>>;
  const auto variant = find_variant(conv::variants(), name);
  if (!variant) return Made::failure(variant.error());
  std::vector<EpilogueProgram> programs;
  for (const char* attribute : {"between", "gate", "epilogue"}) {
    Result<EpilogueProgram> program = EpilogueProgram::read_of_floats(attributes, (*variant)->isa, attribute);
    if (!program) return Made::failure(program.error());
    programs.push_back(std::move(*program));
  }
  return Made(
      std::make_unique<FusedSqueezeExcite>(std::move(programs[0]), std::move(programs[1]), std::move(programs[2]), **variant));
}

std::vector<std::optional<InferredType>> infer(const Attributes&, std::span<const InferredType> inputs) {
  if (inputs.empty() || inputs[0].shape.size() < 3) return {};
  return {InferredType{kFloat, inputs[0].shape}};
}

}  // namespace

const Op& fused_squeeze_excite() {
  static const char* const attributes[] = {"between", "gate", "epilogue"};
  static const std::vector<Variant> list = list_variants(conv::variants());
  static const Op op{"FusedSqueezeExcite", attributes, list, create, infer, nullptr, true};
  return op;
}

}  // namespace onnxopt::ops
