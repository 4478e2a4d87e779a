// The kernel: a block multiplies a tile of rows with 64 columns of each product, lays the results into shared memory, and finishes
// them there, neighbours by neighbouring threads.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm/plan.h"

namespace onnxopt::gemm::cuda {
namespace {

/// What stands for elements behind the last: its product with zero is -0, which changes no sum, not even one that is -0.
constexpr float kMissing = -0.0f;

/// Four neighbours, of which only the first `count` are there.
ONNXOPT_IN_KERNEL Floats<4> read_four(const float* source, std::int64_t count, bool aligned) {
  if (aligned && count >= 4) return read<4>(source);
  Floats<4> floats;
  ONNXOPT_UNROLL for (int i = 0; i < 4; ++i) floats.values[i] = i < count ? source[i] : kMissing;
  return floats;
}

/// Operands of 16 steps: A with its rows side by side, the weights with their columns.
template <int P>
struct alignas(16) Operands {
  static constexpr int kRows = kTileRows<P>, kRowStep = kRows + 4;  // so that rows of neighbours fall into other banks
  static constexpr int kLoads = (kRows + 63) / 64;                  // of a thread: four steps of a row
  float a[kTileDepth * kRowStep];
  float weights[P][kTileDepth * kTileColumns];
};

/// What a thread loads of the operands.
template <int P>
struct Loaded {
  Floats<4> a[Operands<P>::kLoads], weights[P];
};

template <int P, class Code>
ONNXOPT_IN_KERNEL Loaded<P> load(const Products<Code>& p, const Tile& tile, std::int64_t step) {
  Loaded<P> loaded;
  const std::int64_t k = step + threadIdx.x % 4 * 4;
  ONNXOPT_UNROLL for (int i = 0; i < Operands<P>::kLoads; ++i) {
    const int in_tile = static_cast<int>(threadIdx.x / 4) + 64 * i;
    const std::int64_t row = tile.row + in_tile;
    const bool inside = in_tile < Operands<P>::kRows && row < p.rows;
    loaded.a[i] = inside ? read_four(p.a + row * p.depth + k, p.depth - k, p.vectors_of_a) : splat<4>(kMissing);
  }
  // A panel has 16 columns, one step after the other.
  const std::int64_t panel = tile.column / 16 + threadIdx.x / 64, own_step = step + threadIdx.x / 4 % 16;
  const bool inside = panel * 16 < p.columns && own_step < p.depth;
  const std::int64_t at = (panel * p.depth + own_step) * 16 + threadIdx.x % 4 * 4;
  ONNXOPT_UNROLL for (int i = 0; i < P; ++i) loaded.weights[i] =
      inside && i < p.count ? read_four(p.weights[i] + at, 4, p.vectors_of_weights) : splat<4>(0.0f);
  return loaded;
}

template <int P>
ONNXOPT_IN_KERNEL void lay_down(const Loaded<P>& loaded, Operands<P>& operands) {
  ONNXOPT_UNROLL for (int i = 0; i < Operands<P>::kLoads; ++i) {
    const int row = static_cast<int>(threadIdx.x / 4) + 64 * i, k = static_cast<int>(threadIdx.x % 4 * 4);
    if (row < Operands<P>::kRows)
      ONNXOPT_UNROLL for (int e = 0; e < 4; ++e) operands.a[(k + e) * Operands<P>::kRowStep + row] = loaded.a[i].values[e];
  }
  const unsigned column = threadIdx.x / 64 * 16 + threadIdx.x % 4 * 4, k = threadIdx.x / 4 % 16;
  ONNXOPT_UNROLL for (int i = 0; i < P; ++i) write(operands.weights[i] + k * kTileColumns + column, loaded.weights[i]);
}

/// Results of a thread.
template <int P>
struct Results {
  static constexpr int kRows = kTileRows<P> / 16;
  float values[P][kRows][4];
};

template <int P>
ONNXOPT_IN_KERNEL void multiply_tile(const Operands<P>& operands, Results<P>& results) {
  constexpr int rows = Results<P>::kRows;
  const unsigned row = threadIdx.x / 16 * rows, column = threadIdx.x % 16 * 4;
  ONNXOPT_UNROLL for (int k = 0; k < kTileDepth; ++k) {
    const Floats<rows> a = read<rows>(operands.a + k * Operands<P>::kRowStep + row);
    ONNXOPT_UNROLL for (int i = 0; i < P; ++i) {
      const Floats<4> b = read<4>(operands.weights[i] + k * kTileColumns + column);
      ONNXOPT_UNROLL for (int r = 0; r < rows; ++r) ONNXOPT_UNROLL for (int c = 0; c < 4; ++c) results.values[i][r][c] =
          fmaf(a.values[r], b.values[c], results.values[i][r][c]);
    }
  }
}

/// Sums begin with the bias.
template <int P, class Code>
ONNXOPT_IN_KERNEL Results<P> biases(const Products<Code>& p, const Tile& tile) {
  Results<P> results;
  ONNXOPT_UNROLL for (int i = 0; i < P; ++i) ONNXOPT_UNROLL for (int c = 0; c < 4; ++c) {
    const std::int64_t column = tile.column + threadIdx.x % 16 * 4 + c;
    const float bias = i < p.count && p.bias[i] && column < p.columns ? p.bias[i][column] : 0.0f;
    ONNXOPT_UNROLL for (int r = 0; r < Results<P>::kRows; ++r) results.values[i][r][c] = bias;
  }
  return results;
}

template <int P, class Code>
ONNXOPT_IN_KERNEL Results<P> multiply(const Products<Code>& p, const Tile& tile, Operands<P>& operands) {
  Results<P> results = biases<P>(p, tile);
  Loaded<P> next = load<P>(p, tile, 0);
  for (std::int64_t step = 0; step < p.depth; step += kTileDepth) {
    lay_down(next, operands);
    __syncthreads();
    if (step + kTileDepth < p.depth) next = load<P>(p, tile, step + kTileDepth);
    multiply_tile(operands, results);
    __syncthreads();
  }
  return results;
}

/// Writes the results of a tile, or what the epilogue makes of them. `held` is [products, rows, 64].
template <class L, class Code>
ONNXOPT_CALLED void finish_tile(const Products<Code>& p, const Tile& tile, const float* held, int rows) {
  constexpr int E = L::kCount, kItems = kTileColumns / E;
  const ew::Slots<L> slots{const_cast<float*>(held) + kTileFloats, threadIdx.x, p.finishing};
  if (threadIdx.x >= p.finishing) return;
  for (int item = static_cast<int>(threadIdx.x); item < rows * kItems; item += static_cast<int>(p.finishing)) {
    const std::int64_t row = tile.row + item / kItems, column = tile.column + item % kItems * E;
    if (row >= p.rows || column >= p.columns) continue;
    L results[kMostProducts];
    ONNXOPT_UNROLL for (int i = 0; i < static_cast<int>(kMostProducts); ++i) {
      if (i >= p.count) break;
      const Floats<E> result = read<E>(held + i * rows * kTileColumns + item * E);
      if constexpr (std::is_same_v<Code, NoProgram>)
        write(p.c[i] + row * p.columns + column, result);
      else
        results[i] = lanes_of<L>(result);
    }
    if constexpr (!std::is_same_v<Code, NoProgram>) ew::evaluate(p.epilogue, slots, row * p.columns + column, results);
  }
}

template <int P, class L, class Code>
__global__ void __launch_bounds__(kThreads, 2) multiply_packed(const Products<Code> __grid_constant__ p) {
  static_assert(sizeof(Operands<P>) <= kTileFloats * sizeof(float));
  auto* const held = static_cast<float*>(shared_memory());
  const std::int64_t across = (p.columns + kTileColumns - 1) / kTileColumns;
  const std::int64_t tiles = across * ((p.rows + kTileRows<P> - 1) / kTileRows<P>);
  for (std::int64_t number = blockIdx.x; number < tiles; number += gridDim.x) {
    const Tile tile{number / across * kTileRows<P>, number % across * kTileColumns};
    const Results<P> results = multiply<P>(p, tile, *reinterpret_cast<Operands<P>*>(held));
    constexpr int rows = Results<P>::kRows;
    ONNXOPT_UNROLL for (int i = 0; i < P; ++i) ONNXOPT_UNROLL for (int r = 0; r < rows; ++r) {
      const unsigned row = static_cast<unsigned>(i) * kTileRows<P> + threadIdx.x / 16 * rows + static_cast<unsigned>(r);
      Floats<4> four;
      ONNXOPT_UNROLL for (int c = 0; c < 4; ++c) four.values[c] = results.values[i][r][c];
      write(held + row * kTileColumns + threadIdx.x % 16 * 4, four);
    }
    __syncthreads();
    finish_tile<L>(p, tile, held, kTileRows<P>);
    __syncthreads();
  }
}

struct Family {
  using Problem = cuda::Problem;

  template <class Use>
  static Result<bool> for_each(const Use& use) {
    return for_each_form([&]<int P, class L, class Code>() { return use(multiply_packed<P, L, Code>); });
  }

  template <class Use>
  static Result<bool> plan(const Problem& problem, int, const Use& use) {
    return with_products(problem, [&]<int P, class L, class Code>(const Products<Code>& products, const Launch& launch) {
      return use(multiply_packed<P, L, Code>, products, launch);
    });
  }
};

}  // namespace
}  // namespace onnxopt::gemm::cuda
