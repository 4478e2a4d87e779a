#include <cmath>

#include "rows.h"

void row_portable(const Row& row) {
  float squares = 0.0f;
  for (std::size_t i = 0; i < row.width; ++i) {
    const float gate = row.gate ? row.gate[i] / (1.0f + std::exp(-row.gate[i])) : 1.0f;
    row.y[i] = row.x[i] * gate;
    squares += row.y[i] * row.y[i];
  }
  const float factor = 1.0f / std::sqrt(squares / static_cast<float>(row.width) + row.epsilon);
  for (std::size_t i = 0; i < row.width; ++i) row.y[i] *= row.scale ? factor * row.scale[i] : factor;
}
