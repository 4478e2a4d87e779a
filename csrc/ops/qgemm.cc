#include "csrc/ops/qgemm.h"

#include <algorithm>

#include "csrc/ops/bound_program.h"
#include "csrc/ops/device.h"
#include "csrc/ops/epilogue.h"
#include "csrc/ops/variants.h"
#include "kernels/cpu/qgemm/qgemm.h"
#include "kernels/cuda/qgemm/qgemm.h"

namespace onnxopt::ops {

namespace {

/// Inputs: X, the packed weights, their scales, the sums of their columns, X's scale and zero point (not `by_row`), the biases
/// (`biased`), the epilogue's further inputs, the result's scale and zero point (`output_dtype`).
struct Layout {
  std::int64_t columns = 0;
  bool by_row = false, biased = false;
  int output = kFloat;

  static constexpr std::size_t kX = 0, kWeights = 1, kScales = 2, kSums = 3, kScale = 4, kZero = 5;
  std::size_t bias() const { return by_row ? 4 : 6; }
  std::size_t epilogue() const { return bias() + (biased ? 1 : 0); }
  bool requantized() const { return output != kFloat; }
  /// The inputs at the end that are not the epilogue's.
  std::size_t at_end() const { return requantized() ? 2 : 0; }
  std::span<const Tensor> further(std::span<const Tensor> inputs) const {
    return inputs.subspan(epilogue(), inputs.size() - epilogue() - at_end());
  }
};

Result<Layout> read_layout(const Attributes& attributes) {
  Layout layout;
  layout.columns = attributes.integer("columns").value_or(0);
  if (layout.columns < 1) return Result<Layout>::failure("It needs a positive attribute 'columns'.");
  layout.by_row = attributes.integer("by_row").value_or(0) != 0;
  layout.biased = attributes.integer("biased").value_or(0) != 0;
  layout.output = static_cast<int>(attributes.integer("output_dtype").value_or(kFloat));
  if (layout.output != kFloat && layout.output != kUint8 && layout.output != kInt8)
    return Result<Layout>::failure("Its attribute 'output_dtype' is " + number(layout.output) + " and should be " + number(kUint8) +
                                   " (uint8) or " + number(kInt8) + " (int8).");
  return layout;
}

/// What kernels of all devices share: the sizes.
class QGemm : public Kernel {
 public:
  QGemm(Layout layout, EpilogueProgram epilogue) : layout_(layout), epilogue_(std::move(epilogue)) {}

  Result<std::vector<TensorType>> outputs(std::span<const Tensor> inputs) const override {
    using Types = Result<std::vector<TensorType>>;
    if (const std::string sentence = wrong_input(inputs); !sentence.empty()) return Types::failure(sentence);
    Types types = epilogue_.outputs(result_shape(inputs), layout_.further(inputs));
    if (types && layout_.requantized()) (*types)[0].type = layout_.output;
    return types;
  }

 protected:
  /// What X holds, and how that is to be quantized.
  qgemm::Source source_of(const Tensor& x) const {
    return x.type == kUint8  ? qgemm::Source::kUint8
           : x.type == kInt8 ? qgemm::Source::kInt8
           : layout_.by_row  ? qgemm::Source::kFloatRows
                             : qgemm::Source::kFloat;
  }

  Shape result_shape(std::span<const Tensor> inputs) const { return with_columns(inputs[0].shape, layout_.columns); }

  Layout layout_;
  EpilogueProgram epilogue_;

 private:
  /// A sentence that says which input does not fit; empty when all do.
  std::string wrong_input(std::span<const Tensor> inputs) const {
    if (std::string s = too_few(inputs, layout_.epilogue() + layout_.at_end()); !s.empty()) return s;
    const Tensor& x = inputs[0];
    if (x.shape.empty()) return "Input 0 is a scalar and should have rows.";
    const bool quantized = x.type == kUint8 || x.type == kInt8;
    if (x.type != kFloat && (layout_.by_row || !quantized))
      return "Input 0 is of type " + name_of(x.type) + " and should be float" + (layout_.by_row ? "." : ", uint8 or int8.");
    const auto panel = static_cast<std::int64_t>(qgemm::kPanel), group = static_cast<std::int64_t>(qgemm::kGroup);
    const Shape weights{(layout_.columns - 1) / panel + 1, (x.shape.back() + group - 1) / group, panel, group};
    if (std::string s = wrong(inputs, Layout::kWeights, kInt8, weights); !s.empty()) return s;
    if (std::string s = wrong(inputs, Layout::kScales, kFloat, {layout_.columns}); !s.empty()) return s;
    if (std::string s = wrong(inputs, Layout::kSums, kInt32, {layout_.columns}); !s.empty()) return s;
    if (layout_.biased)
      if (std::string s = wrong(inputs, layout_.bias(), kFloat, {layout_.columns}); !s.empty()) return s;
    if (layout_.requantized()) {
      if (std::string s = wrong(inputs, inputs.size() - 2, kFloat, {}); !s.empty()) return s;
      if (std::string s = wrong(inputs, inputs.size() - 1, layout_.output, {}); !s.empty()) return s;
    }
    if (layout_.by_row) return "";
    if (std::string s = wrong(inputs, Layout::kScale, kFloat, {}); !s.empty()) return s;
    const int type = inputs[Layout::kZero].type;
    if (quantized ? type != x.type : type != kUint8 && type != kInt8)
      return "Input " + number(Layout::kZero) + " is of type " + name_of(type) + " and should be " +
             (quantized ? name_of(x.type) : std::string("uint8 or int8")) + ".";
    return wrong(inputs, Layout::kZero, type, {});
  }
};

class CpuQGemm final : public QGemm {
 public:
  CpuQGemm(Layout layout, EpilogueProgram epilogue, const qgemm::Variant& variant)
      : QGemm(layout, std::move(epilogue)), variant_(variant) {}

  Result<bool> run(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                   const Execution& execution) const override {
    qgemm::Problem problem{};
    problem.a = inputs[0].data;
    problem.rows = rows_of(inputs[0].shape);
    problem.depth = inputs[0].shape.back();
    problem.columns = layout_.columns;
    describe_rows(inputs, problem);
    problem.weights = static_cast<const std::int8_t*>(inputs[Layout::kWeights].data);
    problem.weight_scales = static_cast<const float*>(inputs[Layout::kScales].data);
    problem.sums = static_cast<const std::int32_t*>(inputs[Layout::kSums].data);
    problem.bias = layout_.biased ? static_cast<const float*>(inputs[layout_.bias()].data) : nullptr;
    // A result that a single output is made of lies where that output goes.
    const bool in_place = !layout_.requantized() && (!epilogue_.present() || (types.size() == 1 && types[0].type == kFloat));
    if (layout_.requantized()) describe_bytes(inputs, static_cast<std::uint8_t*>(outputs[0]), problem);
    problem.c = in_place ? static_cast<float*>(outputs[0]) : nullptr;
    problem.clip = epilogue_.clip();
    std::optional<elementwise::Epilogue> epilogue;
    const std::span<const Tensor> further = layout_.further(inputs);
    if (const auto sum = epilogue_.sum(result_shape(inputs), further)) {
      problem.added = sum->added;
      problem.clip = sum->clip;
    } else if (epilogue_.gelu()) {
      problem.gelu = true;
    } else if (epilogue_.present()) {
      Result<elementwise::Epilogue> bound = epilogue_.bind(result_shape(inputs), further, types, outputs);
      if (!bound) return Result<bool>::failure(bound.error());
      epilogue = std::move(*bound);
      problem.epilogue = &*epilogue;
    }
    qgemm::run(problem, variant_, execution.parallel_for);
    return true;
  }

 private:
  /// How X is quantized, or is to be.
  void describe_rows(std::span<const Tensor> inputs, qgemm::Problem& problem) const {
    problem.source = source_of(inputs[0]);
    if (layout_.by_row) return;
    problem.scale = *static_cast<const float*>(inputs[Layout::kScale].data);
    const Tensor& zero = inputs[Layout::kZero];
    problem.zero = zero.type == kInt8 ? 128 + *static_cast<const std::int8_t*>(zero.data)
                                      : static_cast<int>(*static_cast<const std::uint8_t*>(zero.data));
  }

  /// How results are quantized.
  void describe_bytes(std::span<const Tensor> inputs, std::uint8_t* to, qgemm::Problem& problem) const {
    const Tensor &scale = inputs[inputs.size() - 2], &zero = inputs[inputs.size() - 1];
    const bool is_signed = layout_.output == kInt8;
    problem.bytes = to;
    problem.bytes_scale = *static_cast<const float*>(scale.data);
    problem.bytes_zero =
        is_signed ? static_cast<int>(*static_cast<const std::int8_t*>(zero.data)) : *static_cast<const std::uint8_t*>(zero.data);
    problem.bytes_lowest = is_signed ? -128 : 0;
  }

  const qgemm::Variant& variant_;
};

class CudaQGemm final : public QGemm {
 public:
  CudaQGemm(Layout layout, EpilogueProgram epilogue, Place<qgemm::cuda::Problem> place)
      : QGemm(layout, std::move(epilogue)), place_(place) {}

  Result<bool> run(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                   const Execution& execution) const override {
    const auto start = [&](std::span<const Tensor> tensors, std::span<void* const> memory, void* stream) {
      return this->start(tensors, types[0].shape, memory, stream);
    };
    return place_.run(inputs, types, outputs, execution, start);
  }

 private:
  /// A scale and the zero point behind it.
  static qgemm::cuda::Quantization quantization_of(const Tensor& scale, const Tensor& zero) {
    return {static_cast<const float*>(scale.data), zero.data, zero.type == kInt8};
  }

  Result<bool> start(std::span<const Tensor> inputs, const Shape& shape, std::span<void* const> outputs, void* stream) const {
    qgemm::cuda::Problem problem;
    problem.a = inputs[0].data;
    problem.source = source_of(inputs[0]);
    problem.rows = rows_of(inputs[0].shape);
    problem.depth = inputs[0].shape.back();
    problem.columns = layout_.columns;
    if (problem.rows == 0) return true;
    if (!layout_.by_row) problem.of_a = quantization_of(inputs[Layout::kScale], inputs[Layout::kZero]);
    problem.weights = static_cast<const std::int8_t*>(inputs[Layout::kWeights].data);
    problem.weight_scales = static_cast<const float*>(inputs[Layout::kScales].data);
    problem.sums = static_cast<const std::int32_t*>(inputs[Layout::kSums].data);
    problem.bias = layout_.biased ? static_cast<const float*>(inputs[layout_.bias()].data) : nullptr;
    if (layout_.requantized()) {
      problem.bytes = static_cast<std::uint8_t*>(outputs[0]);
      problem.of_bytes = quantization_of(inputs[inputs.size() - 2], inputs[inputs.size() - 1]);
    }
    const elementwise::Program* const program = epilogue_.program();
    if (program == nullptr) {
      if (!layout_.requantized()) problem.c = static_cast<float*>(outputs[0]);
      return place_.start(problem, stream);
    }
    BoundProgram after;
    after.take(1, shape);
    after.read(layout_.further(inputs));
    after.write(outputs, shape);
    const elementwise::cuda::Bound epilogue = after.bound(*program);
    problem.epilogue = &epilogue;
    return place_.start(problem, stream);
  }

  Place<qgemm::cuda::Problem> place_;
};

constexpr const char* kCudaVariant = "qgemm__cuda";
/// The code of the CUDA kernel on the host: for tests, never chosen.
constexpr std::string_view kEmulatedVariant = "qgemm__cuda_emulated";

/// A kernel for a CUDA device, or its code on the host.
Result<std::unique_ptr<Kernel>> make_cuda_kernel(const Layout& layout, EpilogueProgram epilogue, std::string_view name) {
  using Made = Result<std::unique_ptr<Kernel>>;
  const auto place = place_of<qgemm::cuda::Problem, qgemm::cuda::emulate, qgemm::cuda::kernels>(name == kEmulatedVariant);
  if (!place) return Made::failure(place.error());
  return Made(std::make_unique<CudaQGemm>(layout, std::move(epilogue), *place));
}

Result<std::unique_ptr<Kernel>> create(const Attributes& attributes, std::string_view name) {
  using Made = Result<std::unique_ptr<Kernel>>;
  const auto variant = find_variant(qgemm::variants(), name);
  const bool for_cuda = name == kCudaVariant || name == kEmulatedVariant;
  if (!variant && !for_cuda) return Made::failure(variant.error());
  const Result<Layout> layout = read_layout(attributes);
  if (!layout) return Made::failure(layout.error());
  Result<EpilogueProgram> epilogue = EpilogueProgram::read(attributes, 1, for_cuda ? "scalar" : (*variant)->isa);
  if (!epilogue) return Made::failure(epilogue.error());
  if (layout->requantized() && epilogue->output_types() != std::vector<int>{kFloat})
    return Made::failure("Its epilogue makes other results than one float, which cannot be quantized.");
  if (for_cuda) return make_cuda_kernel(*layout, std::move(*epilogue), name);
  return Made(std::make_unique<CpuQGemm>(*layout, std::move(*epilogue), **variant));
}

std::vector<std::optional<InferredType>> infer(const Attributes& attributes, std::span<const InferredType> inputs) {
  const Result<Layout> layout = read_layout(attributes);
  if (!layout || inputs.empty() || inputs[0].shape.empty()) return {};
  const Result<EpilogueProgram> epilogue = EpilogueProgram::read(attributes, 1, "scalar");
  if (!epilogue) return {};
  InferredType result{kFloat, inputs[0].shape};
  result.shape.back() = {layout->columns, ""};
  std::vector<std::optional<InferredType>> types;
  for (const int type : epilogue->output_types())
    types.push_back(InferredType{layout->requantized() ? layout->output : type, result.shape});
  return types;
}

std::int64_t occupy(std::string_view name, std::int64_t rounds) {
  const auto variant = find_variant(qgemm::variants(), name);
  return variant ? (*variant)->occupy(rounds) : 0;
}

}  // namespace

const Op& qgemm() {
  static const char* const attributes[] = {"columns", "by_row", "biased", "epilogue", "output_dtype"};
  static const std::vector<Variant> list = list_variants(qgemm::variants(), {{kCudaVariant, "cuda"}});
  static const Op op{"QGemm", attributes, list, create, infer, occupy};
  return op;
}

}  // namespace onnxopt::ops
