// The portable reference: one float at a time, any architecture.
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#define VARIANT scalar

namespace onnxopt::elementwise {
namespace {

struct V {
  using F = float;
  using M = bool;
  static constexpr std::size_t kWidth = 1;
  static constexpr int kPack = 4;

  static F set1(float x) { return x; }
  static F load(const float* p) { return *p; }
  static void store(float* p, F x) { *p = x; }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  /// The reciprocal of a number that is normal and far from overflow.
  static F inverse(F x) { return div(set1(1.0f), x); }
  /// The product is exact in double, so that only the sum rounds: as good as a fused operation, without needing one.
  static F fma(F a, F b, F c) { return static_cast<float>(static_cast<double>(a) * b + c); }
  static F fms(F a, F b, F c) { return static_cast<float>(static_cast<double>(a) * b - c); }
  static F fnma(F a, F b, F c) { return static_cast<float>(c - static_cast<double>(a) * b); }
  static F sqrt(F x) { return std::sqrt(x); }
  static F min(F a, F b) { return a < b ? a : b; }
  static F max(F a, F b) { return a > b ? a : b; }
  static F abs(F x) { return std::fabs(x); }
  static F negate(F x) { return -x; }
  static F floor(F x) { return std::floor(x); }
  static F ceil(F x) { return std::ceil(x); }
  static F round(F x) { return std::nearbyint(x); }
  static M less(F a, F b) { return a < b; }
  static M greater(F a, F b) { return a > b; }
  static M equal(F a, F b) { return a == b; }
  static M unordered(F x) { return x != x; }
  static F select(M mask, F a, F b) { return mask ? a : b; }
  static F copysign(F a, F b) { return std::copysign(a, b); }
  static F scale(F p, F n) { return n == n ? std::ldexp(p, static_cast<int>(n)) : n; }
  static void split(F x, F& m, F& e) {
    auto bits = std::bit_cast<std::int32_t>(x);
    // Unsigned: the difference of NaN patterns may wrap; their result is replaced afterwards.
    auto above = static_cast<std::int32_t>(static_cast<std::uint32_t>(bits) - 0x3f3504f3u);
    std::int32_t exponent = above >> 23;
    m = std::bit_cast<float>(static_cast<std::uint32_t>(bits) - (static_cast<std::uint32_t>(exponent) << 23));
    e = static_cast<float>(exponent);
  }
  /// Round to nearest even by the hardware's float arithmetic: adding and removing a power of two drops the bits below a half's.
  static std::uint16_t to_half(float x) {
    auto bits = std::bit_cast<std::uint32_t>(x);
    auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
    std::uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
    if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
    if (magnitude < 0x38800000u) {
      float shifted = std::bit_cast<float>(magnitude) + 0.5f;
      return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u));
    }
    std::uint32_t odd = magnitude >> 13 & 1u;
    return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
  }
  static F load_half(const std::uint16_t* p) { return from_half(*p); }
  static void store_half(std::uint16_t* p, F x) { *p = to_half(x); }
  static F round_to_half(F x) { return from_half(to_half(x)); }
  static float from_half(std::uint16_t x) {
    std::uint32_t sign = static_cast<std::uint32_t>(x & 0x8000u) << 16;
    std::uint32_t exponent = x >> 10 & 0x1fu, mantissa = x & 0x3ffu;
    if (exponent == 0) return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(static_cast<float>(mantissa) * 0x1p-24f));
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
    return std::bit_cast<float>(sign | (exponent + 112u) << 23 | mantissa << 13);
  }
};

}  // namespace
}  // namespace onnxopt::elementwise

#include "kernels/cpu/elementwise/generic.h"
