// Limits of what is asked for: numbers of elements that do not wrap around.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

namespace onnxopt {

/// The largest size that an attribute may give: the product of two is a number still.
constexpr std::int64_t kMostSize = (std::int64_t{1} << 31) - 1;

/// More elements than any memory has: the bytes of many such tensors are still a number.
constexpr std::int64_t kMostElements = std::int64_t{1} << 44;

/// Whether a tensor of that shape may fit into memory; empty dims are taken as 1, since parts of it may leave them out.
inline bool is_countable(std::span<const std::int64_t> shape) {
  std::int64_t elements = 1;
  return std::none_of(shape.begin(), shape.end(), [&](std::int64_t size) {
    return __builtin_mul_overflow(elements, std::max<std::int64_t>(size, 1), &elements) || elements > kMostElements;
  });
}

}  // namespace onnxopt
