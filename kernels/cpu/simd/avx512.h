// AVX-512 (F, BW, DQ, VL), FMA and F16C.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#define ONNXOPT_VARIANT avx512

namespace onnxopt::simd {
namespace {

struct V {
  using F = __m512;
  using M = __mmask16;
  static constexpr std::size_t kWidth = 16;
  static constexpr int kPack = 8;
  static constexpr int kMatrixRows = 12, kMatrixPanels = 2;
  static constexpr bool kHalves = true;  // whether half a vector may take less time
  static constexpr bool kTables = true;  // whether elements of a table are fetched as fast as numbers are multiplied

  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  /// The first `count` (1 to kWidth) elements; the others are neither read nor written.
  static F load_first(const float* p, std::size_t count) { return _mm512_maskz_loadu_ps(first(count), p); }
  /// The first `count` (0 to kWidth) elements, and those of `rest`.
  static F load_first(const float* p, std::size_t count, F rest) { return _mm512_mask_loadu_ps(rest, first(count), p); }
  static void store_first(float* p, F x, std::size_t count) { _mm512_mask_storeu_ps(p, first(count), x); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  /// The reciprocal of a number that is normal and far from overflow, by an estimate and Newton's step: the divider takes several
  /// times as long. Its error is below an ulp.
  static F inverse(F x) {
    F r = _mm512_rcp14_ps(x);
    return _mm512_fmadd_ps(r, _mm512_fnmadd_ps(x, r, set1(1.0f)), r);
  }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  /// a b + c, as fast as it gets: whether it rounds once or twice is not said.
  static F accumulate(F a, F b, F c) { return fma(a, b, c); }
  /// The same where only the first half of the elements matters, which takes some processors half the time.
  static F accumulate_half(F a, F b, F c) {
    const auto half = [](F x) { return _mm512_castps512_ps256(x); };
    return _mm512_castps256_ps512(_mm256_fmadd_ps(half(a), half(b), half(c)));
  }
  static F fms(F a, F b, F c) { return _mm512_fmsub_ps(a, b, c); }
  static F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
  static F sqrt(F x) { return _mm512_sqrt_ps(x); }
  /// Element lanes[i] of x for each i.
  static F permute(F x, const std::int32_t* lanes) { return _mm512_permutexvar_ps(_mm512_loadu_si512(lanes), x); }
  /// For each element the one of a table that the lowest bits of its own say.
  static F lookup(const float (&table)[16], F x) { return _mm512_permutexvar_ps(_mm512_castps_si512(x), _mm512_load_ps(table)); }
  static F lookup(const float (&table)[32], F x) {
    return _mm512_permutex2var_ps(_mm512_load_ps(table), _mm512_castps_si512(x), _mm512_load_ps(table + 16));
  }
  /// Bits of which the lowest four say in which half of which octave x lies, up to 16; what is below 2^-4 is taken to be 2^-4.
  static F half_octave(F x) {
    constexpr int kLeast = 0x3d800000, kShift = 22;
    return _mm512_castsi512_ps(_mm512_srli_epi32(_mm512_max_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(kLeast)), kShift));
  }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F abs(F x) { return _mm512_abs_ps(x); }
  static F negate(F x) { return _mm512_xor_ps(x, _mm512_set1_ps(-0.0f)); }
  static F floor(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
  static F ceil(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC); }
  static F round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static M less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static M greater(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static M equal(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  static M unordered(F x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); }
  static F select(M mask, F a, F b) { return _mm512_mask_blend_ps(mask, b, a); }
  /// The magnitude of `a` with the sign of `b`; the sign of `a` is ignored.
  static F copysign(F a, F b) {
    // 0xD8: take b where the sign bit is selected, else a.
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b),
                                                         _mm512_set1_epi32(static_cast<int>(0x80000000u)), 0xD8));
  }
  /// p times 2 to the power of the integer n, rounded once also where the result is subnormal.
  static F scale(F p, F n) { return _mm512_scalef_ps(p, n); }
  /// The sum of the elements, in pairs.
  static float sum(F x) { return _mm512_reduce_add_ps(x); }
  /// The largest element; a NaN may be left out.
  static float largest(F x) { return _mm512_reduce_max_ps(x); }
  /// x = m times 2 to the power of e, with m in [sqrt 1/2, sqrt 2), for positive normal x.
  static void split(F x, F& m, F& e) {
    __m512i bits = _mm512_castps_si512(x);
    __m512i exponent = _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(0x3f3504f3)), 23);
    m = _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(exponent, 23)));
    e = _mm512_cvtepi32_ps(exponent);
  }
  static F load_half(const std::uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static void store_half(std::uint16_t* p, F x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half(x)); }
  static F round_to_half(F x) { return _mm512_cvtph_ps(half(x)); }
  static std::uint16_t to_half(float x) { return static_cast<std::uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)); }
  static float from_half(std::uint16_t x) { return _cvtsh_ss(x); }

 private:
  static M first(std::size_t count) { return static_cast<M>(0xffffu >> (kWidth - count)); }
  static __m256i half(F x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
};

}  // namespace
}  // namespace onnxopt::simd
