// Rows of a panel of integers as floats, with AVX-512.
#pragma once

#include "kernels/cpu/simd/avx512.h"

namespace onnxopt::gemm {
namespace {

/// Rows that are multiplied together while weights stream by.
constexpr int kStreamedRows = 4;
/// Accumulators that fit into the registers twice: the sums of a block of weights, and those of all.
constexpr int kMostSums = 8;

struct Int8 {
  static constexpr std::ptrdiff_t kRowBytes = 16;
  static void load(const std::uint8_t* row, __m512* to) {
    *to = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row))));
  }
  static void put_in_order(__m512*) {}
};

/// A lane holds its number where a table of all sixteen looks it up; even lanes have columns 0 to 7, odd ones 8 to 15.
struct Int4 {
  static constexpr std::ptrdiff_t kRowBytes = 8;
  static void load(const std::uint8_t* row, __m512* to) {
    std::int64_t all;
    __builtin_memcpy(&all, row, sizeof(all));
    const __m512i shifts = _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
    const __m512 numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    *to = _mm512_permutexvar_ps(_mm512_srlv_epi32(_mm512_set1_epi64(all), shifts), numbers);
  }
  static void put_in_order(__m512* row) {
    *row = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15), *row);
  }
};

}  // namespace
}  // namespace onnxopt::gemm
