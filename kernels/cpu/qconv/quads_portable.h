// Four rows of a depthwise window at once, for any architecture.
#pragma once

#include "kernels/cpu/qgemm/dot_portable.h"

namespace onnxopt::qconv {
namespace {

/// Channels, of each four bytes of one column, and their sums.
struct Quads {
  static constexpr int kChannels = 16, kVectors = 4;
  using Sums = std::int32_t __attribute__((vector_size(16)));
  /// Of each row, the channels.
  struct Bytes {
    Sums row[4];
  };
  struct Column {
    Bytes of[kVectors];
  };

  static Sums start(const std::int32_t* weight_sums, std::int32_t zero, int vector) {
    Sums sums;
    std::memcpy(&sums, weight_sums + 4 * vector, sizeof sums);
    return -zero * sums;
  }
  static Column load(const std::uint8_t* const (&rows)[4]) {
    Column column;
    for (int v = 0; v < kVectors; ++v)
      for (int r = 0; r < 4; ++r) {
        const std::uint8_t* const p = rows[r] + 4 * v;
        column.of[v].row[r] = Sums{p[0], p[1], p[2], p[3]};
      }
    return column;
  }
  /// Weights [kChannels, 4], in the order of a column.
  static void arrange(const std::int8_t* weights, std::int8_t* to) { std::memcpy(to, weights, 4 * kChannels); }
  static Sums add(Sums sums, const Bytes& x, const std::int8_t* weights) {
    for (int r = 0; r < 4; ++r) sums += x.row[r] * Sums{weights[r], weights[4 + r], weights[8 + r], weights[12 + r]};
    return sums;
  }
  static constexpr int kWeightBytes = 16;  // of a vector
  /// The sums of all channels, in their order.
  static void floats(const Sums (&sums)[kVectors], simd::V::F (&to)[kChannels / 4]) {
    for (int v = 0; v < kVectors; ++v) to[v] = __builtin_convertvector(sums[v], simd::V::F);
  }
};

}  // namespace
}  // namespace onnxopt::qconv
