// Rows of a panel of integers as floats, with AVX2.
#pragma once

#include "kernels/cpu/simd/avx2.h"

namespace onnxopt::gemm {
namespace {

/// Rows that are multiplied together while weights stream by.
constexpr int kStreamedRows = 2;
/// Accumulators that fit into the registers twice: the sums of a block of weights, and those of all.
constexpr int kMostSums = 4;

struct Int8 {
  static constexpr std::ptrdiff_t kRowBytes = 16;
  static void load(const std::uint8_t* row, __m256* to) {
    for (int half = 0; half < 2; ++half) {
      const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + 8 * half));
      to[half] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight));
    }
  }
  static void put_in_order(__m256*) {}
};

struct Int4 {
  static constexpr std::ptrdiff_t kRowBytes = 8;
  static void load(const std::uint8_t* row, __m256* to) {
    const __m256i shifts = _mm256_setr_epi32(28, 24, 20, 16, 12, 8, 4, 0);
    for (int half = 0; half < 2; ++half) {
      std::int32_t eight;
      __builtin_memcpy(&eight, row + 4 * half, sizeof(eight));
      const __m256i highest = _mm256_sllv_epi32(_mm256_set1_epi32(eight), shifts);
      to[half] = _mm256_cvtepi32_ps(_mm256_srai_epi32(highest, 28));
    }
  }
  static void put_in_order(__m256*) {}
};

}  // namespace
}  // namespace onnxopt::gemm
