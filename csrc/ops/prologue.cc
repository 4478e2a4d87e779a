#include "csrc/ops/prologue.h"

#include <algorithm>

#include "csrc/ops/epilogue.h"
#include "csrc/ops/fused_elementwise.h"
#include "kernels/cpu/elementwise/plan.h"

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
  made.sum_ = as_sum(*program);
  made.program_ = std::move(*program);
  made.variant_ = &*found;
  return made;
}

std::optional<PrologueProgram::Sum> PrologueProgram::as_sum(const Program& program) {
  using elementwise::Op;
  using elementwise::Operand;
  const auto all_floats = [](elementwise::DType type) { return type == elementwise::DType::f32; };
  if (!std::all_of(program.inputs().begin(), program.inputs().end(), all_floats)) return std::nullopt;
  Sum sum;
  const auto take = [&](const Operand& operand) {
    if (operand.kind != Operand::kInput) return false;
    sum.inputs.push_back(operand.index);
    return true;
  };
  const auto instructions = program.instructions();
  for (std::size_t i = 0; i < instructions.size(); ++i) {
    const Operand *left = &instructions[i].operands[0], *right = &instructions[i].operands[1];
    if (instructions[i].op == Op::k_mul && i == 0) {
      if (left->kind == Operand::kLiteral) std::swap(left, right);
      if (right->kind != Operand::kLiteral || !take(*left)) return std::nullopt;
      sum.factor = program.literals()[right->index].f;
    } else if (instructions[i].op == Op::k_add) {
      if (right->kind == Operand::kTemporary) std::swap(left, right);
      const bool follows = i == 0 ? take(*left) : left->kind == Operand::kTemporary && left->index == i - 1;
      if (!follows || !take(*right)) return std::nullopt;
    } else {
      return std::nullopt;
    }
  }
  const bool last = program.output_statements()[0] + std::size_t{1} == instructions.size();
  return last && sum.inputs.size() <= norm::Terms::kMost ? std::optional(sum) : std::nullopt;
}

std::optional<norm::Terms> PrologueProgram::terms(const Shape& shape, std::span<const Tensor> inputs) const {
  if (!sum_ || shape.empty()) return std::nullopt;
  norm::Terms made;
  made.factor = sum_->factor;
  made.count = sum_->inputs.size();
  std::vector<std::vector<std::int64_t>> steps;
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
