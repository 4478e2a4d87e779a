#include "csrc/ops/fused_gemm.h"

#include "csrc/ops/bound_program.h"
#include "csrc/ops/device.h"
#include "csrc/ops/epilogue.h"
#include "csrc/ops/two_bytes.h"
#include "csrc/ops/variants.h"
#include "kernels/cpu/gemm/gemm.h"
#include "kernels/cpu/sizes.h"
#include "kernels/cuda/gemm/gemm.h"

namespace onnxopt::ops {

namespace {

/// Inputs: X, the packed weights of each product, the scales of each where they are integers (`block`), the biases of each product
/// where there are any, the epilogue's further inputs.
struct Layout {
  std::size_t products = 1;
  std::int64_t columns = 0, block = 0;
  bool biased = false;

  std::size_t scales() const { return 1 + products; }
  std::size_t biases() const { return scales() + (block > 0 ? products : 0); }
  std::size_t epilogue() const { return biases() + (biased ? products : 0); }
};

Result<Layout> read_layout(const Attributes& attributes) {
  using Made = Result<Layout>;
  Layout layout;
  const std::int64_t products = attributes.integer("products").value_or(1);
  if (products < 1 || products > static_cast<std::int64_t>(gemm::kMostProducts))
    return Made::failure("Its attribute 'products' is " + number(products) + " and should be 1 to " + number(gemm::kMostProducts) +
                         ".");
  layout.products = static_cast<std::size_t>(products);
  layout.columns = attributes.integer("columns").value_or(0);
  if (layout.columns < 1) return Made::failure("It needs a positive attribute 'columns'.");
  layout.block = attributes.integer("block").value_or(0);
  if (layout.block < 0 || layout.block > kMostSize)
    return Made::failure("Its attribute 'block' is " + number(layout.block) + " and should be positive and less than 2^31.");
  layout.biased = attributes.integer("biased").value_or(0) != 0;
  return layout;
}

/// What kernels of all devices share: the sizes.
class FusedGemm : public Kernel {
 public:
  FusedGemm(Layout layout, EpilogueProgram epilogue) : layout_(layout), epilogue_(std::move(epilogue)) {}

  Result<std::vector<TensorType>> outputs(std::span<const Tensor> inputs) const override {
    using Types = Result<std::vector<TensorType>>;
    if (const std::string sentence = wrong_input(inputs); !sentence.empty()) return Types::failure(sentence);
    return epilogue_.outputs(result_shape(inputs), inputs.subspan(layout_.epilogue()), inputs[0].type);
  }

 protected:
  Shape result_shape(std::span<const Tensor> inputs) const { return with_columns(inputs[0].shape, layout_.columns); }

  /// A sentence that says which input does not fit; empty when all do.
  std::string wrong_input(std::span<const Tensor> inputs) const {
    if (std::string sentence = too_few(inputs, layout_.epilogue()); !sentence.empty()) return sentence;
    const int own = inputs[0].type;
    if (!is_of_two_bytes(own) && own != kFloat) return wrong(inputs, 0, kFloat, inputs[0].shape);
    if (layout_.block > 0 && own != kFloat) return wrong(inputs, 0, kFloat, inputs[0].shape);
    if (inputs[0].shape.empty()) return "Input 0 is a scalar and should have rows.";
    if (layout_.block > 0 && inputs[1].type != kInt8 && inputs[1].type != kInt4)
      return "Input 1 is of type " + name_of(inputs[1].type) + " and should be int8 or int4.";
    const std::int64_t panels = (layout_.columns - 1) / kPanel + 1, depth = inputs[0].shape.back();
    const Shape weights{panels, depth, kPanel}, bias{layout_.columns};
    const Shape scales{panels, layout_.block > 0 ? (depth + layout_.block - 1) / layout_.block : 0, kPanel};
    for (std::size_t i = 1; i < layout_.epilogue(); ++i) {
      const bool is_weights = i < layout_.scales();
      const int type = is_weights && layout_.block > 0 ? inputs[1].type : own;
      const Shape& shape = is_weights ? weights : i < layout_.biases() ? scales : bias;
      if (std::string sentence = wrong(inputs, i, type, shape); !sentence.empty()) return sentence;
    }
    return "";
  }

  static constexpr auto kPanel = static_cast<std::int64_t>(gemm::kPanel);

  Layout layout_;
  EpilogueProgram epilogue_;
};

class CpuGemm final : public FusedGemm {
 public:
  CpuGemm(Layout layout, EpilogueProgram epilogue, const gemm::Variant& variant)
      : FusedGemm(layout, std::move(epilogue)), variant_(variant) {}

  Result<bool> run(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                   const Execution& execution) const override {
    return inputs[0].type == kFloat ? run_floats(inputs, types, outputs, execution)
                                    : run_two_bytes(inputs, types, outputs, execution);
  }

 private:
  gemm::Problem problem_of(std::span<const Tensor> inputs) const {
    const std::int64_t depth = inputs[0].shape.back();
    return {static_cast<const float*>(inputs[0].data),
            depth,
            rows_of(inputs[0].shape),
            depth,
            layout_.columns,
            nullptr,
            0,
            nullptr,
            nullptr};
  }

  Result<bool> run_floats(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                          const Execution& execution) const {
    gemm::Problem problem = problem_of(inputs);
    problem.clip = epilogue_.clip();
    // A single result that a single output is made of lies where that output goes.
    const bool in_place = !epilogue_.present() || (layout_.products == 1 && types.size() == 1 && types[0].type == kFloat);
    gemm::Product products[gemm::kMostProducts];
    for (std::size_t i = 0; i < layout_.products; ++i) products[i] = product(inputs, i, in_place ? outputs[i] : nullptr);
    if (layout_.block > 0) {
      problem.kind = inputs[1].type == kInt4 ? gemm::Weights::kInt4 : gemm::Weights::kInt8;
      problem.block = layout_.block;
    }
    problem.products = products;
    problem.product_count = layout_.products;
    std::optional<elementwise::Epilogue> epilogue;
    const std::span<const Tensor> further = inputs.subspan(layout_.epilogue());
    if (const auto sum = epilogue_.sum(result_shape(inputs), further)) {
      problem.added = sum->added;
      problem.clip = sum->clip;
    } else if (epilogue_.present()) {
      Result<elementwise::Epilogue> bound = epilogue_.bind(result_shape(inputs), further, types, outputs);
      if (!bound) return Result<bool>::failure(bound.error());
      epilogue = std::move(*bound);
      problem.epilogue = &*epilogue;
    }
    gemm::run(problem, variant_, execution.parallel_for);
    return true;
  }

  /// Products of floats, which are rounded before an epilogue reads them. Nothing is made for this but for CUDA devices: their
  /// models can be checked anywhere.
  Result<bool> run_two_bytes(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                             const Execution& execution) const {
    const AsFloats floats(inputs.first(layout_.epilogue()));
    const Shape shape = result_shape(inputs);
    const std::size_t count = count_of(shape);
    std::vector<std::vector<float>> results(layout_.products, std::vector<float>(count));
    std::vector<std::vector<std::uint16_t>> held;
    std::vector<gemm::Product> products;
    for (std::size_t i = 0; i < layout_.products; ++i) products.push_back(product(floats.tensors(), i, results[i].data()));
    gemm::Problem problem = problem_of(floats.tensors());
    problem.products = products.data();
    problem.product_count = products.size();
    gemm::run(problem, variant_, execution.parallel_for);
    std::vector<const void*> raw;
    for (std::size_t i = 0; i < layout_.products; ++i) {
      void* const target = epilogue_.program() ? held.emplace_back(count).data() : outputs[i];
      round_to(inputs[0].type, results[i], target);
      raw.push_back(target);
    }
    if (!epilogue_.program()) return true;
    return epilogue_.run(shape, std::move(raw), inputs.subspan(layout_.epilogue()), types, outputs, execution.parallel_for);
  }

  gemm::Product product(std::span<const Tensor> inputs, std::size_t index, void* c) const {
    const auto floats = [&](bool there, std::size_t first) {
      return there ? static_cast<const float*>(inputs[first + index].data) : nullptr;
    };
    return {inputs[1 + index].data, floats(layout_.biased, layout_.biases()), static_cast<float*>(c),
            floats(layout_.block > 0, layout_.scales())};
  }

  const gemm::Variant& variant_;
};

class CudaGemm final : public FusedGemm {
 public:
  /// `rounds`: floats are multiplied as tf32.
  CudaGemm(Layout layout, EpilogueProgram epilogue, Place<gemm::cuda::Problem> place, bool rounds)
      : FusedGemm(layout, std::move(epilogue)), place_(place), rounds_(rounds) {}

  Result<bool> run(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                   const Execution& execution) const override {
    const auto start = [&](std::span<const Tensor> tensors, std::span<void* const> memory, void* stream) {
      return this->start(tensors, types[0].shape, memory, stream);
    };
    return place_.run(inputs, types, outputs, execution, start);
  }

 private:
  gemm::cuda::Precision precision_of(int type) const {
    using gemm::cuda::Precision;
    if (type == kFloat) return rounds_ ? Precision::kTf32 : Precision::kFloat;
    return type == kFloat16 ? Precision::kHalf : Precision::kBrain;
  }

  Result<bool> start(std::span<const Tensor> inputs, const Shape& shape, std::span<void* const> outputs, void* stream) const {
    gemm::cuda::Problem problem;
    problem.a = inputs[0].data;
    problem.precision = precision_of(inputs[0].type);
    problem.rows = rows_of(inputs[0].shape);
    problem.depth = inputs[0].shape.back();
    problem.columns = layout_.columns;
    if (problem.rows == 0) return true;
    const elementwise::Program* const program = epilogue_.program();
    problem.product_count = layout_.products;
    for (std::size_t i = 0; i < layout_.products; ++i)
      problem.products[i] = {inputs[1 + i].data, layout_.biased ? inputs[layout_.biases() + i].data : nullptr,
                             program ? nullptr : outputs[i]};
    if (program == nullptr) return place_.start(problem, stream);
    BoundProgram after;
    after.take(layout_.products, shape);
    after.read(inputs.subspan(layout_.epilogue()));
    after.write(outputs, shape);
    const elementwise::cuda::Bound epilogue = after.bound(*program);
    problem.epilogue = &epilogue;
    return place_.start(problem, stream);
  }

  Place<gemm::cuda::Problem> place_;
  bool rounds_;
};

constexpr const char *kCudaVariant = "gemm__cuda", *kTf32Variant = "gemm__cuda_tf32";
/// The code of the CUDA kernels on the host: for tests, never chosen.
constexpr std::string_view kEmulatedVariant = "gemm__cuda_emulated", kEmulatedTf32Variant = "gemm__cuda_tf32_emulated";

bool rounds(std::string_view name) { return name == kTf32Variant || name == kEmulatedTf32Variant; }

bool is_emulated(std::string_view name) { return name == kEmulatedVariant || name == kEmulatedTf32Variant; }

/// A kernel for a CUDA device, or its code on the host.
Result<std::unique_ptr<Kernel>> make_cuda_kernel(const Layout& layout, EpilogueProgram epilogue, std::string_view name) {
  using Made = Result<std::unique_ptr<Kernel>>;
  if (layout.block > 0) return Made::failure("There is no CUDA kernel for weights of integers; the format qdq runs there.");
  const auto place = place_of<gemm::cuda::Problem, gemm::cuda::emulate, gemm::cuda::kernels>(is_emulated(name));
  if (!place) return Made::failure(place.error());
  return Made(std::make_unique<CudaGemm>(layout, std::move(epilogue), *place, rounds(name)));
}

Result<std::unique_ptr<Kernel>> create(const Attributes& attributes, std::string_view name) {
  using Made = Result<std::unique_ptr<Kernel>>;
  const auto variant = find_variant(gemm::variants(), name);
  const bool for_cuda = name == kCudaVariant || rounds(name) || is_emulated(name);
  if (!variant && !for_cuda) return Made::failure(variant.error());
  const Result<Layout> layout = read_layout(attributes);
  if (!layout) return Made::failure(layout.error());
  Result<EpilogueProgram> epilogue =
      EpilogueProgram::read(attributes, layout->products, for_cuda ? "scalar" : (*variant)->isa, "epilogue", true);
  if (!epilogue) return Made::failure(epilogue.error());
  if (for_cuda) return make_cuda_kernel(*layout, std::move(*epilogue), name);
  return Made(std::make_unique<CpuGemm>(*layout, std::move(*epilogue), **variant));
}

std::vector<std::optional<InferredType>> infer(const Attributes& attributes, std::span<const InferredType> inputs) {
  const Result<Layout> layout = read_layout(attributes);
  if (!layout || inputs.empty() || inputs[0].shape.empty()) return {};
  const Result<EpilogueProgram> epilogue = EpilogueProgram::read(attributes, layout->products, "scalar", "epilogue", true);
  if (!epilogue) return {};
  const int type = is_of_two_bytes(inputs[0].type) ? inputs[0].type : static_cast<int>(kFloat);
  if (epilogue->program() && element_type(epilogue->program()->inputs()[0]) != type) return {};
  InferredType result{type, inputs[0].shape};
  result.shape.back() = {layout->columns, ""};
  std::vector<std::optional<InferredType>> types;
  for (const int one : epilogue->output_types(type)) types.push_back(InferredType{one, result.shape});
  return types;
}

}  // namespace

const Op& fused_gemm() {
  static const char* const attributes[] = {"products", "columns", "block", "biased", "epilogue"};
  static const std::vector<Variant> list = list_variants(gemm::variants(), {{kCudaVariant, "cuda"}, {kTf32Variant, "cuda"}});
  static const Op op{"FusedGemm", attributes, list, create, infer};
  return op;
}

}  // namespace onnxopt::ops
