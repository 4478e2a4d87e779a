// From a problem to one launch. A block takes elements, or whole rows where a step multiplies or sums them, through all steps;
// columns of a table in shared memory hold their values.
#pragma once

#include "kernels/cuda/elementwise/pack.h"
#include "kernels/cuda/recurrence/recurrence.h"

namespace onnxopt::recurrence::cuda {

namespace ew = elementwise::cuda;
using onnxopt::cuda::Launch;

/// A value of a step: a column of the table, or, with this bit, a source.
constexpr std::uint16_t kSource = 0x8000;

struct Copy {
  std::uint16_t from, to;  // a value, and a column
};

struct Multiply {
  std::uint16_t from, to, bias;  // columns
  std::uint16_t matrix;
  bool biased;
};

/// Multiplications, and then statements that read values and write columns one after the other.
struct Stage {
  std::uint16_t first_product, products, first_statement, statements, first_operand, first_output;
};

struct Stack {
  float* data;        // of the first step
  std::int64_t step;  // floats from one step to the next
  std::uint16_t from;
  bool summed;
};

/// The kernel's parameter.
struct Code {
  static constexpr std::size_t kStatements = 384, kScalars = 256, kStages = 8, kProducts = 16, kOperands = 128, kCarried = 32,
                               kCopies = 64, kStacks = 32;

  ew::LargeTensors sources;                              // elements of sequences as they lie in the first step, and invariants
  std::int64_t source_steps[ew::LargeTensors::kInputs];  // bytes from one step to the next
  ew::Statement statements[kStatements];
  std::uint64_t scalars[kScalars];
  Stage stages[kStages];
  Multiply products[kProducts];
  const float* matrices[kProducts];  // packed
  std::uint16_t operands[kOperands];
  const float* initial[kCarried];
  float* finals[kCarried];
  Copy constants[kCopies];  // made before the first step
  Copy loads[kCopies];      // made at the begin of each step
  Copy moves[kCopies];      // made at its end
  Stack stacks[kStacks];
  std::int64_t steps, elements, width;
  unsigned block;                  // elements
  std::int64_t matrix_size, held;  // floats of a matrix, and of all that shared memory holds: 0 where it holds none
  std::uint16_t stage_count, carried, constant_count, load_count, move_count, stack_count, columns, slots, matrix_count;
  std::int64_t empty_rows;  // whose sums are of no elements
  bool together;            // threads read what others wrote
};
static_assert(sizeof(Code) <= 32764, "the limit of kernel parameters since CUDA 12.1");

constexpr unsigned kMostThreads = 256;

/// Shared memory that a block may have on every device: those of 8.6 have 99 KiB.
constexpr std::size_t kMostShared = 96 * 1024;

using Usual = ew::Lanes<std::uint32_t, 1>;
using Wide = ew::Any;

/// Whether programs compute with int64.
bool is_wide(const Step& step);

/// Fills in the parameter for values of `word_bytes`, or says why the step cannot run on a device.
Result<bool> fill(const Problem& problem, std::size_t word_bytes, Code& code, Launch& launch);

/// Calls `use.template operator()<L>(code, launch)`.
template <class Use>
Result<bool> with_code(const Problem& problem, const Use& use) {
  const auto code = std::make_unique<Code>();
  Launch launch;
  const bool wide = is_wide(*problem.step);
  if (const Result<bool> filled = fill(problem, wide ? sizeof(Wide) : sizeof(Usual), *code, launch); !filled) return filled;
  if (launch.blocks == 0) return true;
  return wide ? use.template operator()<Wide>(*code, launch) : use.template operator()<Usual>(*code, launch);
}

}  // namespace onnxopt::recurrence::cuda
