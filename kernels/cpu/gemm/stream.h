// Products of few rows with weights of integers: the weights stream from memory once, and become floats in registers.
//
//     C[r][j] = bias[j] + sum over blocks of scale[block][j] * sum over k in the block of A[r][k] * B[k][j]
//
// Included after the vectors and the integers of an instruction set.
#pragma once

#include "kernels/cpu/gemm/micro.h"

namespace onnxopt::gemm {
namespace {

/// How far ahead weights are fetched, in bytes of each panel, and a line of the cache.
constexpr std::ptrdiff_t kStreamedAhead = 2048, kLineBytes = 64;

/// A panel of integers and its scales, and the distance to the next one of both.
struct Integers {
  const std::uint8_t* rows;
  std::ptrdiff_t panel;
  const float* scales;
  std::ptrdiff_t scales_of_panel;
  std::int64_t block;  // rows that share scales
};

/// Adds the products of `count` rows of the panels to the sums.
template <class Kind, int R, int P>
inline void add_rows(F (&sums)[R][P * kVectorsOfPanel], const Strided& a, std::int64_t k, std::int64_t count, const Integers& b) {
  const auto add_row = [&](const std::uint8_t* row, std::int64_t at) {
    F weights[P * kVectorsOfPanel];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) Kind::load(row + p * b.panel, weights + p * kVectorsOfPanel);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const F x = V::set1(a.base[r * a.ld + at]);
#pragma GCC unroll 16
      for (int v = 0; v < P * kVectorsOfPanel; ++v) sums[r][v] = V::accumulate(x, weights[v], sums[r][v]);
    }
  };
  constexpr std::int64_t kTogether = kLineBytes / Kind::kRowBytes;
  const std::uint8_t* row = b.rows + k * Kind::kRowBytes;
  const std::int64_t end = k + count;
  for (; k + kTogether <= end; k += kTogether, row += kLineBytes) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) __builtin_prefetch(row + p * b.panel + kStreamedAhead);
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < kTogether; ++i) add_row(row + i * Kind::kRowBytes, k + i);
  }
  for (; k < end; ++k, row += Kind::kRowBytes) add_row(row, k);
}

/// Stores R rows of C: the sums, the summand of the target added, clipped.
template <int R, int N>
inline void finish_rows(const F (&sums)[R][N], const Target& target) {
  for (int v = 0; v < N; ++v) {
    const auto column = static_cast<std::size_t>(v) * V::kWidth;
    if (column >= target.columns) return;
    const std::size_t count = target.columns - column < V::kWidth ? target.columns - column : V::kWidth;
    for (int r = 0; r < R; ++r) {
      F y = sums[r][v];
      if (target.added) y = V::add(y, V::load_first(target.added + r * target.added_ld + column, count));
      if (target.clip) y = V::min(V::set1(target.clip->high), V::max(V::set1(target.clip->low), y));
      V::store_first(target.c + r * target.ld + column, y, count);
    }
  }
}

/// R rows of C by P panels.
template <class Kind, int R, int P>
[[gnu::noinline]] void stream_panels(Strided a, std::int64_t depth, const Integers& b, const Target& target) {
  constexpr int kVectors = P * kVectorsOfPanel;
  F sums[R][kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const auto column = static_cast<std::size_t>(v) * V::kWidth;
    F start = V::set1(0.0f);
    if (target.bias && column < target.columns) {
      const std::size_t left = target.columns - column;
      start = V::load_first(target.bias + column, left < V::kWidth ? left : V::kWidth);
    }
    for (int r = 0; r < R; ++r) sums[r][v] = start;
  }
  const float* scales = b.scales;
  for (std::int64_t k = 0; k < depth; k += b.block, scales += kPanel) {
    F parts[R][kVectors];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) parts[r][v] = V::set1(0.0f);
    add_rows<Kind, R, P>(parts, a, k, depth - k < b.block ? depth - k : b.block, b);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        Kind::put_in_order(parts[r] + p * kVectorsOfPanel);
#pragma GCC unroll 4
        for (int i = 0; i < kVectorsOfPanel; ++i) {
          const int v = p * kVectorsOfPanel + i;
          const F scale = V::load(scales + p * b.scales_of_panel + i * static_cast<int>(V::kWidth));
          sums[r][v] = V::accumulate(parts[r][v], scale, sums[r][v]);
        }
      }
  }
  finish_rows(sums, target);
}

/// R rows of C by all panels of the target, P at a time as long as there are so many.
template <class Kind, int R, int P>
inline void walk_panels(Strided a, std::int64_t depth, Integers b, Target target) {
  constexpr std::size_t kStep = P * kPanel;
  while (target.columns > kStep - kPanel) {
    Target part = target;
    part.columns = target.columns < kStep ? target.columns : kStep;
    stream_panels<Kind, R, P>(a, depth, b, part);
    if (target.columns <= kStep) return;
    b.rows += P * b.panel;
    b.scales += P * b.scales_of_panel;
    target.columns -= kStep;
    target.c += kStep;
    if (target.bias) target.bias += kStep;
    if (target.added) target.added += kStep;
  }
  if constexpr (P > 1) walk_panels<Kind, R, P / 2>(a, depth, b, target);
}

/// `rows` (1 to kStreamedRows) rows of C by all panels of the target.
template <class Kind, int R = kStreamedRows>
inline void stream(int rows, Strided a, std::int64_t depth, const Integers& b, const Target& target) {
  if constexpr (R > 1)
    if (rows < R) return stream<Kind, R - 1>(rows, a, depth, b, target);
  constexpr int kFit = kMostSums / (R * kVectorsOfPanel);
  walk_panels<Kind, R, kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1>(a, depth, b, target);
}

/// `depth` rows of `panels` panels, from row `begin` on, as floats times their scales: panels of floats one right after the other.
template <class Kind>
void unpack(const Integers& b, std::int64_t begin, std::int64_t depth, int panels, float* to) {
  for (int p = 0; p < panels; ++p) {
    const std::uint8_t* row = b.rows + p * b.panel + begin * Kind::kRowBytes;
    const float* scales = b.scales + p * b.scales_of_panel + begin / b.block * static_cast<std::int64_t>(kPanel);
    // Rows that share scales; a block may have begun before the first one.
    std::int64_t left = depth, together = b.block - begin % b.block;
    for (; left > 0; left -= together, together = b.block, scales += kPanel) {
      if (together > left) together = left;
      F factors[kVectorsOfPanel];
      for (int i = 0; i < kVectorsOfPanel; ++i) factors[i] = V::load(scales + i * static_cast<int>(V::kWidth));
      for (std::int64_t k = 0; k < together; ++k, row += Kind::kRowBytes, to += kPanel) {
        F numbers[kVectorsOfPanel];
        Kind::load(row, numbers);
        Kind::put_in_order(numbers);
        for (int i = 0; i < kVectorsOfPanel; ++i) V::store(to + i * static_cast<int>(V::kWidth), V::mul(numbers[i], factors[i]));
      }
    }
  }
}

}  // namespace
}  // namespace onnxopt::gemm
