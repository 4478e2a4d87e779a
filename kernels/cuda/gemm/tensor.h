// Products on tensor cores: how a problem becomes tiles of blocks, whatever its elements are.
//
// A block multiplies a tile of rows by a tile of columns, step by step: 64 bytes of each row, and as many rows of the packed
// weights as go with them. Steps are copied into shared memory while earlier ones are multiplied. Results lie there at last, as
// words, and are finished as neighbours by neighbouring threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define ONNXOPT_ANYWHERE __host__ __device__
#else
#define ONNXOPT_ANYWHERE
#endif

namespace onnxopt::gemm::cuda {

constexpr int kTensorThreads = 256;
/// Steps that are in shared memory or on their way there, and what one has of a row.
constexpr int kStages = 4, kStepBytes = 64;
/// Shared memory with which two blocks fit on a multiprocessor, and one on any device.
constexpr std::size_t kMostSharedBytes = 96 * 1024;

/// The tile of a block, and that of each of its eight warps.
template <int Rows, int Columns, int WarpRows, int WarpColumns>
struct Tiling {
  static constexpr int kRows = Rows, kColumns = Columns, kWarpRows = WarpRows, kWarpColumns = WarpColumns;
  static constexpr int kWarpsAcross = Columns / WarpColumns;
  /// Words from a row of results to the next: so that rows of neighbours fall into other banks.
  static constexpr int kHeldStep = Columns + 8;
  static constexpr std::size_t kHeldBytes = std::size_t{Rows} * kHeldStep * 4;
  static_assert(Rows / WarpRows * kWarpsAcross * 32 == kTensorThreads);
};
using Large = Tiling<128, 128, 64, 32>;
using Tall = Tiling<128, 64, 32, 32>;  // in place of large ones, where other work needs registers
using Small = Tiling<64, 64, 32, 16>;

/// One step of operands. A packed row of weights has `W` bytes of each column: four bytes of its depth, one float, or one half.
template <class T, int W>
struct alignas(16) Stage {
  static constexpr int kRowBytes = kStepBytes + 16, kPackedRows = kStepBytes / W, kPackedBytes = (T::kColumns + 8) * W;
  std::byte a[T::kRows * kRowBytes], weights[kPackedRows * kPackedBytes];
};

/// Where a block's tile begins.
struct Tile {
  std::int64_t row, column;
};

/// What finishes results: as many threads as have room for what each needs, and shared memory for that and the operands.
struct Finish {
  unsigned threads;
  std::size_t shared_bytes;
};

template <class T, int W>
constexpr Finish finish_of(std::size_t bytes_of_thread) {
  unsigned threads = static_cast<unsigned>(kTensorThreads);
  while (threads > 32 && T::kHeldBytes + threads * bytes_of_thread > kMostSharedBytes) threads /= 2;
  return {threads, std::max(kStages * sizeof(Stage<T, W>), T::kHeldBytes + threads * bytes_of_thread)};
}

/// Columns of each product that a tile has: products share it.
template <class T>
ONNXOPT_ANYWHERE constexpr int share_of(int products) {
  return T::kColumns / (products > 2 ? 4 : products);
}

template <class T>
ONNXOPT_ANYWHERE constexpr std::int64_t tiles_of(std::int64_t rows, std::int64_t columns, int products) {
  const std::int64_t share = share_of<T>(products);
  return (rows + T::kRows - 1) / T::kRows * ((columns + share - 1) / share);
}

/// Rows of tiles whose columns are taken before those of further rows, so that both operands are in the second-level cache.
constexpr std::int64_t kRowsTogether = 8;

/// Of all tiles, the one of this number.
template <class T>
ONNXOPT_ANYWHERE constexpr Tile tile_of(std::int64_t rows, std::int64_t columns, int share, std::int64_t number) {
  const std::int64_t down = (rows + T::kRows - 1) / T::kRows, across = (columns + share - 1) / share;
  const std::int64_t first = number / (kRowsTogether * across) * kRowsTogether, left = down - first;
  const std::int64_t together = left < kRowsTogether ? left : kRowsTogether, inside = number % (kRowsTogether * across);
  return {(first + inside % together) * T::kRows, inside / together * share};
}

/// Whether large tiles keep all of a device's multiprocessors busy, and leave room for what finishes them.
template <class Big = Large>
constexpr bool takes_large_tiles(std::int64_t rows, std::int64_t columns, int products, int processors,
                                 std::size_t bytes_of_thread) {
  return tiles_of<Big>(rows, columns, products) >= processors &&
         Big::kHeldBytes + std::size_t{kTensorThreads} * bytes_of_thread <= kMostSharedBytes;
}

}  // namespace onnxopt::gemm::cuda
