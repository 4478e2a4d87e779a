// A program for one launch: plain data, passed as the kernel's parameter, so that a launch allocates and copies nothing.
//
// A thread computes a few neighbouring elements together. It has one value at hand, the result of the statement before, and slots
// for values that are read later.
#pragma once

#include <cstdint>

#include "kernels/cpu/elementwise/elementwise.h"
#include "kernels/cuda/elementwise/tensors.h"

namespace onnxopt::elementwise::cuda {

/// What floats are rounded to.
enum class Rounding : std::uint8_t { kNone, kHalf, kBrain };

struct alignas(16) Statement {
  /// `kTake` makes a value at hand that is not in memory: a result of the kernel that the program is part of.
  enum Kind : std::uint8_t { kApply, kLoad, kStore, kTake };
  /// Operands: the value at hand, a scalar (with its index), or else a slot. A target: a slot, or nowhere.
  static constexpr std::uint16_t kAtHand = 0xffff, kNowhere = 0xffff, kScalar = 0x8000;

  Kind kind = kApply;
  Op op = {};
  DType type = {};                      // of the operands
  Rounding rounding = Rounding::kNone;  // of the result
  std::uint16_t target = kNowhere;
  std::uint16_t tensor = 0;  // the input that is loaded or taken, or the output that is stored
  std::uint16_t operands[3] = {kAtHand, kAtHand, kAtHand};
};

template <class Tensors, int Statements, int Scalars>
struct Code : Tensors {
  static constexpr std::size_t kStatements = Statements, kScalars = Scalars;
  using Domain = Tensors;

  Statement statements[Statements];
  std::uint64_t scalars[Scalars];
  std::uint16_t statement_count, slot_count;
};

/// What nearly all programs fit into; parameters of up to 4 KiB are the cheapest.
using SmallCode = Code<SmallTensors, 128, 64>;
static_assert(sizeof(SmallCode) <= 4096);

/// What every program fits into: its statements, a load per input, a store per output.
using LargeCode =
    Code<LargeTensors, Program::kMaxStatements + Program::kMaxInputs + Program::kMaxOutputs, 3 * Program::kMaxStatements>;
static_assert(sizeof(LargeCode) <= 32764, "the limit of kernel parameters since CUDA 12.1");
static_assert(LargeTensors::kInputs == Program::kMaxInputs && LargeTensors::kOutputs == Program::kMaxOutputs);

}  // namespace onnxopt::elementwise::cuda
