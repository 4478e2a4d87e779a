#include "csrc/ops/rows.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "csrc/ops/bound_program.h"
#include "csrc/ops/device.h"
#include "csrc/ops/epilogue.h"
#include "csrc/ops/variants.h"
#include "kernels/cuda/norm/norm.h"

namespace onnxopt::ops {

namespace {

/// How a tensor is cut into rows, and what its factors look like.
struct Cut {
  std::int64_t rows = 1, width = 1, inner = 1;
  Shape affine;
  std::int64_t run = 1, period = 1;
  std::int64_t groups = 0;  // of a row, whose channels lie last
};

Result<Cut> cut(const RowsLayout& layout, const Shape& shape) {
  using Made = Result<Cut>;
  const auto rank = static_cast<std::int64_t>(shape.size());
  Cut made;
  if (layout.groups != 0) {
    if (rank < 3)
      return Made::failure("Input 0 has the shape " + text_of(shape) + " and should be " +
                           (layout.channels_last ? "[N, ..., channels]." : "[N, channels, ...]."));
    const std::int64_t channels = layout.channels_last ? shape.back() : shape[1];
    if (channels % layout.groups != 0)
      return Made::failure("Its " + number(channels) + " channels are no " + number(layout.groups) + " groups.");
    made.affine = {channels};
    if (layout.channels_last) {
      made.rows = shape[0];
      for (std::size_t axis = 1; axis < shape.size(); ++axis) made.width *= shape[axis];
      made.groups = layout.groups;
      return made;
    }
    for (std::size_t axis = 2; axis < shape.size(); ++axis) made.run *= shape[axis];
    made.rows = shape[0] * layout.groups;
    made.width = channels / layout.groups * made.run;
    made.period = layout.groups;
    return made;
  }
  const std::int64_t axis = rank + layout.axis, end = rank - layout.inner;
  if (axis < 0 || axis >= end)
    return Made::failure("Its attributes 'axis' and 'inner' are " + number(layout.axis) + " and " + number(layout.inner) +
                         ", and input 0 has the shape " + text_of(shape) + ".");
  made.affine.assign(shape.begin() + axis, shape.begin() + end);
  for (std::int64_t i = 0; i < rank; ++i)
    (i < axis ? made.rows : i < end ? made.width : made.inner) *= shape[static_cast<std::size_t>(i)];
  made.rows *= made.inner;
  return made;
}

/// The shape with its last `count` dims as one; a shape that has fewer has only dims of 1.
Shape merged(const Shape& shape, std::size_t count) {
  if (shape.size() < count) return shape;
  if (shape.size() == count) return {std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>())};
  Shape made(shape.begin(), shape.end() - static_cast<std::ptrdiff_t>(count));
  made.push_back(
      std::accumulate(shape.end() - static_cast<std::ptrdiff_t>(count), shape.end(), std::int64_t{1}, std::multiplies<>()));
  return made;
}

/// Whether a program walks through the last dims of an input as if they were one.
bool merges(const Shape& input, const Shape& shape, std::size_t count) {
  bool whole = input.size() >= count, single = true;
  for (std::size_t i = 1; i <= count; ++i) {
    const std::int64_t size = i <= input.size() ? input[input.size() - i] : 1;
    whole = whole && size == shape[shape.size() - i];
    single = single && size == 1;
  }
  return whole || single;
}

/// The inputs of programs, with the last dims as one.
std::vector<Tensor> merged(std::span<const Tensor> inputs, std::size_t count) {
  std::vector<Tensor> tensors(inputs.begin(), inputs.end());
  for (Tensor& tensor : tensors) tensor.shape = merged(tensor.shape, count);
  return tensors;
}

/// What the attributes say.
struct Description {
  RowsLayout layout;
  PrologueProgram prologue;
  EpilogueProgram epilogue;
};

/// What kernels of all devices share: the sizes.
class Rows : public Kernel {
 public:
  explicit Rows(Description description)
      : layout_(description.layout), prologue_(std::move(description.prologue)), epilogue_(std::move(description.epilogue)) {}

  Result<std::vector<TensorType>> outputs(std::span<const Tensor> inputs) const override {
    using Types = Result<std::vector<TensorType>>;
    if (const std::string sentence = too_few(inputs, first_of_epilogue()); !sentence.empty()) return Types::failure(sentence);
    const Result<Shape> shape = prologue_.shape(inputs.first(prologue_.inputs()));
    if (!shape) return Types::failure(shape.error());
    const Result<Cut> made = cut(layout_, *shape);
    if (!made) return Types::failure(made.error());
    for (std::size_t i = prologue_.inputs(); i < first_of_epilogue(); ++i)
      if (inputs[i].type != kFloat || inputs[i].shape != made->affine)
        return Types::failure("Input " + number(i) + " is a " + name_of(inputs[i].type) + " tensor of shape " +
                              text_of(inputs[i].shape) + " and should be float of shape " + text_of(made->affine) + ".");
    Types types = epilogue_.outputs(*shape, inputs.subspan(first_of_epilogue()));
    if (types && layout_.kept) types->push_back({kFloat, *shape});
    return types;
  }

 protected:
  std::size_t first_of_epilogue() const { return prologue_.inputs() + layout_.affine(); }

  /// What the kernels of processors and of devices are told alike.
  template <class Problem>
  Problem described(std::span<const Tensor> inputs, std::span<void* const> outputs, const Cut& made) const {
    Problem problem;
    problem.kind = layout_.kind;
    problem.rows = made.rows;
    problem.width = made.width;
    problem.inner = made.inner;
    problem.epsilon = layout_.epsilon;
    problem.affine = affine(inputs, made);
    problem.kept = layout_.kept ? static_cast<float*>(outputs.back()) : nullptr;
    return problem;
  }

  norm::Affine affine(std::span<const Tensor> inputs, const Cut& made) const {
    norm::Affine one{nullptr, nullptr, made.run, made.period};
    std::size_t next = prologue_.inputs();
    if (layout_.scaled) one.scale = static_cast<const float*>(inputs[next++].data);
    if (layout_.biased) one.bias = static_cast<const float*>(inputs[next].data);
    return one;
  }

  RowsLayout layout_;
  PrologueProgram prologue_;
  EpilogueProgram epilogue_;
};

class CpuRows final : public Rows {
 public:
  CpuRows(Description description, const norm::Variant& variant) : Rows(std::move(description)), variant_(variant) {}

  Result<bool> run(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                   const Execution& execution) const override {
    using Done = Result<bool>;
    const Shape& shape = types[0].shape;
    const Cut made = *cut(layout_, shape);
    if (made.rows == 0 || made.width == 0) return true;
    const std::size_t results = types.size() - (layout_.kept ? 1 : 0);
    auto problem = described<norm::Problem>(inputs, outputs, made);
    problem.groups = made.groups;
    problem.clip = epilogue_.clip();
    if (!epilogue_.present() || (results == 1 && types[0].type == kFloat)) problem.y = static_cast<float*>(outputs[0]);
    // To the programs, the axes after the normalized ones are one where that is the same.
    const auto before_inputs = inputs.first(prologue_.inputs()), after_inputs = inputs.subspan(first_of_epilogue());
    const auto inner = layout_.groups != 0 ? std::size_t{0} : static_cast<std::size_t>(layout_.inner);
    const auto fits = [&](const Tensor& one) { return merges(one.shape, shape, inner); };
    const std::size_t count = inner > 1 && std::all_of(before_inputs.begin(), before_inputs.end(), fits) &&
                                      std::all_of(after_inputs.begin(), after_inputs.end(), fits)
                                  ? inner
                                  : 1;
    const Shape seen = merged(shape, count);
    problem.line = seen.back();
    std::optional<elementwise::Epilogue> before, after;
    // Rows of one axis may be made of terms in registers.
    std::optional<norm::Terms> terms;
    if (prologue_.present() && made.inner == 1 && made.width == shape.back()) terms = prologue_.terms(shape, before_inputs, false);
    if (terms) {
      problem.terms = &*terms;
    } else if (prologue_.present()) {
      Result<elementwise::Epilogue> bound = prologue_.bind(seen, merged(before_inputs, count), problem.kept);
      if (!bound) return Done::failure(bound.error());
      before = std::move(*bound);
      problem.prologue = &*before;
    } else {
      problem.x = static_cast<const float*>(inputs[0].data);
    }
    if (epilogue_.present()) {
      std::vector<TensorType> made_types(types.begin(), types.begin() + static_cast<std::ptrdiff_t>(results));
      for (TensorType& type : made_types) type.shape = seen;
      Result<elementwise::Epilogue> bound = epilogue_.bind(seen, merged(after_inputs, count), made_types, outputs.first(results));
      if (!bound) return Done::failure(bound.error());
      after = std::move(*bound);
      problem.epilogue = &*after;
    }
    norm::run(problem, variant_, execution.parallel_for);
    return true;
  }

 private:
  const norm::Variant& variant_;
};

/// Whether a program does nothing but to round its first input to float16.
bool is_rounding(const elementwise::Program& program) {
  const auto instructions = program.instructions();
  return instructions.size() == 1 && program.outputs().size() == 1 && instructions[0].op == elementwise::Op::k_cast_f16 &&
         instructions[0].operands[0].kind == elementwise::Operand::kInput && instructions[0].operands[0].index == 0;
}

class CudaRows final : public Rows {
 public:
  CudaRows(Description description, Place<norm::cuda::Problem> place) : Rows(std::move(description)), place_(place) {}

  Result<bool> run(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                   const Execution& execution) const override {
    const auto start = [&](std::span<const Tensor> tensors, std::span<void* const> memory, void* stream) {
      return this->start(tensors, types, memory, stream);
    };
    return place_.run(inputs, types, outputs, execution, start);
  }

 private:
  Result<bool> start(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                     void* stream) const {
    const Shape& shape = types[0].shape;
    const Cut made = *cut(layout_, shape);
    if (made.rows == 0 || made.width == 0) return true;
    auto problem = described<norm::cuda::Problem>(inputs, outputs, made);
    std::optional<norm::Terms> terms;
    BoundProgram before, after;
    std::optional<norm::cuda::Bound> prologue, epilogue;
    if (prologue_.present()) {
      if (made.inner == 1 && made.width == shape.back()) terms = prologue_.terms(shape, inputs.first(prologue_.inputs()), true);
      problem.terms = terms ? &*terms : nullptr;
      void* const kept[] = {problem.kept};
      before.read(inputs.first(prologue_.inputs()));
      before.write(kept, shape);
      problem.prologue = &prologue.emplace(before.bound(*prologue_.program()));
    } else {
      problem.x = static_cast<const float*>(inputs[0].data);
    }
    if (epilogue_.program() != nullptr && is_rounding(*epilogue_.program())) {
      problem.y_half = static_cast<std::uint16_t*>(outputs[0]);
    } else if (epilogue_.program() != nullptr) {
      const std::size_t results = types.size() - (layout_.kept ? 1 : 0);
      after.take(1, shape);
      after.read(inputs.subspan(first_of_epilogue()));
      after.write(outputs.first(results), shape);
      problem.epilogue = &epilogue.emplace(after.bound(*epilogue_.program()));
    } else {
      problem.y = static_cast<float*>(outputs[0]);
    }
    return place_.start(problem, stream);
  }

  Place<norm::cuda::Problem> place_;
};

constexpr const char* kCudaVariant = "norm__cuda";
/// The code of the CUDA kernel on the host: for tests, never chosen.
constexpr std::string_view kEmulatedVariant = "norm__cuda_emulated";

Result<Description> read(const Attributes& attributes, const RowsLayout& layout, std::string_view isa) {
  using Made = Result<Description>;
  Result<PrologueProgram> prologue = PrologueProgram::read(attributes, isa);
  if (!prologue) return Made::failure(prologue.error());
  Result<EpilogueProgram> epilogue = EpilogueProgram::read(attributes, 1, isa);
  if (!epilogue) return Made::failure(epilogue.error());
  if (layout.channels_last && layout.groups == 0) return Made::failure("Its channels lie last, and it has no groups of them.");
  if (layout.channels_last && prologue->present())
    return Made::failure("It has a prologue, which groups of channels that lie last do not.");
  if (layout.kept && !prologue->present()) return Made::failure("It keeps the result of a prologue that it does not have.");
  return Description{layout, std::move(*prologue), std::move(*epilogue)};
}

/// A kernel for a CUDA device, or its code on the host.
Result<std::unique_ptr<Kernel>> make_cuda_kernel(Description description, std::string_view name) {
  using Made = Result<std::unique_ptr<Kernel>>;
  if (description.layout.channels_last) return Made::failure("The CUDA kernel takes no groups of channels that lie last.");
  const auto place = place_of<norm::cuda::Problem, norm::cuda::emulate, norm::cuda::kernels>(name == kEmulatedVariant);
  if (!place) return Made::failure(place.error());
  return Made(std::make_unique<CudaRows>(std::move(description), *place));
}

}  // namespace

Result<std::unique_ptr<Kernel>> make_rows_kernel(const Attributes& attributes, const RowsLayout& layout, std::string_view name) {
  using Made = Result<std::unique_ptr<Kernel>>;
  const auto variant = find_variant(norm::variants(), name);
  const bool for_cuda = name == kCudaVariant || name == kEmulatedVariant;
  if (!variant && !for_cuda) return Made::failure(variant.error());
  Result<Description> description = read(attributes, layout, for_cuda ? "scalar" : (*variant)->isa);
  if (!description) return Made::failure(description.error());
  if (for_cuda) return make_cuda_kernel(std::move(*description), name);
  return Made(std::make_unique<CpuRows>(std::move(*description), **variant));
}

std::vector<std::optional<InferredType>> infer_rows(const Attributes& attributes, const RowsLayout& layout,
                                                    std::span<const InferredType> inputs) {
  const Result<PrologueProgram> prologue = PrologueProgram::read(attributes, "scalar");
  const Result<EpilogueProgram> epilogue = EpilogueProgram::read(attributes, 1, "scalar");
  if (!prologue || !epilogue || inputs.size() < prologue->inputs()) return {};
  const std::optional<std::vector<Dim>> shape = prologue->infer(inputs.first(prologue->inputs()));
  if (!shape) return {};
  std::vector<std::optional<InferredType>> types;
  for (const int type : epilogue->output_types()) types.push_back(InferredType{type, *shape});
  if (layout.kept) types.push_back(InferredType{kFloat, *shape});
  return types;
}

std::span<const Variant> rows_variants() {
  static const std::vector<Variant> list = list_variants(norm::variants(), {{kCudaVariant, "cuda"}});
  return list;
}

}  // namespace onnxopt::ops
