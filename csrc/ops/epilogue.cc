#include "csrc/ops/epilogue.h"

#include <limits>

#include "csrc/ops/variants.h"

namespace onnxopt::ops {

namespace {

using elementwise::Instruction;
using elementwise::Operand;
using elementwise::Program;

/// The bounds, where the last statement is a Relu or Clip of `operand`.
std::optional<gemm::Bounds> bounds_of(const Program& program, Operand::Kind kind) {
  const Instruction& last = program.instructions().back();
  if (last.operands[0].kind != kind || last.operands[0].index != 0) return std::nullopt;
  if (last.op == elementwise::Op::k_relu) return gemm::Bounds{0.0f, std::numeric_limits<float>::infinity()};
  if (last.op != elementwise::Op::k_clip || last.operands[1].kind != Operand::kLiteral ||
      last.operands[2].kind != Operand::kLiteral)
    return std::nullopt;
  return gemm::Bounds{program.literals()[last.operands[1].index].f, program.literals()[last.operands[2].index].f};
}

/// The input, where the first statement adds one to the only result.
std::optional<std::size_t> added_to_result(const Program& program) {
  const Instruction& first = program.instructions().front();
  if (first.op != elementwise::Op::k_add || first.type != elementwise::DType::f32) return std::nullopt;
  const Operand &a = first.operands[0], &b = first.operands[1];
  if (a.kind != Operand::kInput || b.kind != Operand::kInput || (a.index == 0) == (b.index == 0)) return std::nullopt;
  return a.index + b.index;
}

/// The number that a statement applies to the result of the statement before it, where it is that op.
std::optional<float> with_number(const Program& program, std::size_t statement, elementwise::Op op) {
  const Instruction& one = program.instructions()[statement];
  if (one.op != op || one.type != elementwise::DType::f32) return std::nullopt;
  for (const int literal : {0, 1}) {
    const Operand &a = one.operands[literal], &b = one.operands[1 - literal];
    if (a.kind == Operand::kLiteral && b.kind == Operand::kTemporary && b.index + 1u == statement)
      return program.literals()[a.index].f;
  }
  return std::nullopt;
}

/// The gate of input 0, where the program is one.
std::optional<gemm::Gate> gate_of(const Program& program) {
  using elementwise::Op;
  const auto code = program.instructions();
  if (program.inputs().size() != 1 || program.outputs().size() != 1 || code.front().type != elementwise::DType::f32 ||
      code.front().operands[0].kind != Operand::kInput)
    return std::nullopt;
  gemm::Gate gate{1.0f / 6.0f, 0.5f, 1.0f, 0.0f};
  std::size_t done = 1;
  if (code.front().op == Op::k_hard_sigmoid) {
    gate.alpha = code.front().parameters[0];
    gate.beta = code.front().parameters[1];
    if (code.size() < 2 || code[1].op != Op::k_mul) return std::nullopt;
    const Operand &a = code[1].operands[0], &b = code[1].operands[1];
    if (a.kind == b.kind || a.index != 0 || b.index != 0 || a.kind == Operand::kLiteral || b.kind == Operand::kLiteral)
      return std::nullopt;
    done = 2;
  } else if (code.front().op != Op::k_hard_swish) {
    return std::nullopt;
  }
  if (done < code.size())
    if (const auto scale = with_number(program, done, Op::k_mul)) {
      gate.scale = *scale;
      ++done;
    }
  if (done < code.size())
    if (const auto shift = with_number(program, done, Op::k_add)) {
      gate.shift = *shift;
      ++done;
    }
  return done == code.size() ? std::optional(gate) : std::nullopt;
}

std::vector<elementwise::Shape> shapes_of(std::span<const TensorType> types) {
  std::vector<elementwise::Shape> shapes;
  shapes.reserve(types.size());
  for (const TensorType& type : types) shapes.push_back(type.shape);
  return shapes;
}

}  // namespace

int element_type(elementwise::DType type) {
  using elementwise::DType;
  switch (type) {
    case DType::f32: return kFloat;
    case DType::f16: return kFloat16;
    case DType::bf16: return kBfloat16;
    case DType::i32: return kInt32;
    case DType::i64: return kInt64;
    case DType::boolean: return kBool;
  }
  return kUndefined;
}

Result<EpilogueProgram> EpilogueProgram::read(const Attributes& attributes, std::size_t raw, std::string_view isa,
                                              const char* attribute, bool halves) {
  using Made = Result<EpilogueProgram>;
  EpilogueProgram made;
  made.raw_ = raw;
  const std::optional<std::string> text = attributes.string(attribute);
  if (!text || text->empty()) return made;
  Result<Program> program = Program::parse(*text);
  if (!program) return Made::failure("Its epilogue: " + program.error());
  if (program->inputs().size() < raw)
    return Made::failure("Its epilogue has " + number(program->inputs().size()) + " inputs and should begin with " + number(raw) +
                         " results.");
  const bool of_halves = halves && raw > 0 && is_of_two_bytes(element_type(program->inputs()[0]));
  const elementwise::DType raw_type = of_halves ? program->inputs()[0] : elementwise::DType::f32;
  for (std::size_t i = 0; i < raw; ++i)
    if (program->inputs()[i] != raw_type)
      return Made::failure("Input " + number(i) + " of its epilogue should be " + std::string(elementwise::name_of(raw_type)) +
                           ".");
  const auto variant = elementwise_beside(isa);
  if (!variant) return Made::failure(variant.error());
  const std::size_t statements = program->instructions().size();
  // The kernels know programs whose last statement is what is asked for.
  const bool is_last = program->outputs().size() == 1 && program->output_statements()[0] + std::size_t{1} == statements;
  if (raw == 1 && is_last) made.gate_ = gate_of(*program);
  if (raw == 1 && is_last && statements <= 2) {
    if (const auto added = added_to_result(*program); added && program->inputs().size() == 2) {
      if (statements == 2) made.clip_ = bounds_of(*program, Operand::kTemporary);
      if (statements == 1 || made.clip_) made.added_ = added;
    } else if (statements == 1 && program->inputs().size() == 1) {
      made.clip_ = bounds_of(*program, Operand::kInput);
    }
  }
  made.program_ = std::move(*program);
  made.variant_ = *variant;
  return made;
}

Result<EpilogueProgram> EpilogueProgram::read_of_floats(const Attributes& attributes, std::string_view isa, const char* attribute) {
  Result<EpilogueProgram> made = read(attributes, 1, isa, attribute);
  if (!made || made->output_types() == std::vector<int>{kFloat}) return made;
  return Result<EpilogueProgram>::failure("Its attribute '" + std::string(attribute) + "' should have one output, of type f32.");
}

bool EpilogueProgram::gelu() const {
  if (!program_ || raw_ != 1 || program_->inputs().size() != 1 || program_->outputs().size() != 1) return false;
  const auto code = program_->instructions();
  return code.size() == 1 && code[0].op == elementwise::Op::k_gelu && code[0].type == elementwise::DType::f32;
}

std::vector<std::span<const std::int64_t>> EpilogueProgram::shapes(const Shape& raw, std::span<const Tensor> inputs) const {
  std::vector<std::span<const std::int64_t>> all(raw_, std::span<const std::int64_t>(raw));
  for (const Tensor& input : inputs) all.emplace_back(input.shape);
  return all;
}

std::vector<int> EpilogueProgram::output_types(int raw_type) const {
  if (!program_) return std::vector<int>(raw_, raw_type);
  std::vector<int> types;
  for (const elementwise::DType type : program_->outputs()) types.push_back(element_type(type));
  return types;
}

Result<std::vector<TensorType>> EpilogueProgram::outputs(const Shape& raw, std::span<const Tensor> inputs, int raw_type) const {
  using Types = Result<std::vector<TensorType>>;
  const std::size_t expected = program_ ? program_->inputs().size() - raw_ : 0;
  if (inputs.size() != expected)
    return Types::failure("It has " + number(inputs.size()) + " inputs for its epilogue, which takes " + number(expected) + ".");
  if (!program_) return std::vector<TensorType>(raw_, TensorType{raw_type, raw});
  if (raw_ > 0 && element_type(program_->inputs()[0]) != raw_type)
    return Types::failure("Its results are " + name_of(raw_type) + ", and input 0 of its epilogue is " +
                          std::string(elementwise::name_of(program_->inputs()[0])) + ".");
  for (std::size_t i = 0; i < inputs.size(); ++i)
    if (inputs[i].type != element_type(program_->inputs()[raw_ + i]))
      return Types::failure("Input " + number(raw_ + i) + " of its epilogue is of type " + name_of(inputs[i].type) +
                            " and should be " + std::string(elementwise::name_of(program_->inputs()[raw_ + i])) + ".");
  if (clip()) return std::vector<TensorType>(1, TensorType{raw_type, raw});
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

std::optional<EpilogueProgram::Sum> EpilogueProgram::sum(const Shape& raw, std::span<const Tensor> inputs) const {
  if (!added_ || inputs[*added_ - 1].shape != raw) return std::nullopt;
  return Sum{static_cast<const float*>(inputs[*added_ - 1].data), clip_ ? &*clip_ : nullptr};
}

Result<elementwise::Epilogue> EpilogueProgram::bind(const Shape& raw, std::span<const Tensor> inputs,
                                                    std::span<const TensorType> types, std::span<void* const> outputs) const {
  std::vector<const void*> data(raw_, nullptr);
  for (const Tensor& input : inputs) data.push_back(input.data);
  return elementwise::Epilogue::make(*program_, *variant_, raw_, {data, shapes(raw, inputs), outputs, shapes_of(types)});
}

Result<bool> EpilogueProgram::run(const Shape& raw, std::vector<const void*> results, std::span<const Tensor> inputs,
                                  std::span<const TensorType> types, std::span<void* const> outputs,
                                  const ParallelFor& parallel_for) const {
  for (const Tensor& input : inputs) results.push_back(input.data);
  return elementwise::run(*program_, *variant_, {results, shapes(raw, inputs), outputs, shapes_of(types)}, parallel_for);
}

}  // namespace onnxopt::ops
