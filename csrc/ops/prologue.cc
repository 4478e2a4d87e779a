#include "csrc/ops/prologue.h"

#include <algorithm>

#include "csrc/ops/epilogue.h"
#include "csrc/ops/fused_elementwise.h"

namespace onnxopt::ops {

namespace {

using elementwise::Program;

std::string number(std::size_t value) { return std::to_string(value); }

std::vector<std::span<const std::int64_t>> shapes_of(std::span<const Tensor> inputs) {
  std::vector<std::span<const std::int64_t>> shapes;
  for (const Tensor& input : inputs) shapes.emplace_back(input.shape);
  return shapes;
}

}  // namespace

Result<PrologueProgram> PrologueProgram::read(const Attributes& attributes, std::string_view isa) {
  using Made = Result<PrologueProgram>;
  PrologueProgram made;
  const std::optional<std::string> text = attributes.string("prologue");
  if (!text || text->empty()) return made;
  Result<Program> program = Program::parse(*text);
  if (!program) return Made::failure("Its prologue: " + program.error());
  if (program->outputs().size() != 1 || program->outputs()[0] != elementwise::DType::f32)
    return Made::failure("Its prologue should have one output, of f32.");
  const auto variants = elementwise::variants();
  const auto found = std::find_if(variants.begin(), variants.end(), [&](const auto& one) { return isa == one.isa; });
  if (found == variants.end()) return Made::failure("There is no element-wise kernel for " + std::string(isa) + ".");
  made.program_ = std::move(*program);
  made.variant_ = &*found;
  return made;
}

Result<Shape> PrologueProgram::shape(std::span<const Tensor> inputs) const {
  using Made = Result<Shape>;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const int expected = program_ ? element_type(program_->inputs()[i]) : kFloat;
    if (inputs[i].type != expected)
      return Made::failure("Input " + number(i) + " is of type " + name_of(inputs[i].type) + " and should be " + name_of(expected) +
                           ".");
  }
  if (!program_) return inputs[0].shape;
  Result<std::vector<elementwise::Shape>> made = elementwise::output_shapes(*program_, shapes_of(inputs));
  if (!made) return Made::failure("Its prologue: " + made.error());
  return std::move(made->front());
}

std::optional<std::vector<Dim>> PrologueProgram::infer(std::span<const InferredType> inputs) const {
  if (program_) return infer_shape(*program_, 0, inputs);
  return inputs[0].shape.empty() ? std::nullopt : std::optional(inputs[0].shape);
}

Result<elementwise::Epilogue> PrologueProgram::bind(const Shape& shape, std::span<const Tensor> inputs, void* kept) const {
  std::vector<const void*> data;
  for (const Tensor& input : inputs) data.push_back(input.data);
  void* const outputs[] = {kept};
  const elementwise::Shape shapes[] = {shape};
  return elementwise::Epilogue::make(*program_, *variant_, 0, {data, shapes_of(inputs), outputs, shapes});
}

}  // namespace onnxopt::ops
