#include "csrc/python/products.h"

#include <cstdint>
#include <cstring>

namespace onnxopt::products {
namespace {

constexpr std::uint32_t kExponent = 0x7F800000;

/// A product rounded to float; `seen` keeps whether one had all bits of the exponent set, which infinities and NaN have.
inline float rounded(const std::byte* weight, double factor, std::uint32_t& seen) {
  float value;
  std::memcpy(&value, weight, sizeof(value));  // ranges of files are not aligned
  const auto result = static_cast<float>(static_cast<double>(value) * factor);
  std::uint32_t bits;
  std::memcpy(&bits, &result, sizeof(bits));
  seen |= static_cast<std::uint32_t>((bits & kExponent) == kExponent);
  return result;
}

bool multiply_line(const std::byte* weights, const double* factor, Axis axis, float* target) {
  std::uint32_t seen = 0;
  if (axis.step == 0) {
    const double same = *factor;
    for (std::size_t i = 0; i < axis.size; ++i) target[i] = rounded(weights + i * sizeof(float), same, seen);
  } else {
    for (std::size_t i = 0; i < axis.size; ++i) target[i] = rounded(weights + i * sizeof(float), factor[i * axis.step], seen);
  }
  return seen == 0;
}

}  // namespace

std::vector<Axis> merged(std::span<const Axis> axes) {
  std::vector<Axis> result;
  for (const Axis& axis : axes) {
    if (axis.size == 1) continue;
    if (!result.empty() && result.back().step == axis.size * axis.step)
      result.back() = {result.back().size * axis.size, axis.step};
    else
      result.push_back(axis);
  }
  if (result.empty()) result.push_back({1, 0});
  return result;
}

bool multiply(const std::byte* weights, const double* factor, std::span<const Axis> axes, float* target) {
  if (axes.size() == 1) return multiply_line(weights, factor, axes.front(), target);
  const std::span<const Axis> inner = axes.subspan(1);
  std::size_t count = 1;
  for (const Axis& axis : inner) count *= axis.size;
  bool finite = true;
  for (std::size_t i = 0; i < axes.front().size; ++i) {
    const std::size_t start = i * count;
    finite &= multiply(weights + start * sizeof(float), factor + i * axes.front().step, inner, target + start);
  }
  return finite;
}

}  // namespace onnxopt::products
