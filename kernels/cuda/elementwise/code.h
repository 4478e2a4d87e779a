// A program for one launch: plain data, passed as the kernel's parameter, so that a launch allocates and copies nothing.
//
// A thread computes a few neighbouring elements together. It has one value at hand, the result of the statement before, and slots
// for values that are read later.
#pragma once

#include <cstdint>

#include "kernels/cpu/elementwise/elementwise.h"

namespace onnxopt::elementwise::cuda {

struct alignas(16) Statement {
  /// `kTake` makes a value at hand that is not in memory: a result of the kernel that the program is part of.
  enum Kind : std::uint8_t { kApply, kLoad, kStore, kTake };
  /// Operands: the value at hand, a scalar (with its index), or else a slot. A target: a slot, or nowhere.
  static constexpr std::uint16_t kAtHand = 0xffff, kNowhere = 0xffff, kScalar = 0x8000;

  Kind kind = kApply;
  Op op = {};
  DType type = {};    // of the operands
  bool half = false;  // the result is rounded to float16
  std::uint16_t target = kNowhere;
  std::uint16_t tensor = 0;  // the input that is loaded or taken, or the output that is stored
  std::uint16_t operands[3] = {kAtHand, kAtHand, kAtHand};
};

/// How an input is walked through along the domain.
enum class Walk : std::uint8_t {
  kRepeated,    // one element, all strides are 0
  kContiguous,  // element by element, as the domain
  kRows,        // the elements of a thread lie in one row, a stride apart
  kAny,
};

template <int Rank>
struct Input {
  const void* data;
  DType type;
  Walk walk;
  bool vector;                 // the elements of a thread are contiguous and aligned
  std::int64_t strides[Rank];  // in elements, per dim; 0 where broadcast
};

struct Output {
  void* data;
  DType type;
  bool vector;
};

/// A dim, and how to divide by it: n / size = (mulhi(n, multiplier) + n) >> shift for n below 2^31 (Granlund and Montgomery,
/// "Division by Invariant Integers using Multiplication").
struct Dim {
  std::int64_t size;
  std::uint32_t multiplier, shift;
};

template <int Statements, int Scalars, int Inputs, int Outputs, int Rank>
struct Code {
  static constexpr std::size_t kStatements = Statements, kScalars = Scalars, kInputs = Inputs, kOutputs = Outputs, kRank = Rank;
  using Input = cuda::Input<Rank>;

  Statement statements[Statements];
  std::uint64_t scalars[Scalars];
  Input inputs[Inputs];
  Output outputs[Outputs];
  Dim dims[Rank];  // innermost last
  std::int64_t elements;
  std::uint16_t statement_count, slot_count, rank;
  bool narrow;  // elements can be numbered with 31 bits
};

/// What nearly all programs fit into; parameters of up to 4 KiB are the cheapest.
using SmallCode = Code<128, 64, 16, 8, 6>;
static_assert(sizeof(SmallCode) <= 4096);

/// What every program fits into: its statements, a load per input, a store per output.
using LargeCode = Code<Program::kMaxStatements + Program::kMaxInputs + Program::kMaxOutputs, 3 * Program::kMaxStatements,
                       Program::kMaxInputs, Program::kMaxOutputs, 16>;
static_assert(sizeof(LargeCode) <= 32764, "the limit of kernel parameters since CUDA 12.1");

}  // namespace onnxopt::elementwise::cuda
