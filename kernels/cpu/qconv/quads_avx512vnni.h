// Four rows of a depthwise window at once, with AVX-512 VNNI. Registers are half as wide as they could be: channels are often few.
#pragma once

#include "kernels/cpu/qgemm/dot_avx512vnni.h"
// The vectors come first.
#include "kernels/cpu/qconv/quads_x86.h"

namespace onnxopt::qconv {
namespace {

/// Channels, of each four bytes of one column, and their sums.
struct Quads : InterleavedQuads {
  static Sums add(Sums sums, __m256i x, const std::int8_t* weights) {
    // For the reason that Dot::add gives.
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(x), "vm"(*reinterpret_cast<const __m256i*>(weights)));
    return sums;
  }
  /// The sums of all channels, in their order.
  static void floats(const Sums (&sums)[kVectors], __m512 (&to)[kChannels / 16]) {
    const __m512i first = _mm512_inserti64x4(_mm512_castsi256_si512(sums[0]), sums[1], 1);
    const __m512i second = _mm512_inserti64x4(_mm512_castsi256_si512(sums[2]), sums[3], 1);
    to[0] = _mm512_cvtepi32_ps(_mm512_shuffle_i64x2(first, second, _MM_SHUFFLE(2, 0, 2, 0)));
    to[1] = _mm512_cvtepi32_ps(_mm512_shuffle_i64x2(first, second, _MM_SHUFFLE(3, 1, 3, 1)));
  }
};

}  // namespace
}  // namespace onnxopt::qconv
