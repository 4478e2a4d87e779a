// The portable reference, for any architecture: four floats in the compiler's own notation of vectors, which it maps to what the
// processor's baseline has.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#define ONNXOPT_VARIANT scalar

namespace onnxopt::simd {
namespace {

struct V {
  using F = float __attribute__((vector_size(16)));
  using M = std::int32_t __attribute__((vector_size(16)));
  static constexpr std::size_t kWidth = 4;
  static constexpr int kPack = 2;
  static constexpr int kMatrixRows = 2, kMatrixPanels = 1;
  static constexpr bool kHalves = false;
  static constexpr bool kTables = false;

  static F set1(float x) { return F{x, x, x, x}; }
  static F load(const float* p) {
    F x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
  /// The first `count` (1 to kWidth) elements; the others are neither read nor written.
  static F load_first(const float* p, std::size_t count) {
    F x{};
    std::memcpy(&x, p, count * sizeof(float));
    return x;
  }
  /// The first `count` (0 to kWidth) elements, and those of `rest`.
  static F load_first(const float* p, std::size_t count, F rest) {
    std::memcpy(&rest, p, count * sizeof(float));
    return rest;
  }
  static void store_first(float* p, F x, std::size_t count) { std::memcpy(p, &x, count * sizeof(float)); }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  /// The reciprocal of a number that is normal and far from overflow.
  static F inverse(F x) { return set1(1.0f) / x; }
#ifdef __FP_FAST_FMAF
  static F fma(F a, F b, F c) {
    for (int i = 0; i < 4; ++i) c[i] = std::fma(a[i], b[i], c[i]);
    return c;
  }
#else
  /// The product is exact in double, so that only the sum rounds: as good as a fused operation, without needing one.
  static F fma(F a, F b, F c) { return narrow(wide(a) * wide(b) + wide(c)); }
#endif
  /// a b + c, as fast as it gets: whether it rounds once or twice is not said.
#ifdef __FP_FAST_FMAF
  static F accumulate(F a, F b, F c) { return fma(a, b, c); }
#else
  static F accumulate(F a, F b, F c) { return a * b + c; }
#endif
  static F accumulate_half(F a, F b, F c) { return accumulate(a, b, c); }
  static F fms(F a, F b, F c) { return fma(a, b, -c); }
  static F fnma(F a, F b, F c) { return fma(-a, b, c); }
  static F sqrt(F x) { return F{std::sqrt(x[0]), std::sqrt(x[1]), std::sqrt(x[2]), std::sqrt(x[3])}; }
  /// Element lanes[i] of x for each i.
  static F permute(F x, const std::int32_t* lanes) { return F{x[lanes[0]], x[lanes[1]], x[lanes[2]], x[lanes[3]]}; }
  static F min(F a, F b) { return select(a < b, a, b); }
  static F max(F a, F b) { return select(a > b, a, b); }
  static F abs(F x) { return number(bits(x) & 0x7fffffff); }
  static F negate(F x) { return -x; }
  static F floor(F x) {
    const F r = round(x);
    return copysign(select(r > x, r - set1(1.0f), r), x);
  }
  static F ceil(F x) {
    const F r = round(x);
    return copysign(select(r < x, r + set1(1.0f), r), x);
  }
  /// Ties to even, by the addition of a number whose last bit is worth 1; larger numbers are integers already.
  static F round(F x) {
    const F large = copysign(set1(8388608.0f), x);
    return select(abs(x) < set1(8388608.0f), copysign((x + large) - large, x), x);
  }
  static M less(F a, F b) { return a < b; }
  static M greater(F a, F b) { return a > b; }
  static M equal(F a, F b) { return a == b; }
  static M unordered(F x) { return x != x; }
  static F select(M mask, F a, F b) { return number((mask & bits(a)) | (~mask & bits(b))); }
  static F copysign(F a, F b) { return number((bits(a) & 0x7fffffff) | (bits(b) & sign_bit())); }
  /// p times 2 to the power of the integer n in two steps, of which only the second can round.
  static F scale(F p, F n) {
    const M whole = __builtin_convertvector(select(n == n, n, set1(0.0f)), M), half = whole >> 1;
    return p * power(half) * power(whole - half);
  }
  /// x = m times 2 to the power of e, with m in [sqrt 1/2, sqrt 2), for positive normal x.
  static void split(F x, F& m, F& e) {
    // Unsigned: the difference of NaN patterns may wrap; their result is replaced afterwards.
    const U raw = std::bit_cast<U>(x);
    const M exponent = std::bit_cast<M>(raw - 0x3f3504f3u) >> 23;
    m = std::bit_cast<F>(raw - (std::bit_cast<U>(exponent) << 23));
    e = __builtin_convertvector(exponent, F);
  }
  static F load_half(const std::uint16_t* p) { return F{from_half(p[0]), from_half(p[1]), from_half(p[2]), from_half(p[3])}; }
  static void store_half(std::uint16_t* p, F x) {
    for (int i = 0; i < 4; ++i) p[i] = to_half(x[i]);
  }
  static F round_to_half(F x) {
    for (int i = 0; i < 4; ++i) x[i] = from_half(to_half(x[i]));
    return x;
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
  static float from_half(std::uint16_t x) {
    std::uint32_t sign = static_cast<std::uint32_t>(x & 0x8000u) << 16;
    std::uint32_t exponent = x >> 10 & 0x1fu, mantissa = x & 0x3ffu;
    if (exponent == 0) return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(static_cast<float>(mantissa) * 0x1p-24f));
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
    return std::bit_cast<float>(sign | (exponent + 112u) << 23 | mantissa << 13);
  }

  /// The sum of the elements, in pairs.
  static float sum(F x) { return (x[0] + x[2]) + (x[1] + x[3]); }
  /// The largest element; a NaN may be left out.
  static float largest(F x) {
    const F half = max(x, F{x[2], x[3], x[2], x[3]});
    return half[0] > half[1] ? half[0] : half[1];
  }

 private:
  using D = double __attribute__((vector_size(32)));
  using U = std::uint32_t __attribute__((vector_size(16)));

  static D wide(F x) { return __builtin_convertvector(x, D); }
  static F narrow(D x) { return __builtin_convertvector(x, F); }
  static M bits(F x) { return std::bit_cast<M>(x); }
  static F number(M x) { return std::bit_cast<F>(x); }
  static M sign_bit() { return M{} + std::numeric_limits<std::int32_t>::min(); }
  static F power(M n) { return number((n + 127) << 23); }
};

}  // namespace
}  // namespace onnxopt::simd
