// The innermost block of a matrix product: a few rows of C by one or two panels of 16 columns, kept in registers.
//
//     C[r][j] = start[r][j] + sum over taps t and k of A[t][r][k] * B[t K + k][j]
//
// One tap is a plain product. A convolution without a copy of its windows has one tap for each place of its kernel, whose rows are
// found by pointers (M. Dukhan, "The Indirect Convolution Algorithm"). The blocking follows K. Goto and R. van de Geijn, "Anatomy
// of High-Performance Matrix Multiplication".
//
// Included after the vectors of an instruction set. Sums run over t and k in order, so results do not depend on how a product is
// cut into blocks of rows and columns.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/gemm/gate.h"

namespace onnxopt::gemm {
namespace {

using simd::V;
using F = V::F;

constexpr int kVectorsOfPanel = static_cast<int>(kPanel / V::kWidth);
/// Rows and panels of a block: as many accumulators as registers allow next to the operands.
constexpr int kRows = V::kMatrixRows;
constexpr int kPanels = V::kMatrixPanels;
constexpr std::size_t kColumns = kPanels * kPanel;
/// Panels that few rows are multiplied with together: enough sums that none waits for the one before, so that weights stream as
/// fast as they are read. `kFewRows` rows of them need no more registers than a block.
constexpr int kWidePanels = 4, kWideVectors = kWidePanels * kVectorsOfPanel, kBlockSums = kRows * kPanels * kVectorsOfPanel;
constexpr int kFewRows = kBlockSums / kWideVectors < 2 ? kBlockSums / kWideVectors : 2;
constexpr std::size_t kWideColumns = kWidePanels * kPanel;
/// Floats of a cache line.
constexpr int kLineFloats = 16;
/// How far ahead B is fetched, in floats: far enough for what is not in a cache yet, where a new page stops the processor's own
/// prefetching.
constexpr std::ptrdiff_t kAhead = 24 * kPanel;

/// Keeps a pointer in a register of its own: the compiler would make a vector of several, in memory, and add to it there.
inline void keep(const char*& pointer) { asm("" : "+r"(pointer)); }

/// Rows of A at a constant distance. Three rows share a pointer: x86 addresses reach base, base + ld and base + 2 ld.
struct Strided {
  const float* base;
  std::ptrdiff_t ld;

  template <int R>
  struct Rows {
    const char* at[(R + 2) / 3];
    std::ptrdiff_t ld;
    F operator()(int r) const { return V::set1(*reinterpret_cast<const float*>(at[r / 3] + r % 3 * ld)); }
    void advance() {
#pragma GCC unroll 8
      for (const char*& one : at) {
        one += sizeof(float);
        keep(one);
      }
    }
  };

  template <int R>
  Rows<R> rows(std::size_t) const {
    const std::ptrdiff_t bytes = ld * static_cast<std::ptrdiff_t>(sizeof(float));
    Rows<R> rows{{}, bytes};
#pragma GCC unroll 8
    for (int i = 0; i < (R + 2) / 3; ++i) rows.at[i] = reinterpret_cast<const char*>(base) + 3 * i * bytes;
    return rows;
  }
};

/// Rows of A anywhere: `pointers[t * stride + r]` is row r of tap t.
struct Indirect {
  const float* const* pointers;
  std::size_t stride;

  template <int R>
  struct Rows {
    const float* at[R];
    std::ptrdiff_t k;
    F operator()(int r) const { return V::set1(at[r][k]); }
    void advance() { ++k; }
  };

  template <int R>
  Rows<R> rows(std::size_t tap) const {
    Rows<R> rows{{}, 0};
    for (int r = 0; r < R; ++r) rows.at[r] = pointers[tap * stride + static_cast<std::size_t>(r)];
    return rows;
  }
};

/// Rows of B: element (k, j) is `data[k * step + j / 16 * panel + j % 16]`. Whole panels are read.
struct Columns {
  const float* data;
  std::ptrdiff_t step, panel;
};

/// Where the block lies in C, and what is done to it besides.
struct Target {
  float* c;
  std::ptrdiff_t ld;
  std::size_t columns;           // the last ones of a panel may be missing
  const float* bias = nullptr;   // of the columns; the sums start there
  bool accumulate = false;       // the sums start with what C holds
  const Bounds* clip = nullptr;  // applied to the result
  const Gate* gate = nullptr;    // applied to the result
  const float* added = nullptr;  // added to the sums before they are clipped; rows `added_ld` apart
  std::ptrdiff_t added_ld = 0;
};

/// With `Half`, only half of the last vector's columns are there.
template <int R, int N, bool Half, class Source>
[[gnu::noinline]] void run_block(Source source, std::size_t taps, std::size_t depth, Columns b, const Target& target) {
  F sums[R][N];
  const std::size_t last = target.columns - (N - 1) * V::kWidth;  // columns of the last vector
  const auto read = [&](const float* from, int v) {
    const float* const at = from + v * static_cast<int>(V::kWidth);
    return v + 1 < N ? V::load(at) : V::load_first(at, last);
  };
  if (target.accumulate) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) sums[r][v] = read(target.c + r * target.ld, v);
  } else {
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) {
      const F start = target.bias ? read(target.bias, v) : V::set1(0.0f);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sums[r][v] = start;
    }
  }
  const auto each_line = [](const float* from, std::ptrdiff_t ld, auto fetch) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int column = 0; column < N * static_cast<int>(V::kWidth); column += kLineFloats) fetch(from + r * ld + column);
  };
  each_line(target.c, target.ld, [](const float* line) { __builtin_prefetch(line, 1); });
  if (target.added) each_line(target.added, target.added_ld, [](const float* line) { __builtin_prefetch(line); });
  const float* row = b.data;
  for (std::size_t tap = 0; tap < taps; ++tap) {
    auto a = source.template rows<R>(tap);
    for (std::size_t k = 0; k < depth; ++k) {
      F columns[N];
#pragma GCC unroll 8
      for (int v = 0; v < N; v += kVectorsOfPanel) __builtin_prefetch(row + kAhead + v / kVectorsOfPanel * b.panel);
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v)
        columns[v] = V::load(row + v / kVectorsOfPanel * b.panel + v % kVectorsOfPanel * static_cast<int>(V::kWidth));
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const F x = a(r);
#pragma GCC unroll 8
        for (int v = 0; v < N; ++v)
          sums[r][v] =
              Half && v + 1 == N ? V::accumulate_half(x, columns[v], sums[r][v]) : V::accumulate(x, columns[v], sums[r][v]);
      }
      row += b.step;
      a.advance();
    }
  }
  if (target.added) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) sums[r][v] = V::add(sums[r][v], read(target.added + r * target.added_ld, v));
  }
  if (target.clip) {
    const F low = V::set1(target.clip->low), high = V::set1(target.clip->high);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) sums[r][v] = V::min(high, V::max(low, sums[r][v]));
  }
  if (target.gate) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) sums[r][v] = gated(*target.gate, sums[r][v]);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) {
      float* const c = target.c + r * target.ld + v * static_cast<int>(V::kWidth);
      if (v + 1 < N)
        V::store(c, sums[r][v]);
      else
        V::store_first(c, sums[r][v], last);
    }
}

template <int R, class Source>
inline void choose_width(Source source, std::size_t taps, std::size_t depth, Columns b, const Target& target) {
  constexpr int kMost = kPanels * kVectorsOfPanel;
  const int vectors = static_cast<int>((target.columns + V::kWidth - 1) / V::kWidth);
  if constexpr (V::kHalves && R > 2)
    if (target.columns <= static_cast<std::size_t>(vectors) * V::kWidth - V::kWidth / 2)
      return vectors == kMost ? run_block<R, kMost, true>(source, taps, depth, b, target)
                              : run_block<R, 1, true>(source, taps, depth, b, target);
  if (vectors == kMost) return run_block<R, kMost, false>(source, taps, depth, b, target);
  if constexpr (kMost > 3)
    if (vectors == 3) return run_block<R, 3, false>(source, taps, depth, b, target);
  if constexpr (kMost > 2)
    if (vectors == 2) return run_block<R, 2, false>(source, taps, depth, b, target);
  run_block<R, 1, false>(source, taps, depth, b, target);
}

/// Computes `rows` (1 to kRows) rows of C by up to kColumns columns.
template <class Source, int R = kRows>
inline void multiply(int rows, Source source, std::size_t taps, std::size_t depth, Columns b, const Target& target) {
  if constexpr (R > 1)
    if (rows < R) return multiply<Source, R - 1>(rows, source, taps, depth, b, target);
  choose_width<R>(source, taps, depth, b, target);
}

/// Computes `rows` (1 to kFewRows) rows of C by kWideColumns columns.
template <class Source, int R = kFewRows>
inline void multiply_few(int rows, Source source, std::size_t taps, std::size_t depth, Columns b, const Target& target) {
  if constexpr (R > 1)
    if (rows < R) return multiply_few<Source, R - 1>(rows, source, taps, depth, b, target);
  if constexpr (R > 0) run_block<R, kWideVectors, false>(source, taps, depth, b, target);
}

}  // namespace
}  // namespace onnxopt::gemm
