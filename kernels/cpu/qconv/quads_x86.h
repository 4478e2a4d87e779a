// Four rows of a depthwise window at once, in registers of 32 bytes. Included before the sums of an instruction set.
//
// Bytes are interleaved within halves of registers: vector v has channels 4 v to 4 v + 3 and 16 + 4 v to 16 + 4 v + 3.
#pragma once

namespace onnxopt::qconv {
namespace {

struct InterleavedQuads {
  static constexpr int kChannels = 32, kVectors = 4, kWeightBytes = 32;
  using Sums = __m256i;
  struct Column {
    __m256i of[kVectors];
  };

  static __m256i two_parts(const void* low, const void* high) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(low))),
                                   _mm_loadu_si128(static_cast<const __m128i*>(high)), 1);
  }
  static Sums start(const std::int32_t* weight_sums, std::int32_t zero, int vector) {
    const __m256i sums = two_parts(weight_sums + 4 * vector, weight_sums + 16 + 4 * vector);
    return _mm256_mullo_epi32(sums, _mm256_set1_epi32(-zero));
  }
  static Column load(const std::uint8_t* const (&rows)[4]) {
    __m256i row[4];
    for (int r = 0; r < 4; ++r) row[r] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[r]));
    const __m256i low01 = _mm256_unpacklo_epi8(row[0], row[1]), low23 = _mm256_unpacklo_epi8(row[2], row[3]);
    const __m256i high01 = _mm256_unpackhi_epi8(row[0], row[1]), high23 = _mm256_unpackhi_epi8(row[2], row[3]);
    return {{_mm256_unpacklo_epi16(low01, low23), _mm256_unpackhi_epi16(low01, low23), _mm256_unpacklo_epi16(high01, high23),
             _mm256_unpackhi_epi16(high01, high23)}};
  }
  /// Weights [kChannels, 4], in the order of a column.
  static void arrange(const std::int8_t* weights, std::int8_t* to) {
    for (int v = 0; v < kVectors; ++v)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + v * kWeightBytes), two_parts(weights + 16 * v, weights + 64 + 16 * v));
  }
};

}  // namespace
}  // namespace onnxopt::qconv
