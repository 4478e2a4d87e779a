// The kernel: threads share the elements of a block, each its own, and go through all steps.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/recurrence/plan.h"

namespace onnxopt::recurrence::cuda {
namespace {

constexpr unsigned kPanel = 16;

/// What a block holds in shared memory: slots, the table of values, and matrices.
struct Table {
  float* values;
  unsigned block;

  ONNXOPT_IN_KERNEL float& at(unsigned column, unsigned element) const { return values[column * block + element]; }
};

/// An element of a source in a step.
ONNXOPT_IN_KERNEL float read_source(const Code& p, unsigned source, std::int64_t element, std::int64_t step) {
  const auto& input = p.sources.inputs[source];
  const std::int64_t place = input.walk == ew::Walk::kContiguous ? element
                             : input.walk == ew::Walk::kRepeated ? 0
                                                                 : ew::offset_of(p.sources, input, element);
  return reinterpret_cast<const float*>(static_cast<const char*>(input.data) + step * p.source_steps[source])[place];
}

/// Where a thread is: an element of its block, the same in the domain, and the step.
struct Place {
  unsigned element;
  std::int64_t of_domain, step;
};

ONNXOPT_IN_KERNEL float value_of(const Code& p, const Table& table, std::uint16_t value, const Place& place) {
  if (value & kSource) return read_source(p, value & ~kSource, place.of_domain, place.step);
  return table.at(value, place.element);
}

ONNXOPT_IN_KERNEL void copy(const Code& p, const Table& table, const Copy* copies, int count, const Place& place) {
  for (int i = 0; i < count; ++i) table.at(copies[i].to, place.element) = value_of(p, table, copies[i].from, place);
}

/// The values that a stage's statements read and write.
template <class L>
struct OfTable {
  const Code& p;
  const Table& table;
  const Stage& stage;
  const Place& place;

  ONNXOPT_IN_KERNEL L load(int) const { return {}; }  // all values are taken
  ONNXOPT_IN_KERNEL L take(int operand) const {
    return lanes_of<L>(Floats<1>{{value_of(p, table, p.operands[stage.first_operand + operand], place)}});
  }
  ONNXOPT_IN_KERNEL void store(int output, const L& lanes) const {
    table.at(stage.first_output + output, place.element) = floats_of(lanes).values[0];
  }
};

/// An element of a row times a packed matrix.
ONNXOPT_IN_KERNEL void multiply(const Code& p, const Table& table, const Multiply& product, const float* matrix, unsigned element) {
  const auto width = static_cast<unsigned>(p.width), column = element % width, row = element - column;
  const float* const weights = matrix + static_cast<std::int64_t>(column / kPanel) * width * kPanel + column % kPanel;
  float sum = product.biased ? table.at(product.bias, element) : 0.0f;
  for (unsigned k = 0; k < width; ++k) sum = fmaf(table.at(product.from, row + k), weights[k * kPanel], sum);
  table.at(product.to, element) = sum;
}

ONNXOPT_IN_KERNEL void stack_sums(const Code& p, const Table& table, const Stack& stack, std::int64_t first, unsigned count,
                                  std::int64_t step) {
  const auto width = static_cast<unsigned>(p.width);
  for (unsigned row = threadIdx.x; row < count / width; row += blockDim.x) {
    float sum = 0.0f;
    for (unsigned k = 0; k < width; ++k) sum += table.at(stack.from, row * width + k);
    stack.data[step * stack.step + first / p.width + row] = sum;
  }
}

template <class L>
__global__ void __launch_bounds__(kMostThreads) run_steps(const Code __grid_constant__ p) {
  const ew::Slots<L> slots{shared_memory(), threadIdx.x, blockDim.x};
  const Table table{reinterpret_cast<float*>(static_cast<L*>(slots.memory) + p.slots * blockDim.x), p.block};
  for (std::int64_t i = threadIdx.x; i < p.empty_rows * p.steps; i += blockDim.x)
    for (int k = 0; k < p.stack_count; ++k)
      if (p.stacks[k].summed) p.stacks[k].data[i / p.empty_rows * p.stacks[k].step + i % p.empty_rows] = 0.0f;
  float* const held = table.values + p.columns * p.block;
  for (std::int64_t i = threadIdx.x; i < p.held; i += blockDim.x) held[i] = p.matrices[i / p.matrix_size][i % p.matrix_size];
  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * p.block; first < p.elements;
       first += static_cast<std::int64_t>(gridDim.x) * p.block) {
    const unsigned count = p.elements - first < p.block ? static_cast<unsigned>(p.elements - first) : p.block;
    for (unsigned e = threadIdx.x; e < count; e += blockDim.x) {
      for (int i = 0; i < p.carried; ++i) table.at(i, e) = p.initial[i][first + e];
      copy(p, table, p.constants, p.constant_count, {e, first + e, 0});
    }
    for (std::int64_t step = 0; step < p.steps; ++step) {
      for (unsigned e = threadIdx.x; e < count; e += blockDim.x) copy(p, table, p.loads, p.load_count, {e, first + e, step});
      for (int s = 0; s < p.stage_count; ++s) {
        const Stage& stage = p.stages[s];
        if (stage.products > 0) __syncthreads();  // a row is read by all of its threads
        for (int i = 0; i < stage.products; ++i) {
          const Multiply& product = p.products[stage.first_product + i];
          const float* const matrix = p.held > 0 ? held + product.matrix * p.matrix_size : p.matrices[product.matrix];
          for (unsigned e = threadIdx.x; e < count; e += blockDim.x) multiply(p, table, product, matrix, e);
        }
        for (unsigned e = threadIdx.x; e < count; e += blockDim.x) {
          const Place place{e, first + e, step};
          ew::run_statements(p, stage.first_statement, stage.first_statement + stage.statements, slots,
                             OfTable<L>{p, table, stage, place});
        }
      }
      if (p.together) __syncthreads();  // what is summed was made, and what is carried was read
      for (int i = 0; i < p.stack_count; ++i) {
        const Stack& stack = p.stacks[i];
        if (stack.summed) {
          stack_sums(p, table, stack, first, count, step);
        } else {
          for (unsigned e = threadIdx.x; e < count; e += blockDim.x)
            stack.data[step * stack.step + first + e] = value_of(p, table, stack.from, {e, first + e, step});
        }
      }
      if (p.together) __syncthreads();  // sums were taken
      for (unsigned e = threadIdx.x; e < count; e += blockDim.x) copy(p, table, p.moves, p.move_count, {e, first + e, step});
    }
    for (unsigned e = threadIdx.x; e < count; e += blockDim.x)
      for (int i = 0; i < p.carried; ++i) p.finals[i][first + e] = table.at(i, e);
    if (p.together) __syncthreads();  // rows were read
  }
}

struct Family {
  using Problem = recurrence::Problem;

  template <class Use>
  static Result<bool> for_each(const Use& use) {
    const Result<bool> done = use(run_steps<Usual>);
    return done ? use(run_steps<Wide>) : done;
  }

  template <class Use>
  static Result<bool> plan(const Problem& problem, int, const Use& use) {
    return with_code(problem, [&]<class L>(const Code& code, const Launch& launch) { return use(run_steps<L>, code, launch); });
  }
};

}  // namespace
}  // namespace onnxopt::recurrence::cuda
