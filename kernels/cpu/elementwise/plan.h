// How a program is run: plain data that the executors read. It is made in plan.cc, which is compiled for the baseline, so that
// executors for larger instruction sets share no code with the rest of the library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels/cpu/elementwise/elementwise.h"

namespace onnxopt::elementwise {

/// Elements of a tile: eight registers of floats fill half of a 32 KiB first-level cache.
constexpr std::size_t kTile = 384;

/// Bytes from one register to the next: a tile of the widest type, and a few cache lines, so that registers do not share the low
/// bits of their addresses (a load would wait for a store 4 KiB away, and all would fall into the same sets of the cache).
constexpr std::size_t kSlot = kTile * 8 + 5 * 64;

/// Lanes of the widest vectors. A scalar is stored as often.
constexpr std::size_t kMostLanes = 16;

/// An operand or result of a tile: one element after the other, or as many as a vector has, which are repeated.
struct Place {
  void* data;
  bool scalar;
};

/// Dims after neighbours that no operand tells apart were merged.
constexpr std::size_t kMaxRank = 16;

/// A statement as executors read it. Operands and target are places in a table of addresses that each tile fills: inputs first,
/// then literals, then results.
struct Step {
  static constexpr std::uint16_t kAtHand = 0xffff;   // an operand: the result of the step before
  static constexpr std::uint16_t kNowhere = 0xffff;  // a target: only the next step reads the result

  Op op;
  DType type, result;
  /// How many steps, from here on, are one chain: operations of floats of which each reads the result of the one before. 0 is a
  /// step on its own, or one within a chain.
  std::uint16_t chain;
  std::uint16_t operands[3];
  std::uint16_t target;
  float parameters[2];
};

constexpr std::size_t kMaxLiterals = 3 * Program::kMaxStatements;

/// The steps that make a set of outputs, and where their results lie. It depends on the program alone.
struct Schedule {
  std::size_t step_count = 0, register_count = 0;
  double cost = 0;  // of one element, in additions
  Step steps[Program::kMaxStatements];
  std::uint16_t registers[Program::kMaxInputs + kMaxLiterals + Program::kMaxStatements];  // by place
};

Schedule make_schedule(const Program& program, std::span<const std::size_t> outputs);

struct PlanInput {
  const char* data;
  std::int64_t strides[kMaxRank];  // in elements, per dim of the domain; 0 where broadcast
  DType type;
  bool used;
  bool scalar;  // all strides are 0
};

struct PlanOutput {
  char* data;
  DType type;
  bool direct;  // whole vectors are written there by the step that makes them
  std::uint16_t place;
  std::int64_t row_step = 0;  // elements from one row to the next, in a plan of a window
};

/// A set of outputs of one shape, evaluated together over that shape.
struct Plan {
  const Schedule* schedule;
  const Literal* literals;
  std::size_t literal_count, input_count, output_count;
  bool window = false;  // the domain is a part of the outputs' rows
  std::size_t rank;
  std::int64_t dims[kMaxRank];  // innermost last
  std::int64_t row;             // size of the innermost dim
  std::int64_t elements;
  PlanInput inputs[Program::kMaxInputs];
  PlanOutput outputs[Program::kMaxOutputs];
};

/// A step in elements for each dim.
using Strides = Shape;

/// The strides of a contiguous tensor along each dim of the domain; a dim of size 1 is broadcast.
Strides strides_in(std::span<const std::int64_t> shape, const Shape& domain);

/// Fills in what a plan has of a set of outputs: everything but dims, strides and the outputs' row steps.
void describe(Plan& plan, const Program& program, const Schedule& schedule, const Arguments& arguments,
              std::span<const std::size_t> members);

/// Calls `use` with a plan for every set of outputs of one shape; the first failure ends it.
Result<bool> for_each_plan(const Program& program, const Arguments& arguments, const std::function<Result<bool>(const Plan&)>& use);

/// Runs a whole plan, on several threads where that pays.
void run_plan(const Plan& plan, const Variant& variant, const ParallelFor& parallel_for);

}  // namespace onnxopt::elementwise
