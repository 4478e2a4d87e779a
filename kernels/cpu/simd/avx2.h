// AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#define ONNXOPT_VARIANT avx2

namespace onnxopt::simd {
namespace {

struct V {
  using F = __m256;
  using M = __m256;
  static constexpr std::size_t kWidth = 8;
  static constexpr int kPack = 2;
  static constexpr int kMatrixRows = 6, kMatrixPanels = 1;
  static constexpr bool kHalves = false;
  static constexpr bool kTables = false;

  static F set1(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  /// The first `count` (1 to kWidth) elements; the others are neither read nor written.
  static F load_first(const float* p, std::size_t count) { return _mm256_maskload_ps(p, first(count)); }
  /// The first `count` (0 to kWidth) elements, and those of `rest`.
  static F load_first(const float* p, std::size_t count, F rest) {
    return _mm256_blendv_ps(rest, load_first(p, count), _mm256_castsi256_ps(first(count)));
  }
  static void store_first(float* p, F x, std::size_t count) { _mm256_maskstore_ps(p, first(count), x); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  /// The reciprocal of a number that is normal and far from overflow.
  static F inverse(F x) { return div(set1(1.0f), x); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  /// a b + c, as fast as it gets: whether it rounds once or twice is not said.
  static F accumulate(F a, F b, F c) { return fma(a, b, c); }
  static F accumulate_half(F a, F b, F c) { return accumulate(a, b, c); }
  static F fms(F a, F b, F c) { return _mm256_fmsub_ps(a, b, c); }
  static F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }
  static F sqrt(F x) { return _mm256_sqrt_ps(x); }
  /// Element lanes[i] of x for each i.
  static F permute(F x, const std::int32_t* lanes) {
    return _mm256_permutevar8x32_ps(x, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes)));
  }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F abs(F x) { return _mm256_andnot_ps(set1(-0.0f), x); }
  static F negate(F x) { return _mm256_xor_ps(x, set1(-0.0f)); }
  static F floor(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
  static F ceil(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC); }
  static F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static M less(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  static M greater(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
  static M equal(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
  static M unordered(F x) { return _mm256_cmp_ps(x, x, _CMP_UNORD_Q); }
  static F select(M mask, F a, F b) { return _mm256_blendv_ps(b, a, mask); }
  static F copysign(F a, F b) { return _mm256_or_ps(abs(a), _mm256_and_ps(set1(-0.0f), b)); }
  /// p times 2 to the power of the integer n in two steps, of which only the second can round.
  static F scale(F p, F n) {
    __m256i whole = _mm256_cvtps_epi32(n);
    __m256i half = _mm256_srai_epi32(whole, 1);
    return mul(mul(p, power(half)), power(_mm256_sub_epi32(whole, half)));
  }
  static void split(F x, F& m, F& e) {
    __m256i bits = _mm256_castps_si256(x);
    __m256i exponent = _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(0x3f3504f3)), 23);
    m = _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(exponent, 23)));
    e = _mm256_cvtepi32_ps(exponent);
  }
  static F load_half(const std::uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static void store_half(std::uint16_t* p, F x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), half(x)); }
  static F round_to_half(F x) { return _mm256_cvtph_ps(half(x)); }
  static std::uint16_t to_half(float x) { return static_cast<std::uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)); }
  static float from_half(std::uint16_t x) { return _cvtsh_ss(x); }

  /// The sum of the elements, in pairs.
  static float sum(F x) {
    const __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
  }
  /// The largest element; a NaN may be left out.
  static float largest(F x) {
    const __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 quarter = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(quarter, _mm_movehdup_ps(quarter)));
  }

 private:
  static __m256i first(std::size_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static __m128i half(F x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }
  static F power(__m256i n) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23)); }
};

}  // namespace
}  // namespace onnxopt::simd
