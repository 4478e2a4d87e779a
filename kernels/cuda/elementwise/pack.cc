#include "kernels/cuda/elementwise/pack.h"

#include <algorithm>
#include <bit>

namespace onnxopt::elementwise::cuda {

namespace {

constexpr int kNone = -1;

Rounding rounding_to(DType type) {
  return type == DType::f16 ? Rounding::kHalf : type == DType::bf16 ? Rounding::kBrain : Rounding::kNone;
}

/// A statement before its values have places.
struct Line {
  Statement statement;
  int operands[3] = {kNone, kNone, kNone};  // values; what is none is a scalar, or absent
  int value = kNone;                        // that is made
};

class Assembler {
 public:
  Assembler(const Program& program, std::span<const std::uint16_t> outputs, const Surroundings& surroundings)
      : program_(program),
        surroundings_(surroundings),
        needed_(program.instructions().size(), false),
        loaded_(program.inputs().size(), kNone),
        made_(program.instructions().size(), kNone) {
    for (std::uint16_t output : outputs) needed_[output] = true;
    for (std::size_t i = needed_.size(); i-- > 0;)
      if (needed_[i])
        for (const Operand& operand : program.instructions()[i].operands)
          if (operand.kind == Operand::kTemporary) needed_[operand.index] = true;
    for (std::size_t i = 0; i < needed_.size(); ++i)
      if (needed_[i]) add(i, outputs);
  }

  Listing run() {
    find_uses();
    assign_slots();
    for (const Line& line : lines_) listing_.statements.push_back(line.statement);
    return std::move(listing_);
  }

 private:
  void add(std::size_t index, std::span<const std::uint16_t> outputs) {
    const Instruction& instruction = program_.instructions()[index];
    Line line;
    line.statement.op = instruction.op;
    line.statement.type = instruction.type;
    line.statement.rounding = rounding_to(instruction.result);
    listing_.wide |= instruction.type == DType::i64 || instruction.result == DType::i64;
    const OpInfo& info = op_table()[static_cast<std::size_t>(instruction.op)];
    for (int k = 0; k < info.operands; ++k) {
      const Operand& operand = instruction.operands[k];
      if (operand.kind == Operand::kInput) line.operands[k] = loaded(operand.index);
      if (operand.kind == Operand::kTemporary) line.operands[k] = made_[operand.index];
      if (operand.kind == Operand::kLiteral) line.statement.operands[k] = scalar(pattern(program_.literals()[operand.index]));
    }
    for (int k = 0; k < info.literals; ++k)
      line.statement.operands[info.operands + k] = scalar(std::bit_cast<std::uint32_t>(instruction.parameters[k]));
    made_[index] = line.value = values_++;
    lines_.push_back(line);
    for (std::size_t k = 0; k < outputs.size() && surroundings_.stores; ++k)
      if (outputs[k] == index) lines_.push_back(storing(static_cast<std::uint16_t>(k)));
  }

  static Line storing(std::uint16_t output) {
    Line line;
    line.statement.kind = Statement::kStore;
    line.statement.tensor = output;
    return line;
  }

  /// The value of an input, which is loaded before it is read first.
  int loaded(std::uint16_t input) {
    if (loaded_[input] != kNone) return loaded_[input];
    const bool taken = input < surroundings_.taken;
    Line line;
    line.statement.kind = taken ? Statement::kTake : Statement::kLoad;
    line.statement.tensor = taken ? input : static_cast<std::uint16_t>(listing_.inputs.size());
    line.value = loaded_[input] = values_++;
    listing_.wide |= program_.inputs()[input] == DType::i64;
    if (!taken) listing_.inputs.push_back(input);
    lines_.push_back(line);
    return line.value;
  }

  static std::uint64_t pattern(const Literal& literal) {
    switch (literal.type) {
      case DType::i64: return static_cast<std::uint64_t>(literal.i64);
      case DType::i32: return static_cast<std::uint32_t>(literal.i32);
      case DType::boolean: return literal.b;
      default: return std::bit_cast<std::uint32_t>(literal.f);
    }
  }

  std::uint16_t scalar(std::uint64_t value) {
    auto& scalars = listing_.scalars;
    const auto found = std::find(scalars.begin(), scalars.end(), value);
    const auto index = static_cast<std::uint16_t>(found - scalars.begin());
    if (found == scalars.end()) scalars.push_back(value);
    return static_cast<std::uint16_t>(Statement::kScalar | index);
  }

  /// The last line that reads a value, and whether some line reads it when it is not at hand any more.
  void find_uses() {
    last_.assign(static_cast<std::size_t>(values_), 0);
    kept_.assign(static_cast<std::size_t>(values_), false);
    int at_hand = kNone;
    for (std::size_t i = 0; i < lines_.size(); ++i) {
      for (int value : lines_[i].operands)
        if (value != kNone) {
          last_[static_cast<std::size_t>(value)] = i;
          if (value != at_hand) kept_[static_cast<std::size_t>(value)] = true;
        }
      if (lines_[i].value != kNone) at_hand = lines_[i].value;
    }
  }

  /// Linear scan: a slot is free again after the last line that reads it.
  void assign_slots() {
    std::vector<std::uint16_t> slots(static_cast<std::size_t>(values_)), free;
    int at_hand = kNone;
    for (std::size_t i = 0; i < lines_.size(); ++i) {
      Line& line = lines_[i];
      for (int k = 0; k < 3; ++k) {
        if (line.operands[k] == kNone) continue;
        const auto value = static_cast<std::size_t>(line.operands[k]);
        line.statement.operands[k] = line.operands[k] == at_hand ? Statement::kAtHand : slots[value];
      }
      for (int k = 0; k < 3; ++k) {
        const int value = line.operands[k];
        const bool seen = std::find(line.operands, line.operands + k, value) != line.operands + k;
        if (value == kNone || seen || !kept_[static_cast<std::size_t>(value)]) continue;
        if (last_[static_cast<std::size_t>(value)] == i) free.push_back(slots[static_cast<std::size_t>(value)]);
      }
      if (line.value == kNone) continue;
      at_hand = line.value;
      if (!kept_[static_cast<std::size_t>(at_hand)]) continue;
      if (free.empty()) free.push_back(listing_.slot_count++);
      slots[static_cast<std::size_t>(at_hand)] = line.statement.target = free.back();
      free.pop_back();
    }
  }

  const Program& program_;
  const Surroundings surroundings_;
  std::vector<bool> needed_;
  std::vector<int> loaded_, made_;  // the values of inputs and statements
  std::vector<Line> lines_;
  int values_ = 0;
  std::vector<std::size_t> last_;
  std::vector<bool> kept_;
  Listing listing_;
};

bool is_aligned(const void* data, DType type, int elements) {
  const std::size_t bytes = std::min<std::size_t>(size_of(type) * static_cast<std::size_t>(elements), 16);
  return reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
}

/// Whether an input walks through memory as the domain does.
bool is_contiguous(const PlanInput& input, const Plan& plan) {
  std::int64_t step = 1;
  for (std::size_t axis = plan.rank; axis-- > 0;) {
    if (input.strides[axis] != step) return false;
    step *= plan.dims[axis];
  }
  return true;
}

template <class Input>
Input input_of(const PlanInput& source, const Plan& plan, int elements) {
  Input input{};
  input.data = source.data;
  input.type = source.type;
  std::copy_n(source.strides, plan.rank, input.strides);
  const bool rows = plan.row % elements == 0;
  if (source.scalar)
    input.walk = Walk::kRepeated;
  else if (is_contiguous(source, plan))
    input.walk = Walk::kContiguous;
  else
    input.walk = rows ? Walk::kRows : Walk::kAny;
  const std::size_t last = plan.rank - 1;
  const bool steps =
      std::all_of(source.strides, source.strides + last, [&](std::int64_t stride) { return stride % elements == 0; });
  const bool in_row = input.walk == Walk::kRows && source.strides[last] == 1 && steps;
  input.vector = (input.walk == Walk::kContiguous || in_row) && is_aligned(source.data, source.type, elements);
  return input;
}

}  // namespace

Listing assemble(const Program& program, std::span<const std::uint16_t> outputs, const Surroundings& surroundings) {
  return Assembler(program, outputs, surroundings).run();
}

Dim dim_of(std::int64_t size) {
  Dim dim{size, 0, 0};
  if (size <= 0 || size >= std::int64_t{1} << 31) return dim;
  const auto divisor = static_cast<std::uint64_t>(size);
  while ((std::uint64_t{1} << dim.shift) < divisor) ++dim.shift;
  dim.multiplier = static_cast<std::uint32_t>((((std::uint64_t{1} << dim.shift) - divisor) << 32) / divisor + 1);
  return dim;
}

std::vector<std::uint16_t> output_statements(const Program& program, const Plan& plan) {
  const std::size_t first = program.inputs().size() + program.literals().size();
  std::vector<std::uint16_t> statements;
  for (std::size_t i = 0; i < plan.output_count; ++i)
    statements.push_back(static_cast<std::uint16_t>(plan.outputs[i].place - first));
  return statements;
}

bool is_narrow(const Listing& listing, const Plan& plan) {
  return std::all_of(listing.inputs.begin(), listing.inputs.end(),
                     [&](std::uint16_t input) { return size_of(plan.inputs[input].type) <= 2; }) &&
         std::all_of(plan.outputs, plan.outputs + plan.output_count,
                     [](const PlanOutput& output) { return size_of(output.type) <= 2; });
}

template <class Domain>
bool pack_tensors(std::span<const std::uint16_t> inputs, const Plan& plan, int elements, Domain& domain) {
  if (inputs.size() > Domain::kInputs || plan.output_count > Domain::kOutputs || plan.rank > Domain::kRank) return false;
  for (std::size_t i = 0; i < inputs.size(); ++i)
    domain.inputs[i] = input_of<typename Domain::Input>(plan.inputs[inputs[i]], plan, elements);
  for (std::size_t i = 0; i < plan.output_count; ++i) {
    const PlanOutput& output = plan.outputs[i];
    domain.outputs[i] = {output.data, output.type, is_aligned(output.data, output.type, elements)};
  }
  for (std::size_t axis = 0; axis < plan.rank; ++axis) domain.dims[axis] = dim_of(plan.dims[axis]);
  domain.elements = plan.elements;
  domain.rank = static_cast<std::uint16_t>(plan.rank);
  domain.narrow = plan.elements < std::int64_t{1} << 31;
  return true;
}

template bool pack_tensors(std::span<const std::uint16_t>, const Plan&, int, SmallTensors&);
template bool pack_tensors(std::span<const std::uint16_t>, const Plan&, int, LargeTensors&);

template <class Code>
bool pack(const Listing& listing, const Plan& plan, int elements, Code& code) {
  if (listing.statements.size() > Code::kStatements || listing.scalars.size() > Code::kScalars ||
      !pack_tensors<typename Code::Domain>(listing.inputs, plan, elements, code))
    return false;
  std::copy(listing.statements.begin(), listing.statements.end(), code.statements);
  std::copy(listing.scalars.begin(), listing.scalars.end(), code.scalars);
  code.statement_count = static_cast<std::uint16_t>(listing.statements.size());
  code.slot_count = listing.slot_count;
  return true;
}

template bool pack(const Listing&, const Plan&, int, SmallCode&);
template bool pack(const Listing&, const Plan&, int, LargeCode&);

}  // namespace onnxopt::elementwise::cuda
