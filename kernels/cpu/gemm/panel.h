// How weights lie in memory, for every instruction set.
#pragma once

#include <cstddef>

namespace onnxopt::gemm {

/// Columns of a panel. A packed matrix of K rows and N columns is [ceil(N / 16), K, 16], the missing columns being zero.
constexpr std::size_t kPanel = 16;

/// What results are clipped to; NaN passes.
struct Bounds {
  float low, high;
};

/// scale x clip(alpha x + beta, 0, 1) + shift: hard-swish, and what follows it in mobile networks.
struct Gate {
  float alpha, beta, scale, shift;
};

}  // namespace onnxopt::gemm
