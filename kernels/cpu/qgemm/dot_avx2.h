// Sums of products of bytes with AVX2. The bytes are widened: sums of two products of bytes do not fit into 16 bits.
#pragma once

#include "kernels/cpu/simd/avx2.h"

namespace onnxopt::qgemm {
namespace {

/// A vector of columns, as wide as one of floats.
struct Dot {
  /// Of columns 0 to 3 and of columns 4 to 7; two sums of each, side by side.
  struct Sums {
    __m256i low, high;
  };
  using A = __m256i;
  struct B {
    __m256i low, high;
  };
  using Numbers = __m256i;
  static constexpr int kRows = 3, kPanels = 1;

  static Sums zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  /// Sums that begin with -zero * column_sums.
  static Sums start(std::int32_t zero, Numbers column_sums) {
    const __m256i numbers = _mm256_mullo_epi32(_mm256_set1_epi32(-zero), column_sums);
    return {_mm256_cvtepu32_epi64(_mm256_castsi256_si128(numbers)), _mm256_cvtepu32_epi64(_mm256_extracti128_si256(numbers, 1))};
  }
  /// Four bytes of a row, for every column.
  static A broadcast(const std::uint8_t* p) {
    std::int32_t four;
    __builtin_memcpy(&four, p, sizeof(four));
    return _mm256_cvtepu8_epi16(_mm_set1_epi32(four));
  }
  static B load(const std::int8_t* p) {
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)))};
  }
  static Sums add(Sums sums, A a, B b) {
    return {_mm256_add_epi32(sums.low, _mm256_madd_epi16(a, b.low)), _mm256_add_epi32(sums.high, _mm256_madd_epi16(a, b.high))};
  }
  /// A product takes several instructions here, so their rate has no one loop.
  static std::int64_t occupy(std::int64_t) { return 0; }
  /// The first `count` (1 to V::kWidth) of the columns' numbers.
  static Numbers load_numbers(const std::int32_t* p, std::size_t count) {
    const __m256i places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_epi32(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), places));
  }
  /// A number for each column.
  static __m256i whole(Sums sums) {
    // Pairs are added within halves of a register: columns 0 1 4 5 2 3 6 7.
    const __m256i mixed = _mm256_hadd_epi32(sums.low, sums.high);
    return _mm256_permute4x64_epi64(mixed, _MM_SHUFFLE(3, 1, 2, 0));
  }
  static __m256 floats(Sums sums) { return _mm256_cvtepi32_ps(whole(sums)); }
  static void store_sums(std::int32_t* p, Sums sums) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), whole(sums)); }
  /// sums - zero * column_sums, as floats.
  static __m256 shifted(Sums sums, std::int32_t zero, Numbers column_sums) {
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(whole(sums), _mm256_mullo_epi32(_mm256_set1_epi32(zero), column_sums)));
  }
  /// The integers nearest to numbers between 0 - zero and 255 - zero, and zero added; NaN gives zero.
  static void store_bytes(std::uint8_t* p, __m256 x, std::int32_t zero) {
    const __m256i numbers = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(zero));
    const __m256i bytes = _mm256_and_si256(numbers, _mm256_set1_epi32(0xff));
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
  }
  /// The integers nearest to numbers between 0 and 65535: their high and their low bytes. NaN gives zero.
  static void store_words(std::uint8_t* high, std::uint8_t* low, __m256 x) {
    const __m256i numbers = _mm256_cvtps_epi32(x), mask = _mm256_set1_epi32(0xff);
    const auto store = [](std::uint8_t* p, __m256i bytes) {
      const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
    };
    store(high, _mm256_and_si256(_mm256_srli_epi32(numbers, 8), mask));
    store(low, _mm256_and_si256(numbers, mask));
  }
  /// The integers nearest to numbers between -128 and 127; of each column the four side by side.
  static void store_fours(std::int8_t* p, __m256 a, __m256 b, __m256 c, __m256 d) {
    const __m256i mask = _mm256_set1_epi32(0xff);
    const auto byte = [&](__m256 x) { return _mm256_and_si256(_mm256_cvtps_epi32(x), mask); };
    const __m256i low = _mm256_or_si256(byte(a), _mm256_slli_epi32(byte(b), 8));
    const __m256i high = _mm256_or_si256(byte(c), _mm256_slli_epi32(byte(d), 8));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_or_si256(low, _mm256_slli_epi32(high, 16)));
  }
  /// Bytes as floats, the highest bit of each inverted where `flip` says so.
  static __m256 load_bytes(const std::uint8_t* p, std::int32_t flip) {
    const __m256i numbers = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    return _mm256_cvtepi32_ps(_mm256_xor_si256(numbers, _mm256_set1_epi32(flip)));
  }
};

}  // namespace
}  // namespace onnxopt::qgemm
