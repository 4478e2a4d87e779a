#include "csrc/ops/fused_gemm.h"

#include <algorithm>

#include "csrc/ops/epilogue.h"
#include "kernels/cpu/gemm/gemm.h"

namespace onnxopt::ops {

namespace {

std::string number(std::int64_t value) { return std::to_string(value); }

/// Inputs: X, the packed weights of each product, the biases of each product where there are any, the epilogue's further inputs.
struct Layout {
  std::size_t products = 1;
  std::int64_t columns = 0;
  bool biased = false;

  std::size_t epilogue() const { return 1 + products * (biased ? 2 : 1); }
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
  layout.biased = attributes.integer("biased").value_or(0) != 0;
  return layout;
}

class FusedGemm final : public Kernel {
 public:
  FusedGemm(Layout layout, EpilogueProgram epilogue, const gemm::Variant& variant)
      : layout_(layout), epilogue_(std::move(epilogue)), variant_(variant) {}

  Result<std::vector<TensorType>> outputs(std::span<const Tensor> inputs) const override {
    using Types = Result<std::vector<TensorType>>;
    if (const std::string sentence = wrong_input(inputs); !sentence.empty()) return Types::failure(sentence);
    return epilogue_.outputs(result_shape(inputs), inputs.subspan(layout_.epilogue()));
  }

  Result<bool> run(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                   const Execution& execution) const override {
    const Shape& x = inputs[0].shape;
    gemm::Problem problem{
        static_cast<const float*>(inputs[0].data), x.back(), 1, x.back(), layout_.columns, nullptr, 0, epilogue_.clip(), nullptr};
    for (std::size_t axis = 0; axis + 1 < x.size(); ++axis) problem.rows *= x[axis];
    // A single result that a single output is made of lies where that output goes.
    const bool in_place = !epilogue_.present() || (layout_.products == 1 && types.size() == 1 && types[0].type == kFloat);
    std::vector<gemm::Product> products;
    for (std::size_t i = 0; i < layout_.products; ++i) {
      const void* bias = layout_.biased ? inputs[1 + layout_.products + i].data : nullptr;
      products.push_back({static_cast<const float*>(inputs[1 + i].data), static_cast<const float*>(bias),
                          in_place ? static_cast<float*>(outputs[i]) : nullptr});
    }
    problem.products = products.data();
    problem.product_count = products.size();
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

 private:
  Shape result_shape(std::span<const Tensor> inputs) const {
    Shape shape = inputs[0].shape;
    shape.back() = layout_.columns;
    return shape;
  }

  /// A sentence that says which input does not fit; empty when all do.
  std::string wrong_input(std::span<const Tensor> inputs) const {
    if (inputs.size() < layout_.epilogue())
      return "It got " + number(static_cast<std::int64_t>(inputs.size())) + " inputs and needs at least " +
             number(static_cast<std::int64_t>(layout_.epilogue())) + ".";
    for (std::size_t i = 0; i < layout_.epilogue(); ++i)
      if (inputs[i].type != kFloat)
        return "Input " + number(static_cast<std::int64_t>(i)) + " is of type " + name_of(inputs[i].type) + " and should be float.";
    if (inputs[0].shape.empty()) return "Input 0 is a scalar and should have rows.";
    const auto panel = static_cast<std::int64_t>(gemm::kPanel);
    const Shape weights{(layout_.columns - 1) / panel + 1, inputs[0].shape.back(), panel};
    for (std::size_t i = 1; i < layout_.epilogue(); ++i) {
      const Shape expected = i <= layout_.products ? weights : Shape{layout_.columns};
      if (inputs[i].shape != expected)
        return "Input " + number(static_cast<std::int64_t>(i)) + " has the shape " + text_of(inputs[i].shape) +
               " and should have " + text_of(expected) + ".";
    }
    return "";
  }

  Layout layout_;
  EpilogueProgram epilogue_;
  const gemm::Variant& variant_;
};

Result<std::unique_ptr<Kernel>> create(const Attributes& attributes, std::string_view name) {
  using Made = Result<std::unique_ptr<Kernel>>;
  const auto list = gemm::variants();
  const auto variant = std::find_if(list.begin(), list.end(), [&](const auto& one) { return name == one.name; });
  if (variant == list.end()) return Made::failure("There is no variant '" + std::string(name) + "'.");
  const Result<Layout> layout = read_layout(attributes);
  if (!layout) return Made::failure(layout.error());
  Result<EpilogueProgram> epilogue = EpilogueProgram::read(attributes, layout->products, variant->isa);
  if (!epilogue) return Made::failure(epilogue.error());
  return Made(std::make_unique<FusedGemm>(*layout, std::move(*epilogue), *variant));
}

std::vector<std::optional<InferredType>> infer(const Attributes& attributes, std::span<const InferredType> inputs) {
  const Result<Layout> layout = read_layout(attributes);
  if (!layout || inputs.empty() || inputs[0].shape.empty()) return {};
  const Result<EpilogueProgram> epilogue = EpilogueProgram::read(attributes, layout->products, "scalar");
  if (!epilogue) return {};
  InferredType result{kFloat, inputs[0].shape};
  result.shape.back() = {layout->columns, ""};
  std::vector<std::optional<InferredType>> types;
  for (const int type : epilogue->output_types()) types.push_back(InferredType{type, result.shape});
  return types;
}

std::vector<Variant> list_variants() {
  std::vector<Variant> list;
  for (const gemm::Variant& variant : gemm::variants()) list.push_back({variant.name, variant.isa});
  return list;
}

}  // namespace

const Op& fused_gemm() {
  static const char* const attributes[] = {"products", "columns", "biased", "epilogue"};
  static const std::vector<Variant> list = list_variants();
  static const Op op{"FusedGemm", attributes, list, create, infer};
  return op;
}

}  // namespace onnxopt::ops
