// Rows of floats become rows of bytes. Included after the sums of an instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/cpu/qgemm/micro.h"

namespace onnxopt::qgemm {
namespace {

/// A scale and the zero point, of bytes that begin at `lowest`: 0 or -128.
struct Quantization {
  float scale;
  std::int32_t zero;
  std::int32_t lowest = 0;
};

/// The range of a row with 0 in it, cut into 255 steps. A row with what is not finite gets the scale NaN, and so its results.
inline Quantization quantization_of(const float* x, std::int64_t count) {
  constexpr auto kWidth = static_cast<std::int64_t>(V::kWidth);
  constexpr int kChains = 4;  // vectors that do not wait for each other
  const F nothing = V::set1(0.0f);
  F low[kChains], high[kChains], doubt[kChains];
  for (int c = 0; c < kChains; ++c) low[c] = high[c] = doubt[c] = nothing;
  const auto look = [&](F one, int c) {
    low[c] = V::min(low[c], one);
    high[c] = V::max(high[c], one);
    doubt[c] = V::add(doubt[c], V::mul(one, nothing));
  };
  std::int64_t i = 0;
  for (; i + kChains * kWidth <= count; i += kChains * kWidth)
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) look(V::load(x + i + c * kWidth), c);
  for (; i + kWidth <= count; i += kWidth) look(V::load(x + i), 0);
  if (i < count) look(V::load_first(x + i, static_cast<std::size_t>(count - i), nothing), 0);
  for (int c = 1; c < kChains; ++c) {
    low[0] = V::min(low[0], low[c]);
    high[0] = V::max(high[0], high[c]);
    doubt[0] = V::add(doubt[0], doubt[c]);
  }
  const float least = -V::largest(V::negate(low[0])), most = V::largest(high[0]);
  if (V::sum(doubt[0]) != 0.0f) return {std::numeric_limits<float>::quiet_NaN(), 0};
  // The range of large numbers may not be one itself.
  const float scale = most / 255.0f - least / 255.0f;
  if (scale < std::numeric_limits<float>::min()) return {0.0f, 0};
  return {scale, static_cast<std::int32_t>(std::nearbyint(-least / scale))};
}

/// Writes `count` bytes.
inline void quantize_exactly(const float* x, std::int64_t count, const Quantization& with, std::uint8_t* to) {
  constexpr auto kWidth = static_cast<std::int64_t>(V::kWidth);
  const F inverse = V::set1(with.scale > 0.0f ? 1.0f / with.scale : 0.0f);
  const F low = V::set1(static_cast<float>(with.lowest - with.zero));
  const F high = V::set1(static_cast<float>(with.lowest + 255 - with.zero));
  std::int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth)
    Dot::store_bytes(to + i, V::min(high, V::max(low, V::mul(V::load(x + i), inverse))), with.zero);
  if (i == count) return;
  std::uint8_t bytes[V::kWidth];
  const F last = V::load_first(x + i, static_cast<std::size_t>(count - i), V::set1(0.0f));
  Dot::store_bytes(bytes, V::min(high, V::max(low, V::mul(last, inverse))), with.zero);
  std::memcpy(to + i, bytes, static_cast<std::size_t>(count - i));
}

/// Writes `count` bytes, and zeros up to a multiple of `kGroup`.
inline void quantize_floats(const float* x, std::int64_t count, const Quantization& with, std::uint8_t* to) {
  quantize_exactly(x, count, with, to);
  for (std::int64_t i = count; i % static_cast<std::int64_t>(kGroup) != 0; ++i) to[i] = 0;
}

}  // namespace
}  // namespace onnxopt::qgemm
