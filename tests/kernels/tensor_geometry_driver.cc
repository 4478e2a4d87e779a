// Checks how products become tiles, for all kinds of sizes; the checks are made while this is compiled.
#include "kernels/cuda/gemm/tensor.h"

namespace {

using namespace onnxopt::gemm::cuda;

constexpr std::int64_t kHuge = std::int64_t{1} << 40;

/// Whether the tiles of a problem begin inside it, and no two of them at the same place.
template <class T>
constexpr bool all_are_there_once(std::int64_t down, std::int64_t across, int products) {
  const int share = share_of<T>(products);
  const std::int64_t rows = (down - 1) * T::kRows + 1, columns = (across - 1) * share + 1;
  if (tiles_of<T>(rows, columns, products) != down * across) return false;
  bool seen[40 * 40] = {};
  for (std::int64_t number = 0; number < down * across; ++number) {
    const Tile tile = tile_of<T>(rows, columns, share, number);
    if (tile.row < 0 || tile.row >= rows || tile.column < 0 || tile.column >= columns) return false;
    bool& one = seen[tile.row / T::kRows * across + tile.column / share];
    if (one || tile.row % T::kRows != 0 || tile.column % share != 0) return false;
    one = true;
  }
  return true;
}

constexpr bool all_sizes() {
  for (const int products : {1, 2, 3, 4})
    for (const std::int64_t down : {1, 2, 7, 8, 9, 17, 40})
      for (const std::int64_t across : {1, 3, 20})
        if (!all_are_there_once<Large>(down, across, products) || !all_are_there_once<Small>(down, across, products) ||
            !all_are_there_once<Tall>(down, across, products))
          return false;
  return true;
}

static_assert(all_sizes());
static_assert(tiles_of<Small>(kHuge, 65, 1) == kHuge / 64 * 2);
static_assert(tile_of<Small>(kHuge, 65, 64, kHuge / 64 * 2 - 1).row == kHuge - 64, "rows of huge matrices are numbered right");
static_assert(tile_of<Large>(1, kHuge, 128, kHuge / 128 - 1).column == kHuge - 128, "and so are columns");
static_assert(takes_large_tiles(4096, 4096, 1, 132, 0) && !takes_large_tiles(256, 256, 1, 132, 0),
              "small problems have more blocks");
static_assert(!takes_large_tiles(4096, 4096, 1, 132, 200), "large programs have small tiles");
static_assert(finish_of<Large, 4>(0).shared_bytes <= kMostSharedBytes && finish_of<Large, 2>(0).shared_bytes <= kMostSharedBytes);
static_assert(finish_of<Small, 4>(512).threads == 128 && finish_of<Small, 4>(100000).threads == 32);

}  // namespace
