#include "csrc/ops/epilogue.h"

#include <algorithm>
#include <limits>

namespace onnxopt::ops {

namespace {

using elementwise::Instruction;
using elementwise::Operand;
using elementwise::Program;

std::string number(std::size_t value) { return std::to_string(value); }

/// The bounds, where the program is one Relu or Clip of its first input.
std::optional<gemm::Bounds> bounds_of(const Program& program) {
  if (program.instructions().size() != 1 || program.inputs().size() != 1 || program.outputs().size() != 1) return std::nullopt;
  const Instruction& only = program.instructions().front();
  if (only.operands[0].kind != Operand::kInput) return std::nullopt;
  if (only.op == elementwise::Op::k_relu) return gemm::Bounds{0.0f, std::numeric_limits<float>::infinity()};
  if (only.op != elementwise::Op::k_clip || only.operands[1].kind != Operand::kLiteral ||
      only.operands[2].kind != Operand::kLiteral)
    return std::nullopt;
  return gemm::Bounds{program.literals()[only.operands[1].index].f, program.literals()[only.operands[2].index].f};
}

}  // namespace

int element_type(elementwise::DType type) {
  using elementwise::DType;
  switch (type) {
    case DType::f32: return kFloat;
    case DType::f16: return kFloat16;
    case DType::i32: return kInt32;
    case DType::i64: return kInt64;
    case DType::boolean: return kBool;
  }
  return kUndefined;
}

Result<EpilogueProgram> EpilogueProgram::read(const Attributes& attributes, std::size_t raw, std::string_view isa) {
  using Made = Result<EpilogueProgram>;
  EpilogueProgram made;
  made.raw_ = raw;
  const std::optional<std::string> text = attributes.string("epilogue");
  if (!text || text->empty()) return made;
  Result<Program> program = Program::parse(*text);
  if (!program) return Made::failure("Its epilogue: " + program.error());
  if (program->inputs().size() < raw)
    return Made::failure("Its epilogue has " + number(program->inputs().size()) + " inputs and should begin with " + number(raw) +
                         " results.");
  for (std::size_t i = 0; i < raw; ++i)
    if (program->inputs()[i] != elementwise::DType::f32)
      return Made::failure("Input " + number(i) + " of its epilogue should be f32.");
  const auto variants = elementwise::variants();
  const auto found = std::find_if(variants.begin(), variants.end(), [&](const auto& one) { return isa == one.isa; });
  if (found == variants.end()) return Made::failure("There is no element-wise kernel for " + std::string(isa) + ".");
  made.clip_ = bounds_of(*program);
  made.program_ = std::move(*program);
  made.variant_ = &*found;
  return made;
}

std::vector<std::span<const std::int64_t>> EpilogueProgram::shapes(const Shape& raw, std::span<const Tensor> inputs) const {
  std::vector<std::span<const std::int64_t>> all(raw_, std::span<const std::int64_t>(raw));
  for (const Tensor& input : inputs) all.emplace_back(input.shape);
  return all;
}

std::vector<int> EpilogueProgram::output_types() const {
  if (!program_) return std::vector<int>(raw_, kFloat);
  std::vector<int> types;
  for (const elementwise::DType type : program_->outputs()) types.push_back(element_type(type));
  return types;
}

Result<std::vector<TensorType>> EpilogueProgram::outputs(const Shape& raw, std::span<const Tensor> inputs) const {
  using Types = Result<std::vector<TensorType>>;
  const std::size_t expected = program_ ? program_->inputs().size() - raw_ : 0;
  if (inputs.size() != expected)
    return Types::failure("It has " + number(inputs.size()) + " inputs for its epilogue, which takes " + number(expected) + ".");
  if (!program_) return std::vector<TensorType>(raw_, TensorType{kFloat, raw});
  for (std::size_t i = 0; i < inputs.size(); ++i)
    if (inputs[i].type != element_type(program_->inputs()[raw_ + i]))
      return Types::failure("Input " + number(raw_ + i) + " of its epilogue is of type " + name_of(inputs[i].type) +
                            " and should be " + std::string(elementwise::name_of(program_->inputs()[raw_ + i])) + ".");
  Result<std::vector<elementwise::Shape>> made = elementwise::output_shapes(*program_, shapes(raw, inputs));
  if (!made) return Types::failure("Its epilogue: " + made.error());
  std::vector<TensorType> types;
  for (std::size_t i = 0; i < made->size(); ++i) {
    if ((*made)[i] != raw)
      return Types::failure("Its epilogue makes the shape " + text_of((*made)[i]) + " of results of shape " + text_of(raw) + ".");
    types.push_back({element_type(program_->outputs()[i]), std::move((*made)[i])});
  }
  return types;
}

Result<elementwise::Epilogue> EpilogueProgram::bind(const Shape& raw, std::span<const Tensor> inputs,
                                                    std::span<const TensorType> types, std::span<void* const> outputs) const {
  std::vector<const void*> data(raw_, nullptr);
  for (const Tensor& input : inputs) data.push_back(input.data);
  std::vector<elementwise::Shape> output_shapes;
  for (const TensorType& type : types) output_shapes.push_back(type.shape);
  return elementwise::Epilogue::make(*program_, *variant_, raw_, {data, shapes(raw, inputs), outputs, output_shapes});
}

}  // namespace onnxopt::ops
