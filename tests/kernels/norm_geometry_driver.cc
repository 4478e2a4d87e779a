// Checks which threads share rows, for all kinds of sizes; the checks are made while this is compiled.
#include "kernels/cuda/norm/geometry.h"

namespace {

using namespace onnxopt::norm::cuda;

constexpr std::int64_t kHuge = std::int64_t{1} << 40;

constexpr bool is_sound(const Geometry& g) {
  return g.threads % kLanes == 0 && g.threads <= kMostThreads && std::has_single_bit(g.lanes) && g.lanes <= kLanes &&
         g.warps >= 1 && g.warps * kLanes <= g.threads && g.threads % g.members() == 0 && g.rows() * g.members() == g.threads;
}

constexpr bool all_are_sound() {
  for (const bool side_by_side : {false, true})
    for (std::int64_t items = 1; items <= kHuge; items = items < 600 ? items + 1 : items * 3 + 1) {
      const Geometry geometry = geometry_of(items, side_by_side);
      if (!is_sound(geometry)) return false;
      for (const std::size_t bytes : {4, 100, 1000, 3000}) {
        const Geometry fewer = shrunk(geometry, bytes, 48 * 1024);
        if (!is_sound(fewer) || (fewer.threads > kLanes && fewer.threads * bytes > 48 * 1024)) return false;
      }
    }
  return true;
}

static_assert(all_are_sound());
static_assert(geometry_of(1, false).rows() == 128, "a thread takes a short row");
static_assert(geometry_of(192, false).members() == kLanes, "768 floats: a warp takes a row");
static_assert(geometry_of(kHuge, false).members() == kMostThreads, "the block takes a long row");
static_assert(geometry_of(3, true).rows() == 256, "a thread takes a short column");
static_assert(geometry_of(kHuge, true).rows() == kLanes, "neighbours of a warp take neighbouring columns");

}  // namespace
