// Eight elements at a time. Compiled with -mavx2 -mfma, so it includes nothing whose inline functions other files might get.
#include <immintrin.h>

#include <initializer_list>

#include "rows.h"

namespace {

constexpr std::size_t kLanes = 8;

/// e^x: 2 to the whole part of x / ln 2 by the exponent's bits, times a polynomial of degree 6 of the rest.
__m256 exp_of(__m256 x) {
  x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-87.0f)), _mm256_set1_ps(88.0f));
  const __m256 whole =
      _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 rest = _mm256_fnmadd_ps(whole, _mm256_set1_ps(0.693359375f), x);
  rest = _mm256_fnmadd_ps(whole, _mm256_set1_ps(-2.12194440e-4f), rest);
  __m256 sum = _mm256_set1_ps(1.0f / 720);
  for (const float coefficient : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(coefficient));
  const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(sum, _mm256_castsi256_ps(exponent));
}

__m256 silu(__m256 x) {
  const __m256 one = _mm256_set1_ps(1.0f);
  return _mm256_div_ps(x, _mm256_add_ps(one, exp_of(_mm256_sub_ps(_mm256_setzero_ps(), x))));
}

/// The lanes of the last elements of a row; all of the others are moved without a mask, which costs.
__m256i lanes_of(std::size_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

__m256 load(const float* from, std::size_t count) {
  return count >= kLanes ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, lanes_of(count));
}

void store(float* to, std::size_t count, __m256 x) {
  if (count >= kLanes)
    _mm256_storeu_ps(to, x);
  else
    _mm256_maskstore_ps(to, lanes_of(count), x);
}

float sum_of(__m256 x) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

}  // namespace

void row_avx2(const Row& row) {
  __m256 squares = _mm256_setzero_ps();
  for (std::size_t i = 0; i < row.width; i += kLanes) {
    __m256 g = load(row.x + i, row.width - i);
    if (row.gate) g = _mm256_mul_ps(g, silu(load(row.gate + i, row.width - i)));
    squares = _mm256_fmadd_ps(g, g, squares);
    store(row.y + i, row.width - i, g);
  }
  const float mean = sum_of(squares) / static_cast<float>(row.width) + row.epsilon;
  const __m256 factor = _mm256_set1_ps(1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean))));
  for (std::size_t i = 0; i < row.width; i += kLanes) {
    const __m256 scaled = row.scale ? _mm256_mul_ps(factor, load(row.scale + i, row.width - i)) : factor;
    store(row.y + i, row.width - i, _mm256_mul_ps(load(row.y + i, row.width - i), scaled));
  }
}
