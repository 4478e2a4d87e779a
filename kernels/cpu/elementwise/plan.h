// How a program is run over one shape: plain data that the executors read. It is made in plan.cc, which is compiled for the
// baseline, so that executors for larger instruction sets share no code with the rest of the library.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/elementwise/elementwise.h"

namespace onnxopt::elementwise {

/// Elements of a tile: eight registers of floats fill half of a 32 KiB first-level cache.
constexpr std::size_t kTile = 384;

/// Dims after neighbours that no operand tells apart were merged.
constexpr std::size_t kMaxRank = 16;

struct PlanInput {
  const char* data;
  std::int64_t strides[kMaxRank];  // in elements, per dim of the domain; 0 where broadcast
  DType type;
  bool used;
  bool scalar;  // all strides are 0
};

/// A set of outputs of one shape, evaluated together over that shape.
struct Plan {
  const Instruction* instructions;
  const Literal* literals;
  std::size_t literal_count, input_count, step_count, output_count, register_count;
  std::size_t rank;
  std::int64_t dims[kMaxRank];  // innermost last
  std::int64_t row;             // size of the innermost dim
  std::int64_t elements;
  double cost;  // of one element, in additions
  PlanInput inputs[Program::kMaxInputs];
  std::uint16_t input_slots[Program::kMaxInputs];  // registers for copies and splats
  std::uint16_t literal_slots[3 * Program::kMaxStatements];
  std::uint16_t steps[Program::kMaxStatements];      // the instructions that are needed, in order
  std::uint16_t registers[Program::kMaxStatements];  // of each instruction's result
  std::int16_t output_of[Program::kMaxStatements];   // output that an instruction writes directly, or -1
  std::uint16_t output_steps[Program::kMaxOutputs];  // instruction that makes an output
  char* targets[Program::kMaxOutputs];
};

/// Memory of the calling thread, aligned to a cache line, kept for the next call.
char* scratch(std::size_t bytes);

}  // namespace onnxopt::elementwise
