// Four rows of a depthwise window at once, with AVX2. The bytes are widened: sums of two products of bytes do not fit into 16 bits.
#pragma once

#include "kernels/cpu/qgemm/dot_avx2.h"
// The vectors come first.
#include "kernels/cpu/qconv/quads_x86.h"

namespace onnxopt::qconv {
namespace {

/// Channels, of each four bytes of one column, and their sums.
struct Quads : InterleavedQuads {
  static Sums add(Sums sums, __m256i x, const std::int8_t* weights) {
    const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights));
    const __m256i even =
        _mm256_madd_epi16(_mm256_and_si256(x, _mm256_set1_epi16(0xff)), _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(x, 8), _mm256_srai_epi16(w, 8));
    return _mm256_add_epi32(sums, _mm256_add_epi32(even, odd));
  }
  /// The sums of all channels, in their order.
  static void floats(const Sums (&sums)[kVectors], __m256 (&to)[kChannels / 8]) {
    for (int i = 0; i < 2; ++i) {
      to[i] = _mm256_cvtepi32_ps(_mm256_permute2x128_si256(sums[2 * i], sums[2 * i + 1], 0x20));
      to[2 + i] = _mm256_cvtepi32_ps(_mm256_permute2x128_si256(sums[2 * i], sums[2 * i + 1], 0x31));
    }
  }
};

}  // namespace
}  // namespace onnxopt::qconv
