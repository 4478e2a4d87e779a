// Planning and parallel running of programs.
#include "kernels/cpu/elementwise/plan.h"

#include <algorithm>
#include <cstdint>
#include <memory>

namespace onnxopt::elementwise {

namespace {

/// Element operations below which threads cost more than they save.
constexpr double kGrain = 1 << 16;

std::vector<bool> needed_steps(const Program& program, std::span<const std::size_t> outputs) {
  std::vector<bool> needed(program.instructions().size(), false);
  for (std::size_t output : outputs) needed[program.output_statements()[output]] = true;
  for (std::size_t i = needed.size(); i-- > 0;)
    if (needed[i])
      for (const Operand& operand : program.instructions()[i].operands)
        if (operand.kind == Operand::kTemporary) needed[operand.index] = true;
  return needed;
}

/// Linear scan: a register is free again after the last instruction that reads it.
void assign_registers(const Program& program, std::span<const std::size_t> outputs, Plan& plan) {
  std::vector<std::size_t> last(program.instructions().size(), 0);
  for (std::size_t i = 0; i < plan.step_count; ++i)
    for (const Operand& operand : program.instructions()[plan.steps[i]].operands)
      if (operand.kind == Operand::kTemporary) last[operand.index] = plan.steps[i];
  for (std::size_t output : outputs) last[program.output_statements()[output]] = program.instructions().size();
  std::vector<std::uint16_t> free, live;
  std::uint16_t next = 0;
  for (std::size_t i = 0; i < plan.step_count; ++i) {
    // A result gets its register before its operands' are freed: it never overlaps a source of another width.
    const std::uint16_t step = plan.steps[i];
    if (free.empty()) free.push_back(next++);
    plan.registers[step] = free.back();
    free.pop_back();
    live.push_back(step);
    std::erase_if(live, [&](std::uint16_t other) {
      if (last[other] > step) return false;
      free.push_back(plan.registers[other]);
      return true;
    });
  }
  for (std::size_t i = 0; i < plan.input_count; ++i) plan.input_slots[i] = next++;
  for (std::size_t i = 0; i < plan.literal_count; ++i) plan.literal_slots[i] = next++;
  plan.register_count = next;
}

/// The strides of a contiguous tensor along each dim of the domain; a dim of size 1 is broadcast.
std::vector<std::int64_t> strides_in(std::span<const std::int64_t> shape, const Shape& domain) {
  std::vector<std::int64_t> strides(domain.size(), 0);
  std::int64_t step = 1;
  for (std::size_t i = 0; i < shape.size() && i < domain.size(); ++i) {
    const std::int64_t size = shape[shape.size() - 1 - i];
    strides[domain.size() - 1 - i] = size == 1 ? 0 : step;
    step *= size;
  }
  return strides;
}

/// Merges neighbouring dims that every input walks through as if they were one. False when too many are left.
bool collapse_dims(Plan& plan, const Shape& shape, const std::vector<std::vector<std::int64_t>>& strides) {
  plan.rank = 0;
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    if (shape[axis] == 1) continue;
    bool merge = plan.rank > 0;
    for (std::size_t i = 0; merge && i < plan.input_count; ++i)
      merge = plan.inputs[i].strides[plan.rank - 1] == strides[i][axis] * shape[axis];
    if (!merge && plan.rank == kMaxRank) return false;
    if (!merge) plan.dims[plan.rank++] = 1;
    plan.dims[plan.rank - 1] *= shape[axis];
    for (std::size_t i = 0; i < plan.input_count; ++i) plan.inputs[i].strides[plan.rank - 1] = strides[i][axis];
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

std::unique_ptr<Plan> make_plan(const Program& program, const Arguments& arguments, std::span<const std::size_t> members) {
  auto plan = std::make_unique<Plan>();
  const Shape& shape = arguments.output_shapes[members[0]];
  plan->instructions = program.instructions().data();
  plan->literals = program.literals().data();
  plan->literal_count = program.literals().size();
  plan->input_count = arguments.inputs.size();
  std::uint32_t reads = 0;
  for (std::size_t output : members) reads |= program.dependencies(output);
  std::vector<std::vector<std::int64_t>> strides;
  for (std::size_t i = 0; i < plan->input_count; ++i) {
    const bool used = reads >> i & 1;
    plan->inputs[i] = {static_cast<const char*>(arguments.inputs[i]), {}, program.inputs()[i], used, false};
    strides.push_back(used ? strides_in(arguments.input_shapes[i], shape) : std::vector<std::int64_t>(shape.size(), 0));
  }
  if (!collapse_dims(*plan, shape, strides)) return nullptr;
  plan->row = plan->dims[plan->rank - 1];
  plan->elements = 1;
  for (std::size_t axis = 0; axis < plan->rank; ++axis) plan->elements *= plan->dims[axis];
  const std::vector<bool> needed = needed_steps(program, members);
  for (std::size_t i = 0; i < needed.size(); ++i) {
    if (!needed[i]) continue;
    plan->steps[plan->step_count++] = static_cast<std::uint16_t>(i);
    plan->cost += op_table()[static_cast<std::size_t>(program.instructions()[i].op)].cost;
  }
  assign_registers(program, members, *plan);
  std::fill(std::begin(plan->output_of), std::end(plan->output_of), std::int16_t{-1});
  for (std::size_t output : members) {
    const std::uint16_t step = program.output_statements()[output];
    const std::size_t index = plan->output_count++;
    plan->output_steps[index] = step;
    plan->targets[index] = static_cast<char*>(arguments.outputs[output]);
    if (program.instructions()[step].result != DType::f16 && plan->output_of[step] < 0)
      plan->output_of[step] = static_cast<std::int16_t>(index);
  }
  return plan;
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

void run_plan(const Plan& plan, const Variant& variant, const ParallelFor& parallel_for) {
  if (plan.elements == 0) return;
  if (plan.cost * static_cast<double>(plan.elements) <= kGrain) {
    variant.run(plan, 0, plan.elements);
    return;
  }
  // Chunks of a few grains, cut at whole tiles: far more of them than threads, so that all threads finish together.
  constexpr auto tile = static_cast<std::int64_t>(kTile);
  std::int64_t chunk = std::max<std::int64_t>(static_cast<std::int64_t>(kGrain * 4 / plan.cost) / tile, 1) * tile;
  // At least two, or a second thread has nothing to do.
  if (chunk * 2 > plan.elements) chunk = (plan.elements / 2 + 64) / 64 * 64;
  Job job{&plan, &variant, chunk};
  parallel_for(static_cast<std::size_t>((plan.elements + chunk - 1) / chunk), run_chunk, &job);
}

}  // namespace

char* scratch(std::size_t bytes) {
  constexpr std::size_t line = 64;
  thread_local std::unique_ptr<char[]> memory;
  thread_local std::size_t size = 0;
  if (size < bytes + line) {
    memory.reset(new char[bytes + line]());
    size = bytes + line;
  }
  const auto address = reinterpret_cast<std::uintptr_t>(memory.get());
  return memory.get() + (line - address % line) % line;
}

Result<bool> run(const Program& program, const Variant& variant, const Arguments& arguments, const ParallelFor& parallel_for) {
  std::vector<bool> done(arguments.output_shapes.size(), false);
  for (std::size_t first = 0; first < done.size(); ++first) {
    if (done[first]) continue;
    std::vector<std::size_t> members;
    for (std::size_t other = first; other < done.size(); ++other)
      if (!done[other] && arguments.output_shapes[other] == arguments.output_shapes[first]) {
        members.push_back(other);
        done[other] = true;
      }
    const std::unique_ptr<Plan> plan = make_plan(program, arguments, members);
    if (!plan) return Result<bool>::failure("The operands are broadcast along more than 16 separate dims.");
    run_plan(*plan, variant, parallel_for);
  }
  return true;
}

}  // namespace onnxopt::elementwise
