// Products of a matrix with packed weights, and what is computed of the products before they leave the cache.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/common.h"
#include "kernels/cpu/elementwise/epilogue.h"
#include "kernels/cpu/gemm/panel.h"

namespace onnxopt::gemm {

/// What B holds.
enum class Weights : std::uint8_t {
  kFloat,
  kInt8,
  kInt4,  // two in a byte, the lower half first
};

/// One product A B. `weights` is B, packed; that of integers is times its scales, [ceil(N / 16), ceil(K / block), 16] of them.
struct Product {
  const void* weights;
  const float* bias = nullptr;    // of the columns; added to each row
  float* c = nullptr;             // where the result goes; null where only the epilogue reads it
  const float* scales = nullptr;  // of integers
};

constexpr std::size_t kMostProducts = 4;

/// Products of one matrix, all of the same size, at most `kMostProducts`.
struct Problem {
  const float* a;         // [rows, depth]
  std::int64_t row_step;  // floats from one row of A to the next
  std::int64_t rows, depth, columns;
  const Product* products;
  std::size_t product_count;
  const Bounds* clip = nullptr;                     // of the results that go to `c`
  const float* added = nullptr;                     // [rows, columns], added to the results before they are clipped
  const elementwise::Epilogue* epilogue = nullptr;  // of all results
  Weights kind = Weights::kFloat;                   // of all products
  std::int64_t block = 1;                           // rows of integers that share a scale
};

/// How a problem is cut. It depends on the sizes alone, not on the number of threads.
struct Blocking {
  std::int64_t rows, columns, depth;
  bool streamed = false;  // weights of integers are read once, for all rows
};

Blocking blocking_of(const Problem& problem);

/// One implementation, for one instruction set. `run` computes the block of C that begins at `row` and `column`.
struct Variant {
  const char* name;
  const char* isa;
  void (*run)(const Problem&, const Blocking&, std::int64_t row, std::int64_t column);
};

/// The variants that were built, best first; the portable one is last.
std::span<const Variant> variants();

/// Computes a problem. The results do not depend on how `parallel_for` spreads the work.
void run(const Problem& problem, const Variant& variant, const ParallelFor& parallel_for);

}  // namespace onnxopt::gemm
