#include "kernels/cpu/recurrence/gated.h"

#include <algorithm>
#include <span>

namespace onnxopt::recurrence {

namespace {

using elementwise::Instruction;
using elementwise::Op;
using elementwise::Operand;
using Operands = std::vector<Operand>;

bool same(const Operand& a, const Operand& b) { return a.kind == b.kind && a.index == b.index; }

class Finder {
 public:
  explicit Finder(const Phase& phase) : phase_(phase), instructions_(phase.program.instructions()) {}

  /// The step that makes `next` of the only carried value, and the sums of `summed`.
  std::optional<GatedStep> find(const Operand& next, const Operand& summed) const {
    const Instruction* const sum = made_by(next, Op::k_add);
    if (!sum) return std::nullopt;
    for (const int gated : {0, 1}) {
      GatedStep step;
      if (read_gate(sum->operands[gated], step) && to_values(product(sum->operands[1 - gated]), step.update) &&
          read_sum(summed, next, step))
        return step;
    }
    return std::nullopt;
  }

 private:
  const Instruction* made_by(const Operand& operand, Op op) const {
    if (operand.kind != Operand::kTemporary) return nullptr;
    const Instruction& one = instructions_[operand.index];
    return one.op == op && one.result == elementwise::DType::f32 ? &one : nullptr;
  }

  /// What is multiplied one after the other; empty where a product of products is.
  Operands product(const Operand& operand) const {
    const Instruction* const made = made_by(operand, Op::k_mul);
    if (!made) return {operand};
    const bool left = made_by(made->operands[0], Op::k_mul) != nullptr, right = made_by(made->operands[1], Op::k_mul) != nullptr;
    if (left && right) return {};
    Operands factors = product(made->operands[right ? 1 : 0]);
    if (!factors.empty()) factors.push_back(made->operands[right ? 0 : 1]);
    return factors;
  }

  bool is_carried(const Operand& operand) const { return operand.kind == Operand::kInput && phase_.operands[operand.index] == 0; }

  bool to_values(const Operands& factors, std::vector<std::size_t>& values) const {
    for (const Operand& one : factors) {
      if (one.kind != Operand::kInput || is_carried(one)) return false;
      values.push_back(phase_.operands[one.index]);
    }
    return !factors.empty() && factors.size() <= Factors::kMost;
  }

  /// A product whose last factor is the carried value.
  bool read_gate(const Operand& operand, GatedStep& step) const {
    Operands factors = product(operand);
    if (factors.size() == 2 && is_carried(factors[0])) std::swap(factors[0], factors[1]);
    if (factors.size() < 2 || !is_carried(factors.back())) return false;
    factors.pop_back();
    const Instruction* const power = factors.size() == 1 ? made_by(factors[0], Op::k_exp) : nullptr;
    step.exponential = power != nullptr;
    return to_values(power ? product(power->operands[0]) : factors, step.gate);
  }

  /// A product whose first factor is what the carried value becomes.
  bool read_sum(const Operand& operand, const Operand& next, GatedStep& step) const {
    Operands factors = product(operand);
    if (factors.size() == 2 && same(factors[1], next)) std::swap(factors[0], factors[1]);
    if (factors.empty() || !same(factors[0], next)) return false;
    factors.erase(factors.begin());
    return factors.empty() || to_values(factors, step.read);
  }

  const Phase& phase_;
  std::span<const Instruction> instructions_;
};

}  // namespace

std::optional<GatedStep> find_gated(const Step& step) {
  if (step.counts.carried != 1 || step.phases.size() != 1 || step.has_products || step.stacked.size() != 1 || !step.summed[0])
    return std::nullopt;
  const Phase& phase = step.phases[0];
  if (step.next[0] < phase.first || step.stacked[0] < phase.first) return std::nullopt;
  const auto output = [&](std::size_t value) {
    return Operand{Operand::kTemporary, phase.program.output_statements()[value - phase.first]};
  };
  return Finder(phase).find(output(step.next[0]), output(step.stacked[0]));
}

}  // namespace onnxopt::recurrence
