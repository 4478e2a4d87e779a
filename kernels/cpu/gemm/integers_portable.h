// Rows of a panel of integers as floats, for any architecture.
#pragma once

#include "kernels/cpu/simd/portable.h"

namespace onnxopt::gemm {
namespace {

/// Rows that are multiplied together while weights stream by.
constexpr int kStreamedRows = 1;
/// Accumulators that fit into the registers twice: the sums of a block of weights, and those of all.
constexpr int kMostSums = 4;

struct Int8 {
  static constexpr std::ptrdiff_t kRowBytes = 16;
  static void load(const std::uint8_t* row, simd::V::F* to) {
    for (int i = 0; i < 4; ++i, row += 4) to[i] = simd::V::F{number(row[0]), number(row[1]), number(row[2]), number(row[3])};
  }
  static void put_in_order(simd::V::F*) {}

 private:
  static float number(std::uint8_t byte) { return static_cast<float>(static_cast<std::int8_t>(byte)); }
};

struct Int4 {
  static constexpr std::ptrdiff_t kRowBytes = 8;
  static void load(const std::uint8_t* row, simd::V::F* to) {
    for (int i = 0; i < 4; ++i, row += 2)
      to[i] = simd::V::F{number(row[0]), number(row[0] >> 4), number(row[1]), number(row[1] >> 4)};
  }
  static void put_in_order(simd::V::F*) {}

 private:
  static float number(int bits) { return static_cast<float>(((bits & 15) ^ 8) - 8); }
};

}  // namespace
}  // namespace onnxopt::gemm
