// Which threads share a row. It depends on the sizes alone.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace onnxopt::norm::cuda {

constexpr unsigned kLanes = 32, kMostThreads = 512;

/// Threads of a block: `lanes` neighbours of a warp in each of `warps` warps share a row.
struct Geometry {
  unsigned threads, lanes, warps;

  constexpr unsigned members() const { return lanes * warps; }
  constexpr unsigned rows() const { return threads / members(); }
};

/// Items of a thread before more threads share a row.
constexpr std::int64_t kItems = 8;
constexpr unsigned kFewThreads = 128, kColumnThreads = 256;

constexpr unsigned power_of_two_below(std::int64_t count, unsigned most) {
  return static_cast<unsigned>(std::bit_floor(static_cast<std::uint64_t>(std::clamp<std::int64_t>(count, 1, most))));
}

/// For rows of so many items, which are what a thread computes at once. Of rows that lie side by side, element by element,
/// neighbours belong to the lanes of a warp, so that these read what lies together.
constexpr Geometry geometry_of(std::int64_t items, bool side_by_side) {
  if (side_by_side) return {kColumnThreads, 1, power_of_two_below(items / kItems, kColumnThreads / kLanes)};
  if (items <= kLanes) return {kFewThreads, static_cast<unsigned>(std::bit_ceil(static_cast<std::uint64_t>(items))), 1};
  if (items <= kLanes * kItems) return {kFewThreads, kLanes, 1};
  const unsigned warps = std::max(power_of_two_below(items / (kLanes * kItems), kMostThreads / kLanes), kFewThreads / kLanes);
  return {warps * kLanes, kLanes, warps};
}

/// The same with fewer threads, where those together may have only so many bytes of memory and each has some.
constexpr Geometry shrunk(Geometry geometry, std::size_t bytes_of_thread, std::size_t most) {
  while (geometry.threads > kLanes && geometry.threads * bytes_of_thread > most) {
    geometry.threads /= 2;
    geometry.warps = std::min(geometry.warps, geometry.threads / kLanes);
  }
  return geometry;
}

}  // namespace onnxopt::norm::cuda
