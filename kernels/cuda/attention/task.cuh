// What the kernels share: the tile of a block, elements with their rotary embedding, and masks of scores.
#pragma once

#include "kernels/cpu/attention/attention.h"
#include "kernels/cuda/mma.h"

namespace onnxopt::attention::cuda {
namespace {

/// Types of elements, which are floats in registers.
struct FloatElement {
  using Stored = float;
  static ONNXOPT_IN_KERNEL float get(float value) { return value; }
};
template <Element E>
struct TwoByteElement {
  using Stored = std::uint16_t;
  static constexpr Element kElement = E;
  static ONNXOPT_IN_KERNEL float get(std::uint16_t value) { return from_two_bytes(value, E == Element::kBrain); }
  static ONNXOPT_IN_KERNEL std::uint16_t put(float value) { return to_two_bytes(value, E == Element::kBrain); }
};

/// Tiles of 64 rows and so many columns of the values.
template <int Columns, class T>
ONNXOPT_DEVICE std::int64_t count_tiles(const ProblemOf<T>& p) {
  constexpr std::int64_t rows = 64;
  return p.batch * p.heads * ((p.rows + rows - 1) / rows) * ((p.width + Columns - 1) / Columns);
}

/// What a block computes: rows and columns from these on. Kernels that need all registers number heads with 31 bits.
template <class Head>
struct TaskOf {
  Head batch, head, kv_head;
  std::int64_t row, column;
};

template <int Columns, class Head, class T>
ONNXOPT_IN_KERNEL TaskOf<Head> task_of(const ProblemOf<T>& p, std::int64_t number) {
  constexpr std::int64_t rows = 64;
  const std::int64_t across = (p.width + Columns - 1) / Columns, down = (p.rows + rows - 1) / rows;
  TaskOf<Head> task;
  task.column = number % across * Columns;
  number /= across;
  task.row = number % down * rows;
  number /= down;
  task.head = static_cast<Head>(number % p.heads);
  task.batch = static_cast<Head>(number / p.heads);
  task.kv_head = static_cast<Head>(task.head / (p.heads / p.kv_heads));
  return task;
}

ONNXOPT_IN_KERNEL std::int64_t offset_of(const Steps& steps, std::int64_t batch, std::int64_t head, std::int64_t row) {
  return batch * steps.batch + head * steps.head + row * steps.row;
}

/// Queries, keys or values of a head.
template <class E>
struct Rows {
  using T = typename E::Stored;
  const T *x, *cos, *sin;  // of the head's first row
  const Steps& steps;
  const RotaryOf<T>& rotary;
  std::int64_t rotated;  // so many columns
  std::int64_t count, depth;

  ONNXOPT_IN_KERNEL Rows(const ViewOf<T>& view, const RotaryOf<T>& rotary, bool rotates, std::int64_t batch, std::int64_t head,
                         std::int64_t count, std::int64_t depth)
      : x(view.data + offset_of(view.steps, batch, head, 0)),
        cos(rotary.cos + offset_of(rotary.cos_steps, batch, head, 0)),
        sin(rotary.sin + offset_of(rotary.sin_steps, batch, head, 0)),
        steps(view.steps),
        rotary(rotary),
        rotated(rotates ? rotary.width : 0),
        count(count),
        depth(depth) {}

  /// An element, rotated where it has to be; 0 where there is none.
  ONNXOPT_IN_KERNEL float at(std::int64_t row, std::int64_t column) const {
    if (row >= count || column >= depth) return 0.0f;
    const T* const own = x + row * steps.row;
    const float value = E::get(own[column * steps.column]);
    if (column >= rotated) return value;
    const std::int64_t half = rotated / 2;
    const std::int64_t partner = rotary.interleaved ? column ^ 1 : column < half ? column + half : column - half;
    return value * E::get(cos[row * rotary.cos_steps.row + column * rotary.cos_steps.column]) +
           E::get(own[partner * steps.column]) * E::get(sin[row * rotary.sin_steps.row + column * rotary.sin_steps.column]);
  }
};

ONNXOPT_IN_KERNEL float larger(float a, float b) { return a > b ? a : b; }

}  // namespace
}  // namespace onnxopt::attention::cuda
