// Products of a quantized matrix with packed weights of int8, summed in int32 and scaled to float32.
//
//     C[r][j] = scale of A (row r) * scale of B (column j) * (sum over k of A[r][k] * B[k][j] - zero point of A * sum of B's column
//     j)
//
// The sums are exact, so they are the same for every instruction set; the rest is computed element by element in one order.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/common.h"
#include "kernels/cpu/elementwise/epilogue.h"
#include "kernels/cpu/qgemm/panel.h"

namespace onnxopt::qgemm {

/// What A holds, and how it is quantized.
enum class Source : std::uint8_t {
  kUint8,
  kInt8,
  kFloat,      // quantized with the scale and the zero point that are given
  kFloatRows,  // each row over its own range, which includes 0
};

struct Problem {
  const void* a;  // [rows, depth]
  Source source;
  float scale;        // of A; not of rows over their own ranges
  std::int32_t zero;  // of A as uint8: that of int8 and 128
  std::int64_t rows, depth, columns;
  const std::int8_t* weights;
  const float* weight_scales;                       // of the columns
  const std::int32_t* sums;                         // of the columns of B
  const float* bias;                                // of the columns, or null
  float* c;                                         // null where only the epilogue reads it, or bytes are made of it
  const gemm::Bounds* clip = nullptr;               // of the results, where there is no epilogue
  const float* added = nullptr;                     // [rows, columns], added to the results before they are clipped
  bool gelu = false;                                // of the results, good to 2e-5 of each, where there is no epilogue
  const elementwise::Epilogue* epilogue = nullptr;  // of all results
  std::uint8_t* bytes = nullptr;                    // the results, or what the epilogue makes of them, quantized; then `c` is null
  float bytes_scale = 1.0f;
  std::int32_t bytes_zero = 0, bytes_lowest = 0;  // `bytes_lowest` is that of the type: 0 or -128
};

/// Rows of A from `first` on, as the products read them: uint8, a multiple of `kGroup` long, and the scale and zero point of each.
struct Operand {
  const std::uint8_t* data;
  std::int64_t row_step;
  const float* scales;
  const std::int32_t* zeros;
  std::int64_t first;
};

/// Rows and columns of a task. It depends on the sizes alone, not on the number of threads.
struct Blocking {
  std::int64_t rows, columns;
};

/// One implementation, for one instruction set. `quantize` makes rows of an operand; `run` computes the block of C that begins at
/// `row` and `column`; `occupy` multiplies registers alone and returns the number of products, the ceiling of `run` (0 where it has
/// none).
struct Variant {
  const char* name;
  const char* isa;
  void (*quantize)(const Problem&, std::int64_t row, std::uint8_t* to, float* scale, std::int32_t* zero);
  void (*run)(const Problem&, const Operand&, const Blocking&, std::int64_t row, std::int64_t column);
  std::int64_t (*occupy)(std::int64_t rounds);
};

/// The variants that were built, best first; the portable one is last.
std::span<const Variant> variants();

/// Computes a problem. The results do not depend on how `parallel_for` spreads the work.
void run(const Problem& problem, const Variant& variant, const ParallelFor& parallel_for);

}  // namespace onnxopt::qgemm
