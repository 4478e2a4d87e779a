// Sums of products of bytes with AVX-512 VNNI.
#pragma once

#include "kernels/cpu/simd/avx512.h"
#undef ONNXOPT_VARIANT
#define ONNXOPT_VARIANT avx512vnni

namespace onnxopt::qgemm {
namespace {

/// A vector of columns, as wide as one of floats.
struct Dot {
  using Sums = __m512i;
  using A = __m512i;
  using B = __m512i;
  using Numbers = __m512i;
  static constexpr int kRows = 12, kPanels = 2;

  static Sums zero() { return _mm512_setzero_si512(); }
  /// Sums that begin with -zero * column_sums.
  static Sums start(std::int32_t zero, Numbers column_sums) { return _mm512_mullo_epi32(_mm512_set1_epi32(-zero), column_sums); }
  /// Four bytes of a row, for every column.
  static A broadcast(const std::uint8_t* p) {
    std::int32_t four;
    __builtin_memcpy(&four, p, sizeof(four));
    return _mm512_set1_epi32(four);
  }
  static B load(const std::int8_t* p) { return _mm512_loadu_si512(p); }
  static Sums add(Sums sums, A a, B b) {
    // GCC 12 moves what its own function sums to another register and back, which takes more time than the instruction.
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(a), "v"(b));
    return sums;
  }
  /// Multiplies registers alone, `rounds` (at least 1) times, and says how many products of bytes that were: what no kernel
  /// exceeds.
  static std::int64_t occupy(std::int64_t rounds) {
    constexpr std::int64_t kSums = 24, kProducts = 64;
    std::int64_t left = rounds;
    // In one piece, so that no sum goes through memory.
    __asm__ volatile(
        "1:\n"
        ".irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23\n"
        "vpdpbusd %%zmm25, %%zmm24, %%zmm\\r\n"
        ".endr\n"
        "dec %0\n"
        "jnz 1b\n"
        : "+r"(left)
        :
        : "cc", "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm12", "zmm13",
          "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", "zmm19", "zmm20", "zmm21", "zmm22", "zmm23");
    return rounds * kSums * kProducts;
  }
  /// The first `count` (1 to V::kWidth) of the columns' numbers.
  static Numbers load_numbers(const std::int32_t* p, std::size_t count) {
    return _mm512_maskz_loadu_epi32(static_cast<__mmask16>(0xffffu >> (16 - count)), p);
  }
  static __m512 floats(Sums sums) { return _mm512_cvtepi32_ps(sums); }
  static void store_sums(std::int32_t* p, Sums sums) { _mm512_storeu_si512(p, sums); }
  /// sums - zero * column_sums, as floats.
  static __m512 shifted(Sums sums, std::int32_t zero, Numbers column_sums) {
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, _mm512_mullo_epi32(_mm512_set1_epi32(zero), column_sums)));
  }
  /// The integers nearest to numbers between 0 - zero and 255 - zero, and zero added; NaN gives zero.
  static void store_bytes(std::uint8_t* p, __m512 x, std::int32_t zero) {
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_add_epi8(bytes, _mm_set1_epi8(static_cast<char>(zero))));
  }
  /// The integers nearest to numbers between 0 and 65535: their high and their low bytes. NaN gives zero.
  static void store_words(std::uint8_t* high, std::uint8_t* low, __m512 x) {
    const __m512i numbers = _mm512_cvtps_epi32(x);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8(_mm512_srli_epi32(numbers, 8)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8(numbers));
  }
  /// The integers nearest to numbers between -128 and 127; of each column the four side by side.
  static void store_fours(std::int8_t* p, __m512 a, __m512 b, __m512 c, __m512 d) {
    const __m512i mask = _mm512_set1_epi32(0xff);
    const auto byte = [&](__m512 x) { return _mm512_and_si512(_mm512_cvtps_epi32(x), mask); };
    const __m512i low = _mm512_or_si512(byte(a), _mm512_slli_epi32(byte(b), 8));
    const __m512i high = _mm512_or_si512(byte(c), _mm512_slli_epi32(byte(d), 8));
    _mm512_storeu_si512(p, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
  /// Bytes as floats, the highest bit of each inverted where `flip` says so.
  static __m512 load_bytes(const std::uint8_t* p, std::int32_t flip) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_xor_si128(bytes, _mm_set1_epi8(static_cast<char>(flip)))));
  }
};

}  // namespace
}  // namespace onnxopt::qgemm
