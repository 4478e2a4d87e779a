// The innermost block: a few rows of C by one or two panels of 16 columns, whose sums stay in registers over the whole depth.
//
// Included after the sums of an instruction set. The form is that of gemm/micro.h; rows of A are bytes, four of which are
// multiplied at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/qgemm/panel.h"
#include "kernels/cpu/simd/functions.h"

namespace onnxopt::qgemm {
namespace {

using simd::V;
using F = V::F;

constexpr int kVectorsOfPanel = static_cast<int>(kPanel / V::kWidth);
constexpr std::size_t kColumns = Dot::kPanels * kPanel;
/// Bytes of one vector's columns, of a panel's, and how far ahead the weights are fetched.
constexpr std::ptrdiff_t kVectorBytes = V::kWidth * kGroup, kPanelBytes = kPanel * kGroup, kAhead = 12 * kPanelBytes;

/// Rows of A at a constant distance. Three rows share a pointer: x86 addresses reach base, base + ld and base + 2 ld.
struct Strided {
  const std::uint8_t* base;
  std::ptrdiff_t ld;

  template <int R>
  struct Rows {
    const std::uint8_t* at[(R + 2) / 3];
    std::ptrdiff_t ld;
    Dot::A operator()(int r) const { return Dot::broadcast(at[r / 3] + r % 3 * ld); }
    void advance() {
      for (const std::uint8_t*& one : at) one += kGroup;
    }
  };

  template <int R>
  Rows<R> rows(std::size_t) const {
    Rows<R> rows{{}, ld};
    for (int i = 0; i < (R + 2) / 3; ++i) rows.at[i] = base + 3 * i * ld;
    return rows;
  }
};

/// Rows of A whose addresses are given, for each tap in turn.
struct Indirect {
  const std::uint8_t* const* pointers;
  std::size_t stride;  // pointers from one tap to the next

  /// Addresses that registers hold. Compilers would keep the others in registers of vectors, from which they come back more slowly
  /// than from the first-level cache.
  static constexpr int kHeld = 7;

  template <int R>
  struct Rows {
    const std::uint8_t* held[R < kHeld ? R : kHeld];
    const std::uint8_t* const volatile* others;
    std::ptrdiff_t k;
    Dot::A operator()(int r) const { return Dot::broadcast((r < kHeld ? held[r] : others[r]) + k); }
    void advance() { k += kGroup; }
  };

  template <int R>
  Rows<R> rows(std::size_t tap) const {
    Rows<R> rows{{}, pointers + tap * stride, 0};
    for (int r = 0; r < R && r < kHeld; ++r) rows.held[r] = pointers[tap * stride + static_cast<std::size_t>(r)];
    return rows;
  }
};

/// Rows of B: group g of four rows is at `data + g * kPanelBytes`, the next panel's `panel` bytes after it. Whole panels are read.
struct Columns {
  const std::int8_t* data;
  std::ptrdiff_t panel;

  /// Asks for a part of the columns behind these, one of as many as there are `blocks` of rows that read these: the first block
  /// that reads them would have to wait for all. They go to the second-level cache, since the first one is full of these.
  void fetch_next(std::int64_t block, std::int64_t blocks) const {
    constexpr std::int64_t kLine = 64;
    const std::int64_t all = static_cast<std::int64_t>(kColumns / kPanel) * panel;
    const std::int8_t* const next = data + all;
    for (std::int64_t at = all * block / blocks / kLine * kLine; at < all * (block + 1) / blocks; at += kLine)
      __builtin_prefetch(next + at, 0, 2);
  }
};

/// Where a block lies in C, and what its sums become. Pointers are to the block's first row and column.
struct Target {
  float* c;
  std::ptrdiff_t ld;
  std::size_t columns;           // the last ones of a panel may be missing
  const float* row_scales;       // of A
  const std::int32_t* zeros;     // of A
  const float* column_scales;    // of B
  const std::int32_t* sums;      // of B's columns
  const float* bias = nullptr;   // of the columns
  const float* added = nullptr;  // rows `added_ld` apart
  std::ptrdiff_t added_ld = 0;
  const gemm::Bounds* clip = nullptr;
  bool gelu = false;
};

/// Asks for the results' memory: where it comes from another core's cache or from memory, the stores would wait for it.
template <int R, int N>
inline void start_block(Dot::Sums (&sums)[R][N], const Target& t) {
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) sums[r][v] = Dot::zero();
#pragma GCC unroll 4
    for (int v = 0; v < N; v += kVectorsOfPanel) __builtin_prefetch(t.c + r * t.ld + v * static_cast<int>(V::kWidth), 1);
  }
}

/// Rows of a function that takes several instructions, which wait for each other: a few rows at a time give the processor others.
template <int R>
inline void gelu_of_rows(F (&y)[R]) {
  constexpr int kTogether = 4;
#pragma GCC unroll 4
  for (int r = 0; r + kTogether <= R; r += kTogether) {
    simd::Pack<kTogether> some;
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i) some.v[i] = y[r + i];
    some = simd::coarse_gelu(some);
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i) y[r + i] = some.v[i];
  }
#pragma GCC unroll 4
  for (int r = R / kTogether * kTogether; r < R; ++r) y[r] = simd::coarse_gelu(simd::Pack<1>{y[r]}).v[0];
}

template <int R, int N>
inline void finish_block(const Dot::Sums (&sums)[R][N], const Target& t) {
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) {
    const std::size_t column = static_cast<std::size_t>(v) * V::kWidth;
    const std::size_t count = v + 1 < N ? V::kWidth : t.columns - column;
    const Dot::Numbers of_columns = Dot::load_numbers(t.sums + column, count);
    const F scales = V::load_first(t.column_scales + column, count);
    const F bias = t.bias ? V::load_first(t.bias + column, count) : V::set1(0.0f);
    F y[R];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
      y[r] = V::add(V::mul(Dot::shifted(sums[r][v], t.zeros[r], of_columns), V::mul(V::set1(t.row_scales[r]), scales)), bias);
    if (t.added)
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) y[r] = V::add(y[r], V::load_first(t.added + r * t.added_ld + column, count));
    if (t.clip) {
      const F low = V::set1(t.clip->low), high = V::set1(t.clip->high);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) y[r] = V::min(high, V::max(low, y[r]));
    }
    if (t.gelu) gelu_of_rows(y);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) V::store_first(t.c + r * t.ld + column, y[r], count);
  }
}

/// `start_block` and `finish_block` for this kind of target say where sums begin, and take them.
template <int R, int N, class Source, class Target>
inline void run_block(Source source, std::size_t taps, std::size_t groups, Columns b, const Target& target) {
  Dot::Sums sums[R][N];
  start_block<R, N>(sums, target);
  const std::int8_t* row = b.data;
  for (std::size_t tap = 0; tap < taps; ++tap) {
    auto a = source.template rows<R>(tap);
    for (std::size_t group = 0; group < groups; ++group) {
#pragma GCC unroll 4
      for (int v = 0; v < N; v += kVectorsOfPanel) __builtin_prefetch(row + kAhead + v / kVectorsOfPanel * b.panel);
      Dot::B columns[N];
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) columns[v] = Dot::load(row + v / kVectorsOfPanel * b.panel + v % kVectorsOfPanel * kVectorBytes);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const Dot::A four = a(r);
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) sums[r][v] = Dot::add(sums[r][v], four, columns[v]);
      }
      row += kPanelBytes;
      a.advance();
    }
  }
  finish_block<R, N>(sums, target);
}

template <int R, class Source, class Target>
inline void choose_width(Source source, std::size_t taps, std::size_t groups, Columns b, const Target& target) {
  constexpr int kMost = Dot::kPanels * kVectorsOfPanel;
  const int vectors = static_cast<int>((target.columns + V::kWidth - 1) / V::kWidth);
  if (vectors == kMost) return run_block<R, kMost>(source, taps, groups, b, target);
  if constexpr (kMost > 3)
    if (vectors == 3) return run_block<R, 3>(source, taps, groups, b, target);
  if constexpr (kMost > 2)
    if (vectors == 2) return run_block<R, 2>(source, taps, groups, b, target);
  run_block<R, 1>(source, taps, groups, b, target);
}

/// Computes `rows` (1 to Dot::kRows) rows of C by up to kColumns columns.
template <class Source, class Target, int R = Dot::kRows>
inline void multiply(int rows, Source source, std::size_t taps, std::size_t groups, Columns b, const Target& target) {
  if constexpr (R > 1)
    if (rows < R) return multiply<Source, Target, R - 1>(rows, source, taps, groups, b, target);
  choose_width<R>(source, taps, groups, b, target);
}

}  // namespace
}  // namespace onnxopt::qgemm
