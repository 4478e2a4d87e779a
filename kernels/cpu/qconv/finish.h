// What the sums of a convolution become. Included after the sums of an instruction set.
#pragma once

#include "kernels/cpu/qconv/qconv.h"
#include "kernels/cpu/qgemm/micro.h"
#include "kernels/cpu/scratch.h"

namespace onnxopt::qconv {
namespace {

using qgemm::Dot;
using simd::V;
using F = V::F;

constexpr auto kWidth = static_cast<std::int64_t>(V::kWidth);

inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
inline std::int64_t most(std::int64_t a, std::int64_t b) { return a < b ? b : a; }

/// A vector of results, gated.
inline F gated(const gemm::Gate& gate, F x) {
  const F sloped = V::add(V::mul(x, V::set1(gate.alpha)), V::set1(gate.beta));
  const F open = V::min(V::set1(1.0f), V::max(V::set1(0.0f), sloped));
  return V::add(V::mul(V::set1(gate.scale), V::mul(x, open)), V::set1(gate.shift));
}

template <bool Whole>
inline F load_floats(const float* p, std::size_t count) {
  if constexpr (Whole) return V::load(p);
  return V::load_first(p, count);
}

/// Steps of a quantization, as vectors: bytes that are stored might be anything the compiler has read before.
struct Steps {
  F low, high, inverse, scale;

  explicit Steps(const Tensor& to) {
    const int first = to.type == Type::kInt8 ? -128 : 0;
    low = V::set1(static_cast<float>(first - to.zero));
    high = V::set1(static_cast<float>(first + 255 - to.zero));
    inverse = V::set1(1.0f / to.scale);
    scale = V::set1(to.scale);
  }
  /// Results in steps, within the range, before they are rounded and the zero point is added.
  F operator()(F x) const { return V::min(high, V::max(low, V::mul(x, inverse))); }
};

/// What the results of one tensor become, one row after the other.
class Finisher {
 public:
  explicit Finisher(const Convolution& c)
      : c_(c),
        scale_(V::set1(c.x.scale)),
        steps_(c.result),
        rounding_(c.rounded),
        added_scale_(V::set1(c.added.scale)),
        added_flip_(c.added.type == Type::kInt8 ? 0x80 : 0),
        added_zero_(V::set1(static_cast<float>(c.added.zero + added_flip_))) {
    if (c.clip) {
      low_ = V::set1(c.clip->low);
      high_ = V::set1(c.clip->high);
    }
  }

  /// Sums of filters from `column` on, of one row.
  void row(const float* sums, std::int64_t row, std::int64_t column, std::int64_t count, const Results& results) const {
    const std::int64_t at = row * c_.geometry.filters + column;
    float* const block = results.data
                             ? results.data + (row - results.row) * (results.column_end - results.column) + column - results.column
                             : nullptr;
    std::int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) vector<true>(sums + i, at + i, column + i, V::kWidth, block ? block + i : nullptr);
    if (i < count) vector<false>(sums + i, at + i, column + i, static_cast<std::size_t>(count - i), block ? block + i : nullptr);
  }

  /// Writes results to y.
  template <bool Whole>
  void put(std::int64_t at, F x, std::size_t count) const {
    if (c_.result.type == Type::kFloat) {
      float* const to = static_cast<float*>(c_.y) + at;
      return Whole ? V::store(to, x) : V::store_first(to, x, count);
    }
    auto* const to = static_cast<std::uint8_t*>(c_.y) + at;
    if constexpr (Whole) return Dot::store_bytes(to, steps_(x), c_.result.zero);
    std::uint8_t bytes[V::kWidth];
    Dot::store_bytes(bytes, steps_(x), c_.result.zero);
    for (std::size_t i = 0; i < count; ++i) to[i] = bytes[i];
  }

 private:
  template <bool Whole>
  void vector(const float* sums, std::int64_t at, std::int64_t column, std::size_t count, float* block) const {
    F y = V::mul(V::load(sums), V::mul(scale_, load_floats<Whole>(c_.weight_scales + column, count)));
    if (c_.bias) y = V::add(y, load_floats<Whole>(c_.bias + column, count));
    if (c_.rounded.type != Type::kNone) y = V::mul(V::round(rounding_(y)), rounding_.scale);
    if (c_.added.data) y = V::add(y, added<Whole>(at, count));
    if (block) return Whole ? V::store(block, y) : V::store_first(block, y, count);
    if (c_.gate) y = gated(*c_.gate, y);
    if (c_.clip) y = V::min(high_, V::max(low_, y));
    put<Whole>(at, y, count);
  }

  template <bool Whole>
  F added(std::int64_t at, std::size_t count) const {
    if (c_.added.type == Type::kFloat) return load_floats<Whole>(static_cast<const float*>(c_.added.data) + at, count);
    const auto* const from = static_cast<const std::uint8_t*>(c_.added.data) + at;
    if constexpr (Whole) return V::mul(V::sub(Dot::load_bytes(from, added_flip_), added_zero_), added_scale_);
    std::uint8_t bytes[V::kWidth] = {};
    for (std::size_t i = 0; i < count; ++i) bytes[i] = from[i];
    return V::mul(V::sub(Dot::load_bytes(bytes, added_flip_), added_zero_), added_scale_);
  }

  const Convolution& c_;
  F scale_;
  Steps steps_, rounding_;
  F added_scale_;
  std::int32_t added_flip_;
  F added_zero_, low_{}, high_{};
};

/// Where the epilogue finds results, if there is one.
inline Results results_of(const Convolution& c, std::int64_t row, std::int64_t row_end, std::int64_t column,
                          std::int64_t column_end) {
  Results results{row, row_end, column, column_end, nullptr};
  const auto count = static_cast<std::size_t>((row_end - row) * (column_end - column));
  if (c.epilogue) results.data = reinterpret_cast<float*>(scratch(count * sizeof(float), ScratchOwner::kQconvResults));
  return results;
}

/// Runs the epilogue, if there is one, and quantizes what it made.
inline void finish(const Convolution& c, const Finisher& finisher, const Results& results) {
  if (results.data == nullptr) return;
  apply_epilogue(c, results);
  if (c.result.type == Type::kFloat) return;
  const std::int64_t width = results.column_end - results.column;
  for (std::int64_t row = results.row; row < results.row_end; ++row) {
    const float* const from = results.data + (row - results.row) * width;
    const std::int64_t at = row * c.geometry.filters + results.column;
    std::int64_t i = 0;
    for (; i + kWidth <= width; i += kWidth) finisher.put<true>(at + i, V::load(from + i), V::kWidth);
    const auto left = static_cast<std::size_t>(width - i);
    if (left > 0) finisher.put<false>(at + i, V::load_first(from + i, left), left);
  }
}

}  // namespace
}  // namespace onnxopt::qconv
