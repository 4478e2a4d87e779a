#include "csrc/ops/prologue.h"

#include <algorithm>

#include "csrc/ops/epilogue.h"
#include "csrc/ops/fused_elementwise.h"
#include "csrc/ops/variants.h"
#include "kernels/cpu/elementwise/plan.h"

namespace onnxopt::ops {

namespace {

using elementwise::Program;

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
  const auto variant = elementwise_beside(isa);
  if (!variant) return Made::failure(variant.error());
  made.sum_ = as_sum(*program);
  made.program_ = std::move(*program);
  made.variant_ = *variant;
  return made;
}

std::optional<PrologueProgram::Sum> PrologueProgram::as_sum(const Program& program) {
  using elementwise::DType;
  using elementwise::Op;
  using elementwise::Operand;
  constexpr std::size_t kNone = Program::kMaxStatements;
  const auto is_float = [](DType type) { return type == DType::f32 || type == DType::f16; };
  if (!std::all_of(program.inputs().begin(), program.inputs().end(), is_float)) return std::nullopt;
  const auto instructions = program.instructions();
  Sum sum;
  std::size_t made = kNone;  // the statement that is the sum so far
  const auto is_widened = [&](const Operand& operand) {
    return operand.kind == Operand::kTemporary && instructions[operand.index].op == Op::k_cast_f32;
  };
  /// An input of float32, or one of float16 as float32.
  const auto take = [&](const Operand& operand) {
    const Operand& input = is_widened(operand) ? instructions[operand.index].operands[0] : operand;
    const bool widened = &input != &operand;
    if (input.kind != Operand::kInput || widened != (program.inputs()[input.index] == DType::f16)) return false;
    sum.inputs.push_back(input.index);
    return true;
  };
  const auto is_sum = [&](const Operand& operand) { return operand.kind == Operand::kTemporary && operand.index == made; };
  for (std::size_t i = 0; i < instructions.size(); ++i) {
    const Operand *left = &instructions[i].operands[0], *right = &instructions[i].operands[1];
    if (instructions[i].op == Op::k_cast_f32) {
      if (left->kind != Operand::kInput || program.inputs()[left->index] != DType::f16) return std::nullopt;
      continue;
    }
    if (instructions[i].op == Op::k_mul && made == kNone) {
      if (left->kind == Operand::kLiteral) std::swap(left, right);
      if (right->kind != Operand::kLiteral || !take(*left)) return std::nullopt;
      sum.factor = program.literals()[right->index].f;
    } else if (instructions[i].op == Op::k_add) {
      if (is_sum(*right)) std::swap(left, right);
      const bool follows = made == kNone ? take(*left) : is_sum(*left);
      if (!follows || !take(*right)) return std::nullopt;
    } else {
      return std::nullopt;
    }
    made = i;
  }
  const std::size_t last = program.output_statements()[0];
  if (made == kNone ? !take({Operand::kTemporary, static_cast<std::uint16_t>(last)}) : last != made) return std::nullopt;
  return sum.inputs.size() <= norm::Terms::kMost ? std::optional(sum) : std::nullopt;
}

std::optional<norm::Terms> PrologueProgram::terms(const Shape& shape, std::span<const Tensor> inputs, bool halves) const {
  if (!sum_ || shape.empty()) return std::nullopt;
  const auto is_half = [&](std::size_t input) { return inputs[input].type == kFloat16; };
  if (!halves && std::any_of(sum_->inputs.begin(), sum_->inputs.end(), is_half)) return std::nullopt;
  norm::Terms made;
  made.factor = sum_->factor;
  made.count = sum_->inputs.size();
  std::vector<elementwise::Strides> steps;
  steps.reserve(sum_->inputs.size());
  for (const std::size_t input : sum_->inputs) steps.push_back(elementwise::strides_in(inputs[input].shape, shape));
  for (std::size_t axis = 0; axis + 1 < shape.size(); ++axis) {
    if (shape[axis] == 1) continue;
    // Neighbouring axes that all terms walk through as one are one.
    const bool joins = made.rank > 0 && std::all_of(steps.begin(), steps.end(), [&, i = std::size_t{0}](const auto& one) mutable {
                         return made.terms[i++].steps[made.rank - 1] == one[axis] * shape[axis];
                       });
    if (!joins && made.rank == norm::Terms::kMostDims) return std::nullopt;
    if (!joins) made.dims[made.rank++] = 1;
    made.dims[made.rank - 1] *= shape[axis];
    for (std::size_t i = 0; i < made.count; ++i) made.terms[i].steps[made.rank - 1] = steps[i][axis];
  }
  for (std::size_t i = 0; i < made.count; ++i) {
    made.terms[i].data = static_cast<const float*>(inputs[sum_->inputs[i]].data);
    made.terms[i].scalar = steps[i].back() == 0;
    made.terms[i].half = is_half(sum_->inputs[i]);
  }
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
