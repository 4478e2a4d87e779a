// Element-wise expressions: a program over broadcast tensors, evaluated tile by tile in the first-level cache.
//
// The text of a program has three sections parted by '|': inputs, statements, outputs.
//
//     i0:f32 i1:f32 | t0=sigmoid(i0) t1=mul(t0,i0) t2=add(t1,#0x1.8p+1:f32) | t2:f32 t1:f32
//
// Types are f32 f16 bf16 i32 i64 bool. Operands are inputs, earlier statements, or literals `#value:type`. float16 and bfloat16
// values are kept as float32 and rounded after every operation, so that results equal those of their operations one by one. Only
// kernels for CUDA devices run programs with bfloat16.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cpu/common.h"
#include "kernels/cpu/shape.h"

namespace onnxopt::elementwise {

enum class DType : std::uint8_t { f32, f16, i32, i64, boolean, bf16 };

std::size_t size_of(DType type);
std::string_view name_of(DType type);

/// A shape as sentences show it: [2,3].
std::string text_of(std::span<const std::int64_t> shape);

enum class Op : std::uint8_t {
#define ELEMENTWISE_OP(name, operands, literals, domain, result, cost) k_##name,
#include "kernels/cpu/elementwise/ops.inc"
#undef ELEMENTWISE_OP
};

struct OpInfo {
  std::string_view name;
  int operands;
  int literals;
  std::string_view domain;
  std::string_view result;
  int cost;
};

/// All operations, in the order of `Op`.
std::span<const OpInfo> op_table();

using onnxopt::Shape;

/// Where a value of a program comes from.
struct Operand {
  enum Kind : std::uint8_t { kNone, kInput, kTemporary, kLiteral } kind = kNone;
  std::uint16_t index = 0;
};

struct Instruction {
  Op op;
  DType type;    // of the operands that are computed with
  DType result;  // of the value that is made
  Operand operands[3];
  float parameters[2];
};

struct Literal {
  DType type;
  union {
    float f;
    std::int32_t i32;
    std::int64_t i64;
    std::uint8_t b;
  };
};

struct Schedule;

/// A parsed program. Immutable, so any number of threads may run it.
class Program {
 public:
  static constexpr std::size_t kMaxInputs = 32;
  static constexpr std::size_t kMaxOutputs = 16;
  static constexpr std::size_t kMaxStatements = 256;

  static Result<Program> parse(std::string_view text);

  std::span<const DType> inputs() const { return inputs_; }
  std::span<const DType> outputs() const { return output_types_; }
  std::span<const std::uint16_t> output_statements() const { return outputs_; }
  std::span<const Instruction> instructions() const { return instructions_; }
  std::span<const Literal> literals() const { return literals_; }
  /// How all outputs are made together.
  const Schedule& schedule() const { return *schedule_; }
  /// Whether it computes bfloat16, which no kernel for processors does.
  bool is_for_devices() const;
  /// Bit i says that the output depends on input i.
  std::uint32_t dependencies(std::size_t output) const { return dependencies_[output]; }

 private:
  friend class Parser;
  std::vector<DType> inputs_;
  std::vector<Instruction> instructions_;
  std::vector<Literal> literals_;
  std::vector<std::uint16_t> outputs_;
  std::vector<DType> output_types_;
  std::vector<std::uint32_t> dependencies_;
  std::shared_ptr<const Schedule> schedule_;
};

/// The shape of every output for these input shapes: the broadcast of the inputs that it depends on.
Result<std::vector<Shape>> output_shapes(const Program& program, std::span<const std::span<const std::int64_t>> inputs);

struct Plan;
struct Place;

/// One implementation of the executor, for one instruction set. `run` computes elements [begin, end) of a plan's domain, `run_tile`
/// the first `n` elements, whole vectors of 16, of a tile whose places the caller sets (see tile.h).
struct Variant {
  const char* name;
  const char* isa;
  void (*run)(const Plan&, std::int64_t begin, std::int64_t end);
  void (*run_tile)(const Schedule&, const Place* table, std::size_t n);
};

/// The variants that were built, best first; the portable one is last.
std::span<const Variant> variants();

/// What is wrong with a program that is for devices.
constexpr const char* kForDevices = "It computes bfloat16, for which only CUDA devices have kernels.";

/// Contiguous tensors. Inputs may be broadcast; outputs have the shapes that `output_shapes` gave.
struct Arguments {
  std::span<const void* const> inputs;
  std::span<const std::span<const std::int64_t>> input_shapes;
  std::span<void* const> outputs;
  std::span<const Shape> output_shapes;
};

/// Runs a program. The results do not depend on how `parallel_for` spreads the work.
Result<bool> run(const Program& program, const Variant& variant, const Arguments& arguments, const ParallelFor& parallel_for);

}  // namespace onnxopt::elementwise
