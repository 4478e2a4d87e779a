// The kernel: a block multiplies a tile of bytes on tensor cores, where floats become bytes on the way, and makes of the integers
// what the CPU's kernel does.
#pragma once

#include "kernels/cuda/gemm/tensor.cuh"
#include "kernels/cuda/qgemm/plan.h"

namespace onnxopt::qgemm::cuda {
namespace {

using gemm::cuda::kChunksOfRow;
using gemm::cuda::Stage;
using gemm::cuda::Tile;

constexpr float kSmallestNormal = 0x1p-126f;
constexpr int kLevels = 255, kSignedLowest = -128;

ONNXOPT_IN_KERNEL std::int32_t zero_of(const Quantization& q) {
  return q.is_signed ? static_cast<std::int32_t>(*static_cast<const std::int8_t*>(q.zero))
                     : static_cast<std::int32_t>(*static_cast<const std::uint8_t*>(q.zero));
}

/// What makes bytes of floats: rounded to nearest even, saturated; NaN becomes the zero point.
struct Quantizer {
  float inverse, low, high;
  std::int32_t zero;

  ONNXOPT_IN_KERNEL Quantizer(float scale, std::int32_t zero, std::int32_t lowest)
      : inverse(scale > 0.0f ? 1.0f / scale : 0.0f),
        low(static_cast<float>(lowest - zero)),
        high(static_cast<float>(lowest + kLevels - zero)),
        zero(zero) {}

  ONNXOPT_IN_KERNEL std::uint32_t operator()(float x) const {
    const float steps = x * inverse, raised = steps < low ? low : steps, kept = raised > high ? high : raised;
    return static_cast<std::uint8_t>((kept == kept ? static_cast<std::int32_t>(rintf(kept)) : 0) + zero);
  }

  ONNXOPT_IN_KERNEL std::uint32_t operator()(const Floats<4>& x) const {
    return (*this)(x.values[0]) | (*this)(x.values[1]) << 8 | (*this)(x.values[2]) << 16 | (*this)(x.values[3]) << 24;
  }
};

/// Combines the numbers of a warp.
template <class Combine>
ONNXOPT_IN_KERNEL float of_warp(float value, Combine combine) {
  for (int bits = 16; bits > 0; bits /= 2) value = combine(value, __shfl_xor_sync(kWholeWarp, value, bits));
  return value;
}

/// The range of a row with 0 in it, cut into 255 steps, as the lanes of a warp find it together. A row with what is not finite gets
/// the scale NaN, and so its results.
ONNXOPT_IN_KERNEL void measure_row(const float* row, std::int64_t depth, float& scale, std::int32_t& zero) {
  float least = 0.0f, most = 0.0f, doubt = 0.0f;
  for (std::int64_t k = threadIdx.x % 32; k < depth; k += 32) {
    least = ew::lesser(row[k], least);
    most = ew::greater(row[k], most);
    doubt += row[k] * 0.0f;
  }
  least = of_warp(least, ew::lesser);
  most = of_warp(most, ew::greater);
  doubt = of_warp(doubt, [](float a, float b) { return a + b; });
  scale = most / static_cast<float>(kLevels) - least / static_cast<float>(kLevels);
  zero = 0;
  if (doubt != 0.0f)
    scale = NAN;
  else if (scale < kSmallestNormal)
    scale = 0.0f;
  else
    zero = static_cast<std::int32_t>(rintf(-least / scale));
}

/// Finds the scales and zero points of a tile's rows.
template <class T>
ONNXOPT_IN_KERNEL void describe_rows(const Problem& p, const Tile& tile, Rows<T>& rows) {
  if (p.source != Source::kFloatRows) {
    const bool of_floats = p.source == Source::kFloat && p.of_a.is_signed;  // which become uint8
    for (int row = static_cast<int>(threadIdx.x); row < T::kRows; row += kThreads) {
      rows.scales[row] = *p.of_a.scale;
      rows.zeros[row] = zero_of(p.of_a) - (of_floats ? kSignedLowest : 0);
    }
    return;
  }
  for (int row = static_cast<int>(threadIdx.x) / 32; row < T::kRows; row += kThreads / 32) {
    float scale = 0.0f;
    std::int32_t zero = 0;
    if (tile.row + row < p.rows) measure_row(static_cast<const float*>(p.a) + (tile.row + row) * p.depth, p.depth, scale, zero);
    if (threadIdx.x % 32 != 0) continue;
    rows.scales[row] = scale;
    rows.zeros[row] = zero;
  }
}

/// A thread's part of rows of floats, which become bytes while they are copied.
template <class T>
struct FloatCopies {
  static constexpr int kCount = T::kRows * kChunksOfRow / kThreads, kRowStep = kThreads / kChunksOfRow;
  const Problem& p;
  const Tile& tile;
  const Rows<T>& rows;

  template <int W>
  ONNXOPT_IN_KERNEL void copy(int step, Stage<T, W>& stage) const {
    const std::int64_t k = std::int64_t{step} * gemm::cuda::kStepBytes + threadIdx.x % kChunksOfRow * 16;
    const bool aligned = p.depth % 4 == 0 && reinterpret_cast<std::uintptr_t>(p.a) % 16 == 0;
    ONNXOPT_UNROLL for (int i = 0; i < kCount; ++i) {
      const int in_tile = static_cast<int>(threadIdx.x) / kChunksOfRow + i * kRowStep;
      const std::int64_t row = tile.row + in_tile;
      const float* const source = static_cast<const float*>(p.a) + row * p.depth + k;
      const std::int64_t left = row < p.rows ? p.depth - k : 0;
      const Quantizer quantizer(rows.scales[in_tile], rows.zeros[in_tile], 0);
      ew::Vector<std::uint32_t, 4> words;
      ONNXOPT_UNROLL for (int word = 0; word < 4; ++word) {
        Floats<4> four = splat<4>(0.0f);
        if (aligned && word * 4 < left)
          four = read<4>(source + word * 4);
        else
          ONNXOPT_UNROLL for (int e = 0; e < 4; ++e) if (word * 4 + e < left) four.values[e] = source[word * 4 + e];
        words.values[word] = quantizer(four);
      }
      words.write(reinterpret_cast<std::uint32_t*>(stage.a + in_tile * Stage<T, W>::kRowBytes + threadIdx.x % kChunksOfRow * 16));
    }
  }
};

/// Numbers of neighbouring columns, of which the first `count` are there.
template <class Number, int E>
ONNXOPT_IN_KERNEL ew::Vector<Number, E> read_columns(const Number* source, int count, bool vectors) {
  ew::Vector<Number, E> numbers;
  if (vectors)
    numbers.read(source);
  else
    ONNXOPT_UNROLL for (int k = 0; k < E; ++k) numbers.values[k] = k < count ? source[k] : Number{0};
  return numbers;
}

/// The products that sums of neighbouring columns stand for.
template <int E, class T>
ONNXOPT_IN_KERNEL Floats<E> scaled(const Problem& p, const std::int32_t* sums, const Rows<T>& rows, int row, std::int64_t column,
                                   int count, bool vectors) {
  ew::Vector<std::int32_t, E> own;
  own.read(sums);
  const auto of_columns = read_columns<std::int32_t, E>(p.sums + column, count, vectors);
  const auto scales = read_columns<float, E>(p.weight_scales + column, count, vectors);
  Floats<E> results;
  ONNXOPT_UNROLL for (int k = 0; k < E; ++k) results.values[k] =
      static_cast<float>(ew::op_sub(own.values[k], ew::op_mul(rows.zeros[row], of_columns.values[k]))) *
      (rows.scales[row] * scales.values[k]);
  if (p.bias) {
    const auto bias = read_columns<float, E>(p.bias + column, count, vectors);
    ONNXOPT_UNROLL for (int k = 0; k < E; ++k) results.values[k] += bias.values[k];
  }
  return results;
}

/// Writes the first `count` of neighbouring results, as floats or as bytes.
template <int E>
ONNXOPT_IN_KERNEL void put(const Problem& p, const Quantizer& quantizer, std::int64_t at, const Floats<E>& results, int count,
                           bool vectors) {
  if (p.bytes == nullptr) {
    if (vectors) return write(p.c + at, results);
    ONNXOPT_UNROLL for (int k = 0; k < E; ++k) if (k < count) p.c[at + k] = results.values[k];
    return;
  }
  ew::Vector<std::uint8_t, E> bytes;
  ONNXOPT_UNROLL for (int k = 0; k < E; ++k) bytes.values[k] = static_cast<std::uint8_t>(quantizer(results.values[k]));
  if (vectors) return bytes.write(p.bytes + at);
  ONNXOPT_UNROLL for (int k = 0; k < E; ++k) if (k < count) p.bytes[at + k] = bytes.values[k];
}

/// Makes of a tile's sums, [rows, kHeldStep], what they stand for, and of that what the epilogue says, and bytes of that.
template <class T, class L, class Code>
ONNXOPT_CALLED void finish_tile(const Products<Code>& products, const Tile& tile, const Rows<T>& rows, const std::int32_t* held) {
  constexpr int E = L::kCount, kItems = T::kColumns / E;
  if (threadIdx.x >= products.finishing) return;
  const Problem& p = products.problem;
  const ew::Slots<L> slots{const_cast<std::int32_t*>(held) + T::kHeldBytes / sizeof *held, threadIdx.x, products.finishing};
  const bool vectors = products.vectors && E > 1;
  const Quantizer quantizer =
      p.bytes ? Quantizer(*p.of_bytes.scale, zero_of(p.of_bytes), p.of_bytes.is_signed ? kSignedLowest : 0) : Quantizer(1.0f, 0, 0);
  for (int item = static_cast<int>(threadIdx.x); item < T::kRows * kItems; item += static_cast<int>(products.finishing)) {
    const int row = item / kItems, in_tile = item % kItems * E;
    const std::int64_t column = tile.column + in_tile, left = p.columns - column;
    if (tile.row + row >= p.rows || left <= 0) continue;
    const int count = left < E ? static_cast<int>(left) : E;
    const std::int64_t at = (tile.row + row) * p.columns + column;
    Floats<E> results = scaled<E>(p, held + row * T::kHeldStep + in_tile, rows, row, column, count, vectors);
    if constexpr (!std::is_same_v<Code, NoProgram>) {
      const L taken = lanes_of<L>(results);
      const L made = ew::evaluate(products.epilogue, slots, at, &taken);
      if (p.bytes == nullptr) continue;
      results = floats_of(made);
    }
    put(p, quantizer, at, results, count, vectors);
  }
}

template <class T, class L, class Code>
__global__ void __launch_bounds__(kThreads, 2) multiply_bytes(const Products<Code> __grid_constant__ products) {
  auto& rows = *static_cast<Rows<T>*>(shared_memory());
  void* const memory = &rows + 1;
  const Problem& p = products.problem;
  const std::int64_t tiles = gemm::cuda::tiles_of<T>(p.rows, p.columns, 1);
  const std::int64_t groups = (p.depth + static_cast<std::int64_t>(kGroup) - 1) / static_cast<std::int64_t>(kGroup);
  for (std::int64_t number = blockIdx.x; number < tiles; number += gridDim.x) {
    const Tile tile = gemm::cuda::tile_of<T>(p.rows, p.columns, T::kColumns, number);
    const gemm::cuda::WeightCopies<T, static_cast<int>(kGroup)> weights({{p.weights}, groups, p.columns, 1}, tile, T::kColumns);
    describe_rows(p, tile, rows);
    __syncthreads();
    const bool floats = p.source == Source::kFloat || p.source == Source::kFloatRows;
    if (floats)
      gemm::cuda::multiply_tile<Element::kUint8, T>(FloatCopies<T>{p, tile, rows}, weights, groups, memory);
    else if (p.source == Source::kUint8)
      gemm::cuda::multiply_tile<Element::kUint8, T>(gemm::cuda::RowCopies<T>(p.a, p.rows, p.depth, tile), weights, groups, memory);
    else
      gemm::cuda::multiply_tile<Element::kInt8, T>(gemm::cuda::RowCopies<T>(p.a, p.rows, p.depth, tile), weights, groups, memory);
    finish_tile<T, L>(products, tile, rows, static_cast<const std::int32_t*>(memory));
    __syncthreads();
  }
}

struct Family {
  using Problem = cuda::Problem;

  template <class Use>
  static Result<bool> for_each(const Use& use) {
    return gemm::cuda::for_each_tensor_form([&]<class T, class L, class Code>() { return use(multiply_bytes<T, L, Code>); });
  }

  template <class Use>
  static Result<bool> plan(const Problem& problem, int processors, const Use& use) {
    return with_products(problem, processors,
                         [&]<class T, class L, class Code>(const Products<Code>& products, const Launch& launch) {
                           return use(multiply_bytes<T, L, Code>, products, launch);
                         });
  }
};

}  // namespace
}  // namespace onnxopt::qgemm::cuda
