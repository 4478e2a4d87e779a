// Quotients rounded up, and multiples that hold a size. Every file has these for itself, those of an instruction set included.
#pragma once

#include <cstdint>

namespace onnxopt {
namespace {

inline constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
inline constexpr std::int64_t round_up(std::int64_t a, std::int64_t step) { return ceil_div(a, step) * step; }

/// About one of so many `parts` of a size, as a multiple of `step`; where they are several, it goes into the size an even number of
/// times, the last of which may be smaller.
inline constexpr std::int64_t even_part(std::int64_t size, std::int64_t parts, std::int64_t step) {
  const std::int64_t near = round_up(ceil_div(size, parts), step);
  for (std::int64_t part = near; part >= step && parts > 1; part -= step)
    if (ceil_div(size, part) % 2 == 0) return part;
  return near;
}

}  // namespace
}  // namespace onnxopt
