// A tile of a program that its owner sets up once and runs many times, each time with other addresses: what a step of a recurrence
// is.
#pragma once

#include <cstring>

#include "kernels/cpu/elementwise/plan.h"

namespace onnxopt::elementwise {

/// The places of one program's operands and results. Outputs have the types of the program; none is float16.
class Tile {
 public:
  /// Bytes of memory that a tile of this plan needs.
  static std::size_t bytes(const Plan& plan) { return plan.schedule->register_count * kSlot; }

  Tile(const Plan& plan, char* memory) : schedule_(plan.schedule), plan_(&plan), memory_(memory) {
    for (std::size_t i = 0; i < plan.literal_count; ++i) {
      const Literal& literal = plan.literals[i];
      const std::size_t place = plan.input_count + i;
      const std::size_t size = literal.type == DType::i64 ? 8 : literal.type == DType::boolean ? 1 : 4;
      for (std::size_t lane = 0; lane < kMostLanes; ++lane) std::memcpy(slot(place) + lane * size, &literal.f, size);
      table_[place] = {slot(place), true};
    }
    for (std::size_t i = 0; i < schedule_->step_count; ++i) {
      const std::uint16_t target = schedule_->steps[i].target;
      if (target != Step::kNowhere) table_[target] = {slot(target), false};
    }
  }

  /// Where input `i` is read; `repeated` of as many elements as a vector has.
  void read(std::size_t i, const void* data, bool repeated) { table_[i] = {const_cast<void*>(data), repeated}; }

  /// Memory of input `i` for a copy of it, which lasts as long as the tile.
  float* copy_of(std::size_t i) { return reinterpret_cast<float*>(slot(i)); }

  /// Lets output `i` be written to `target`, or to memory of the tile where that is null. False if the output is made elsewhere.
  bool write(std::size_t i, void* target) {
    const PlanOutput& output = plan_->outputs[i];
    if (!output.direct) return false;
    table_[output.place].data = target ? target : slot(output.place);
    return true;
  }

  /// Where output `i` is after a run.
  const Place& made(std::size_t i) const { return table_[plan_->outputs[i].place]; }

  /// Runs the first `n` elements, whole vectors.
  void run(const Variant& variant, std::size_t n) const { variant.run_tile(*schedule_, table_, n); }

 private:
  char* slot(std::size_t place) { return memory_ + schedule_->registers[place] * kSlot; }

  const Schedule* schedule_;
  const Plan* plan_;
  char* memory_;
  Place table_[Program::kMaxInputs + kMaxLiterals + Program::kMaxStatements];
};

}  // namespace onnxopt::elementwise
