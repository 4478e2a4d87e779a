// Products of a block on tensor cores; see tensor.h.
#pragma once

#include "kernels/cpu/gemm/gemm.h"
#include "kernels/cuda/gemm/forms.h"
#include "kernels/cuda/mma.h"

namespace onnxopt::gemm::cuda {
namespace {

constexpr int kChunksOfRow = kStepBytes / kChunk;

/// The bytes of a column in a packed row.
template <Element E>
constexpr int kColumnBytes = E == Element::kHalf || E == Element::kBrain ? 2 : 4;

/// A thread's part of the rows of A, which lie in memory as they are multiplied.
template <class T>
struct RowCopies {
  static constexpr int kCount = T::kRows * kChunksOfRow / kTensorThreads;
  const std::byte* from[kCount];
  std::int64_t present[kCount];
  int width;

  ONNXOPT_IN_KERNEL RowCopies(const void* data, std::int64_t rows, std::int64_t row_bytes, const Tile& tile)
      : width(width_of(data, row_bytes)) {
    const std::int64_t byte = threadIdx.x % kChunksOfRow * kChunk;
    ONNXOPT_UNROLL for (int i = 0; i < kCount; ++i) {
      const std::int64_t row = tile.row + threadIdx.x / kChunksOfRow + i * (kTensorThreads / kChunksOfRow);
      from[i] = static_cast<const std::byte*>(data) + (row < rows ? row * row_bytes + byte : 0);
      present[i] = row < rows ? row_bytes - byte : 0;
    }
  }

  template <int W>
  ONNXOPT_IN_KERNEL void copy(int step, Stage<T, W>& stage) const {
    std::byte* const target = stage.a + threadIdx.x / kChunksOfRow * Stage<T, W>::kRowBytes + threadIdx.x % kChunksOfRow * kChunk;
    ONNXOPT_UNROLL for (int i = 0; i < kCount; ++i)
        copy_chunk(target + i * (kTensorThreads / kChunksOfRow) * Stage<T, W>::kRowBytes, from[i] + std::int64_t{step} * kStepBytes,
                   present[i] - std::int64_t{step} * kStepBytes, width);
  }
};

/// Packed weights [panels, rows, 16] of each of some products.
struct Packed {
  const void* data[kMostProducts];
  std::int64_t rows, columns;
  int count;
};

/// A thread's part of the weights.
template <class T, int W>
struct WeightCopies {
  using S = Stage<T, W>;
  static constexpr int kOfRow = T::kColumns * W / kChunk, kRowStep = kTensorThreads / kOfRow, kCount = S::kPackedRows / kRowStep;
  const std::byte* from;
  std::int64_t rows;  // from the thread's first one on; none where it has no columns
  int width;

  ONNXOPT_IN_KERNEL WeightCopies(const Packed& packed, const Tile& tile, int share) {
    const int own = static_cast<int>(threadIdx.x) % kOfRow * (kChunk / W), product = own / share;
    const std::int64_t column = tile.column + own % share, row = static_cast<int>(threadIdx.x) / kOfRow;
    const bool inside = product < packed.count && column < packed.columns;
    const auto* data = static_cast<const std::byte*>(packed.data[0]);
    ONNXOPT_UNROLL for (int i = 1; i < static_cast<int>(kMostProducts); ++i) if (inside && product == i) data =
        static_cast<const std::byte*>(packed.data[i]);
    width = width_of(data, 0);
    from = inside ? data + ((column / 16 * packed.rows + row) * 16 + column % 16) * W : data;
    rows = inside ? packed.rows - row : 0;
  }

  ONNXOPT_IN_KERNEL void copy(int step, S& stage) const {
    std::byte* const target = stage.weights + threadIdx.x / kOfRow * S::kPackedBytes + threadIdx.x % kOfRow * kChunk;
    ONNXOPT_UNROLL for (int i = 0; i < kCount; ++i) {
      const std::int64_t row = std::int64_t{step} * S::kPackedRows + i * kRowStep;
      copy_chunk(target + i * kRowStep * S::kPackedBytes, from + row * 16 * W, row < rows ? kChunk : 0, width);
    }
  }
};

/// The sums of a thread, tile by tile of its warp.
template <class T, class Sum>
struct Sums {
  static constexpr int kDown = T::kWarpRows / 16, kAcross = T::kWarpColumns / 8;
  Fragment<Sum> tiles[kDown][kAcross];
};

/// Where a warp's tile begins in that of the block.
template <class T>
ONNXOPT_IN_KERNEL unsigned warp_row() {
  return threadIdx.x / 32 / T::kWarpsAcross * T::kWarpRows;
}
template <class T>
ONNXOPT_IN_KERNEL unsigned warp_column() {
  return threadIdx.x / 32 % T::kWarpsAcross * T::kWarpColumns;
}

/// The weights of 32 bytes of depth, for all columns of a warp.
template <Element E, class T>
ONNXOPT_IN_KERNEL void load_weights(const Stage<T, kColumnBytes<E>>& stage, int part, FragmentB (&b)[T::kWarpColumns / 8]) {
  constexpr int W = kColumnBytes<E>, kStep = Stage<T, W>::kPackedBytes;
  const unsigned lane = threadIdx.x % 32;
  if constexpr (W == 2) {
    const std::byte* const place = stage.weights + (part * 16 + lane % 16) * kStep + (warp_column<T>() + lane / 16 * 8) * W;
    ONNXOPT_UNROLL for (int n = 0; n < T::kWarpColumns / 8; n += 2) {
      std::uint32_t words[4];
      load_transposed(place + n * 8 * W, words);
      b[n] = {{words[0], words[1]}};
      b[n + 1] = {{words[2], words[3]}};
    }
  } else {
    const std::byte* const place = stage.weights + (part * 8 + lane % 4) * kStep + (warp_column<T>() + lane / 4) * W;
    ONNXOPT_UNROLL for (int n = 0; n < T::kWarpColumns / 8; ++n) ONNXOPT_UNROLL for (int i = 0; i < 2; ++i) {
      const std::uint32_t word = *reinterpret_cast<const std::uint32_t*>(place + n * 8 * W + i * 4 * kStep);
      b[n].words[i] = E == Element::kTf32 ? to_tf32(word) : word;
    }
  }
}

template <Element E, class T>
ONNXOPT_IN_KERNEL void multiply_step(const Stage<T, kColumnBytes<E>>& stage, Sums<T, SumOf<E>>& sums) {
  constexpr int kStep = Stage<T, kColumnBytes<E>>::kRowBytes;
  const unsigned lane = threadIdx.x % 32;
  const std::byte* const rows = stage.a + (warp_row<T>() + lane % 16) * kStep + lane / 16 * 16;
  ONNXOPT_UNROLL for (int part = 0; part < kStepBytes / 32; ++part) {
    FragmentB b[T::kWarpColumns / 8];
    load_weights<E, T>(stage, part, b);
    ONNXOPT_UNROLL for (int m = 0; m < T::kWarpRows / 16; ++m) {
      FragmentA a;
      load_matrices(rows + m * 16 * kStep + part * 32, a.words);
      if constexpr (E == Element::kTf32) ONNXOPT_UNROLL for (int i = 0; i < 4; ++i) a.words[i] = to_tf32(a.words[i]);
      ONNXOPT_UNROLL for (int n = 0; n < T::kWarpColumns / 8; ++n) multiply_add<E>(sums.tiles[m][n], a, b[n]);
    }
  }
}

/// Lays the sums into shared memory.
template <class T, class Sum>
ONNXOPT_IN_KERNEL void hold(const Sums<T, Sum>& sums, Sum* held) {
  const unsigned lane = threadIdx.x % 32;
  Sum* const place = held + (warp_row<T>() + lane / 4) * T::kHeldStep + warp_column<T>() + lane % 4 * 2;
  ONNXOPT_UNROLL for (int m = 0; m < Sums<T, Sum>::kDown; ++m) ONNXOPT_UNROLL for (int n = 0; n < Sums<T, Sum>::kAcross; ++n)
      ONNXOPT_UNROLL for (int half = 0; half < 2; ++half) {
    ew::Vector<Sum, 2> two;
    two.values[0] = sums.tiles[m][n].values[half * 2];
    two.values[1] = sums.tiles[m][n].values[half * 2 + 1];
    two.write(place + (m * 16 + half * 8) * T::kHeldStep + n * 8);
  }
}

/// Multiplies a tile: `a` and `weights` copy a step of theirs. The sums come to lie in the place of the stages, [rows, kHeldStep].
template <Element E, class T, class Copies>
ONNXOPT_IN_KERNEL void multiply_tile(const Copies& a, const WeightCopies<T, kColumnBytes<E>>& weights, std::int64_t packed_rows,
                                     void* memory) {
  using S = Stage<T, kColumnBytes<E>>;
  auto* const stages = static_cast<S*>(memory);
  const auto steps = static_cast<int>((packed_rows + S::kPackedRows - 1) / S::kPackedRows);
  const auto begin = [&](int step) {
    if (step < steps) {
      a.copy(step, stages[step % kStages]);
      weights.copy(step, stages[step % kStages]);
    }
    commit_copies();
  };
  for (int step = 0; step < kStages - 1; ++step) begin(step);
  Sums<T, SumOf<E>> sums{};
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // the step is there, and the one before was read
    begin(step + kStages - 1);
    multiply_step<E, T>(stages[step % kStages], sums);
  }
  wait_for_copies<0>();
  __syncthreads();
  hold<T>(sums, static_cast<SumOf<E>*>(memory));
  __syncthreads();
}

}  // namespace
}  // namespace onnxopt::gemm::cuda
