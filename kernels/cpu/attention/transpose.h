// The transpose of a square of vectors, in the compiler's own notation, which it maps to each instruction set's shuffles.
#pragma once

#include <cstddef>
#include <utility>

#include "kernels/cpu/simd/pack.h"

namespace onnxopt::attention {
namespace {

/// The elements of the low halves of a and b in turn, or of the high halves.
template <std::size_t First, std::size_t... I>
inline simd::V::F interleave(simd::V::F a, simd::V::F b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, static_cast<int>(First + I / 2 + I % 2 * simd::W)...);
}

/// Row i becomes column i: a perfect shuffle for each bit of an index.
inline void transpose(simd::V::F (&rows)[simd::W]) {
  constexpr std::size_t W = simd::W;
  using Every = std::make_index_sequence<W>;
#pragma GCC unroll 4
  for (std::size_t bit = 1; bit < W; bit *= 2) {
    simd::V::F next[W];
#pragma GCC unroll 8
    for (std::size_t i = 0; i < W / 2; ++i) {
      next[2 * i] = interleave<0>(rows[i], rows[i + W / 2], Every{});
      next[2 * i + 1] = interleave<W / 2>(rows[i], rows[i + W / 2], Every{});
    }
#pragma GCC unroll 16
    for (std::size_t i = 0; i < W; ++i) rows[i] = next[i];
  }
}

}  // namespace
}  // namespace onnxopt::attention
