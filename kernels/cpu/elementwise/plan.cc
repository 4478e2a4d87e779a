// Planning and parallel running of programs.
#include "kernels/cpu/elementwise/plan.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>

namespace onnxopt::elementwise {

namespace {

/// Element operations below which threads cost more than they save.
constexpr double kGrain = 1 << 16;
constexpr std::int64_t kMostChunks = 256;

bool is_float(DType type) { return type == DType::f32 || type == DType::f16; }

/// Whether the executor has vector code for the statement, as a part of a chain.
bool is_link(const Instruction& instruction) {
  const bool other = instruction.op == Op::k_pow || instruction.op == Op::k_where;
  return is_float(instruction.type) && is_float(instruction.result) && !other;
}

std::size_t reads(const Instruction& instruction, std::uint16_t statement) {
  return static_cast<std::size_t>(
      std::count_if(std::begin(instruction.operands), std::end(instruction.operands),
                    [&](const Operand& operand) { return operand.kind == Operand::kTemporary && operand.index == statement; }));
}

/// Orders statements so that each follows one that it reads, wherever that is possible: those become chains.
class Scheduler {
 public:
  Scheduler(const Program& program, std::span<const std::size_t> outputs)
      : program_(program),
        code_(program.instructions()),
        state_(code_.size(), kUnneeded),
        readers_(code_.size(), 0),
        is_output_(code_.size(), false) {
    for (std::size_t output : outputs) {
      need(program.output_statements()[output]);
      is_output_[program.output_statements()[output]] = true;
    }
    for (std::size_t i = code_.size(); i-- > 0;)
      if (state_[i] == kWaiting)
        for (const Operand& operand : code_[i].operands)
          if (operand.kind == Operand::kTemporary) need(operand.index);
  }

  Schedule run() {
    for (std::uint16_t statement = 0; statement < code_.size(); ++statement)
      if (state_[statement] == kWaiting) follow(statement);
    assign_registers();
    return schedule_;
  }

 private:
  enum State : std::uint8_t { kUnneeded, kWaiting, kDone };

  void need(std::uint16_t statement) {
    state_[statement] = kWaiting;
    ++readers_[statement];  // an output counts as one that reads
  }

  bool is_ready(std::uint16_t statement) const {
    return std::none_of(std::begin(code_[statement].operands), std::end(code_[statement].operands), [&](const Operand& operand) {
      return operand.kind == Operand::kTemporary && state_[operand.index] != kDone;
    });
  }

  /// The first statement that may be the next of a chain; the number of statements if there is none.
  std::uint16_t successor(std::uint16_t statement) const {
    std::uint16_t next = statement + 1;
    while (next < code_.size() &&
           !(state_[next] == kWaiting && is_link(code_[next]) && reads(code_[next], statement) > 0 && is_ready(next)))
      ++next;
    return next;
  }

  /// Appends a statement, of which everything that it reads was appended before, and the chain that it begins.
  void follow(std::uint16_t statement) {
    Step& head = append(statement);
    if (!is_link(code_[statement])) return;
    head.chain = 1;
    head.operands[0] = place(code_[statement].operands[0]);
    for (std::uint16_t next = successor(statement); next < code_.size(); next = successor(statement)) {
      if (readers_[statement] == reads(code_[next], statement)) schedule_.steps[schedule_.step_count - 1].target = Step::kNowhere;
      Step& step = append(next);
      for (std::uint16_t& operand : step.operands)
        if (operand == place_of(statement)) operand = Step::kAtHand;
      ++head.chain;
      statement = next;
    }
  }

  Step& append(std::uint16_t statement) {
    const Instruction& code = code_[statement];
    Step& step = schedule_.steps[schedule_.step_count++];
    step = {code.op, code.type, code.result, 0, {}, place_of(statement), {code.parameters[0], code.parameters[1]}};
    for (std::size_t i = 0; i < 3; ++i) step.operands[i] = place(code.operands[i]);
    schedule_.cost += op_table()[static_cast<std::size_t>(code.op)].cost;
    state_[statement] = kDone;
    return step;
  }

  std::uint16_t place_of(std::size_t statement) const {
    return static_cast<std::uint16_t>(program_.inputs().size() + program_.literals().size() + statement);
  }

  std::uint16_t place(const Operand& operand) const {
    switch (operand.kind) {
      case Operand::kInput: return operand.index;
      case Operand::kLiteral: return static_cast<std::uint16_t>(program_.inputs().size() + operand.index);
      case Operand::kTemporary: return place_of(operand.index);
      default: return Step::kAtHand;
    }
  }

  /// Linear scan: a register is free again after the last step that reads it. Inputs and literals keep theirs, for copies and
  /// splats.
  void assign_registers() {
    const std::size_t first = place_of(0);
    std::uint16_t next = 0;
    for (std::size_t i = 0; i < first; ++i) schedule_.registers[i] = next++;
    std::vector<std::size_t> last(code_.size(), 0);
    for (std::size_t i = 0; i < schedule_.step_count; ++i)
      for (std::uint16_t operand : schedule_.steps[i].operands)
        if (operand >= first && operand != Step::kAtHand) last[operand - first] = i;
    for (std::size_t i = 0; i < code_.size(); ++i)
      if (is_output_[i]) last[i] = schedule_.step_count;
    std::vector<std::uint16_t> free;
    std::vector<std::size_t> live;
    for (std::size_t i = 0; i < schedule_.step_count; ++i) {
      const std::uint16_t target = schedule_.steps[i].target;
      if (target == Step::kNowhere) continue;
      // A result gets its register before its operands' are freed: it never overlaps a source of another width.
      if (free.empty()) free.push_back(next++);
      schedule_.registers[target] = free.back();
      free.pop_back();
      live.push_back(target - first);
      std::erase_if(live, [&](std::size_t statement) {
        if (last[statement] > i) return false;
        free.push_back(schedule_.registers[first + statement]);
        return true;
      });
    }
    schedule_.register_count = next;
  }

  const Program& program_;
  std::span<const Instruction> code_;
  std::vector<State> state_;
  std::vector<std::size_t> readers_;
  std::vector<bool> is_output_;
  Schedule schedule_;
};

/// Fills in the strides of an input along each dim of the domain.
void set_strides(std::span<const std::int64_t> shape, const Shape& domain, std::int64_t* strides) {
  std::fill_n(strides, domain.size(), 0);
  std::int64_t step = 1;
  for (std::size_t i = 0; i < shape.size() && i < domain.size(); ++i) {
    const std::int64_t size = shape[shape.size() - 1 - i];
    strides[domain.size() - 1 - i] = size == 1 ? 0 : step;
    step *= size;
  }
}

/// Merges neighbouring dims that every input walks through as if they were one. `strides` has those of one input after the other.
/// False when too many dims are left.
bool collapse_dims(Plan& plan, const Shape& shape, const std::int64_t* strides) {
  const auto stride = [&](std::size_t input, std::size_t axis) { return strides[input * shape.size() + axis]; };
  plan.rank = 0;
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    if (shape[axis] == 1) continue;
    bool merge = plan.rank > 0;
    for (std::size_t i = 0; merge && i < plan.input_count; ++i)
      merge = plan.inputs[i].strides[plan.rank - 1] == stride(i, axis) * shape[axis];
    if (!merge && plan.rank == kMaxRank) return false;
    if (!merge) plan.dims[plan.rank++] = 1;
    plan.dims[plan.rank - 1] *= shape[axis];
    for (std::size_t i = 0; i < plan.input_count; ++i) plan.inputs[i].strides[plan.rank - 1] = stride(i, axis);
  }
  if (plan.rank == 0) {
    plan.dims[plan.rank++] = 1;
    for (std::size_t i = 0; i < plan.input_count; ++i) plan.inputs[i].strides[0] = 0;
  }
  for (std::size_t i = 0; i < plan.input_count; ++i) {
    PlanInput& input = plan.inputs[i];
    input.scalar = std::all_of(input.strides, input.strides + plan.rank, [](std::int64_t stride) { return stride == 0; });
  }
  return true;
}

bool make_plan(Plan& plan, const Program& program, const Schedule& schedule, const Arguments& arguments,
               std::span<const std::size_t> members) {
  const Shape& shape = arguments.output_shapes[members[0]];
  describe(plan, program, schedule, arguments, members);
  constexpr std::size_t kFew = 8 * kMaxRank;  // of strides, which most programs have no more of: they need no memory
  std::int64_t few[kFew];
  std::vector<std::int64_t> many;
  std::int64_t* strides = few;
  if (plan.input_count * shape.size() > kFew) {
    many.resize(plan.input_count * shape.size());
    strides = many.data();
  }
  for (std::size_t i = 0; i < plan.input_count; ++i)
    set_strides(plan.inputs[i].used ? arguments.input_shapes[i] : std::span<const std::int64_t>(), shape,
                strides + i * shape.size());
  if (!collapse_dims(plan, shape, strides)) return false;
  plan.row = plan.dims[plan.rank - 1];
  plan.elements = 1;
  for (std::size_t axis = 0; axis < plan.rank; ++axis) plan.elements *= plan.dims[axis];
  return true;
}

struct Job {
  const Plan* plan;
  const Variant* variant;
  std::int64_t chunk;
};

void run_chunk(void* user, std::size_t index) {
  const Job& job = *static_cast<const Job*>(user);
  const std::int64_t begin = static_cast<std::int64_t>(index) * job.chunk;
  job.variant->run(*job.plan, begin, std::min(begin + job.chunk, job.plan->elements));
}

}  // namespace

void run_plan(const Plan& plan, const Variant& variant, const ParallelFor& parallel_for) {
  if (plan.elements == 0) return;
  if (plan.schedule->cost * static_cast<double>(plan.elements) <= kGrain) {
    variant.run(plan, 0, plan.elements);
    return;
  }
  // Chunks of a few grains, cut at whole tiles: far more of them than threads, so that all threads finish together, but no more
  // than that, as each begins with filling its registers.
  constexpr auto tile = static_cast<std::int64_t>(kTile);
  const auto least = static_cast<std::int64_t>(kGrain * 4 / plan.schedule->cost);
  std::int64_t chunk = std::max<std::int64_t>(std::max(least, plan.elements / kMostChunks) / tile, 1) * tile;
  // At least two, or a second thread has nothing to do.
  if (chunk * 2 > plan.elements) chunk = (plan.elements / 2 + 64) / 64 * 64;
  Job job{&plan, &variant, chunk};
  parallel_for(static_cast<std::size_t>((plan.elements + chunk - 1) / chunk), run_chunk, &job);
}

Strides strides_in(std::span<const std::int64_t> shape, const Shape& domain) {
  Strides strides(domain.size());
  set_strides(shape, domain, strides.data());
  return strides;
}

void describe(Plan& plan, const Program& program, const Schedule& schedule, const Arguments& arguments,
              std::span<const std::size_t> members) {
  plan.schedule = &schedule;
  plan.literals = program.literals().data();
  plan.literal_count = program.literals().size();
  plan.input_count = arguments.inputs.size();
  plan.output_count = 0;
  std::uint32_t reads = 0;
  for (std::size_t output : members) reads |= program.dependencies(output);
  for (std::size_t i = 0; i < plan.input_count; ++i) {
    PlanInput& input = plan.inputs[i];
    input.data = static_cast<const char*>(arguments.inputs[i]);
    input.type = program.inputs()[i];
    input.used = reads >> i & 1;
  }
  const std::size_t statements = program.inputs().size() + program.literals().size();  // where their places begin
  for (std::size_t output : members) {
    const std::uint16_t statement = program.output_statements()[output];
    const DType type = program.instructions()[statement].result;
    const auto place = static_cast<std::uint16_t>(statements + statement);
    bool direct = type != DType::f16;  // which is computed in float
    for (std::size_t i = 0; i < plan.output_count; ++i) direct = direct && plan.outputs[i].place != place;
    plan.outputs[plan.output_count++] = {static_cast<char*>(arguments.outputs[output]), type, direct, place};
  }
}

Schedule make_schedule(const Program& program, std::span<const std::size_t> outputs) { return Scheduler(program, outputs).run(); }

Result<bool> for_each_plan(const Program& program, const Arguments& arguments,
                           const std::function<Result<bool>(const Plan&)>& use) {
  const std::span<const Shape> shapes = arguments.output_shapes;
  bool done[Program::kMaxOutputs] = {};
  for (std::size_t first = 0; first < shapes.size(); ++first) {
    if (done[first]) continue;
    std::size_t members[Program::kMaxOutputs], count = 0;
    for (std::size_t other = first; other < shapes.size(); ++other)
      if (!done[other] && shapes[other] == shapes[first]) {
        members[count++] = other;
        done[other] = true;
      }
    const std::span<const std::size_t> together(members, count);
    std::unique_ptr<const Schedule> part;  // large: it is made only where it is needed
    if (count < shapes.size()) part = std::make_unique<const Schedule>(make_schedule(program, together));
    Plan plan;
    if (!make_plan(plan, program, part ? *part : program.schedule(), arguments, together))
      return Result<bool>::failure("The operands are broadcast along more than 16 separate dims.");
    if (Result<bool> used = use(plan); !used) return used;
  }
  return true;
}

Result<bool> run(const Program& program, const Variant& variant, const Arguments& arguments, const ParallelFor& parallel_for) {
  if (program.is_for_devices()) return Result<bool>::failure(kForDevices);
  return for_each_plan(program, arguments, [&](const Plan& plan) -> Result<bool> {
    run_plan(plan, variant, parallel_for);
    return true;
  });
}

}  // namespace onnxopt::elementwise
