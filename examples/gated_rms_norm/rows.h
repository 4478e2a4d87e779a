// What the files of this library share: the computation of one row, once for each instruction set.
#pragma once

#include <cstddef>

/// y = g / sqrt(mean(g^2) + epsilon) * scale, where g = x * silu(gate). Without a gate, g is x; without a scale, it is 1.
struct Row {
  const float *x, *gate, *scale;
  float* y;
  std::size_t width;
  float epsilon;
};

using RowFunction = void (*)(const Row&);

void row_portable(const Row& row);
void row_avx2(const Row& row);
