// What the sums of a convolution become. Included after the sums of an instruction set.
#pragma once

#include "kernels/cpu/gemm/gate.h"
#include "kernels/cpu/qconv/qconv.h"
#include "kernels/cpu/qgemm/micro.h"
#include "kernels/cpu/scratch.h"

namespace onnxopt::qconv {
namespace {

using gemm::gated;
using qgemm::Dot;
using simd::V;
using F = V::F;

constexpr auto kWidth = static_cast<std::int64_t>(V::kWidth);

inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
inline std::int64_t most(std::int64_t a, std::int64_t b) { return a < b ? b : a; }

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

/// What sums become where only bytes are added and made (see `Direct`), in steps of the result. Vectors, for the same reason.
template <bool Rounded, bool Added, bool Gated>
struct DirectSteps {
  F first_low, first_high, ratio, added_step, added_zero, low, high, last;
  gemm::Gate gate{};

  DirectSteps(const Convolution& c, const Direct& d, F zero_of_added)
      : first_low(V::set1(d.first_low)),
        first_high(V::set1(d.first_high)),
        ratio(V::set1(d.ratio)),
        added_step(V::set1(d.added_step)),
        added_zero(zero_of_added),
        low(V::set1(d.low)),
        high(V::set1(d.high)),
        last(V::set1(d.last)) {
    if constexpr (Gated) gate = *c.gate;
  }
  F operator()(F sum, F multiplier, F offset, F added) const {
    F y = V::add(V::mul(sum, multiplier), offset);
    if constexpr (Rounded) y = V::mul(V::round(V::min(first_high, V::max(first_low, y))), ratio);
    if constexpr (Added) y = V::add(y, V::mul(V::sub(added, added_zero), added_step));
    if constexpr (Gated) y = V::mul(gated(gate, y), last);
    return V::min(high, V::max(low, y));
  }
};

/// What the results of one tensor become, one row after the other.
class Finisher {
 public:
  explicit Finisher(const Plan& plan)
      : c_(*plan.convolution),
        direct_(plan.direct),
        scale_(V::set1(c_.x.scale)),
        steps_(c_.result),
        rounding_(c_.rounded),
        added_scale_(V::set1(c_.added.scale)),
        added_flip_(c_.added.type == Type::kInt8 ? 0x80 : 0),
        added_zero_(V::set1(static_cast<float>(c_.added.zero + added_flip_))) {
    if (c_.clip) {
      low_ = V::set1(c_.clip->low);
      high_ = V::set1(c_.clip->high);
    }
  }

  /// Sums of `count` filters from `column` on, of some rows from `row` on, which lie `ld` apart.
  void rows(const float* sums, std::int64_t ld, int rows, std::int64_t row, std::int64_t column, std::int64_t count,
            const Results& results) const {
    if (direct_.multipliers == nullptr) {
      for (int r = 0; r < rows; ++r) one_row(sums + r * ld, row + r, column, count, results);
      return;
    }
    const auto run = [&]<bool Rounded, bool Added>() {
      c_.gate ? direct<Rounded, Added, true>(sums, ld, rows, row, column, count)
              : direct<Rounded, Added, false>(sums, ld, rows, row, column, count);
    };
    const bool added = c_.added.data != nullptr;
    if (c_.rounded.type != Type::kNone)
      return added ? run.template operator()<true, true>() : run.template operator()<true, false>();
    added ? run.template operator()<false, true>() : run.template operator()<false, false>();
  }

  /// The same for whole vectors of sums that are in registers, where that is how most results are made: false where it is not.
  template <int R, int N>
  [[gnu::always_inline]] bool block(const F (&sums)[R][N], std::int64_t row, std::int64_t column) const {
    const bool rounded = c_.rounded.type != Type::kNone, added = c_.added.data != nullptr;
    if (direct_.multipliers == nullptr || c_.gate || rounded != added) return false;
    added ? direct_block<true>(sums, row, column) : direct_block<false>(sums, row, column);
    return true;
  }

  /// Writes results to y.
  template <bool Whole>
  void put(std::int64_t at, F x, std::size_t count) const {
    if (c_.result.type == Type::kFloat) {
      float* const to = static_cast<float*>(c_.y) + at;
      return Whole ? V::store(to, x) : V::store_first(to, x, count);
    }
    store_bytes<Whole>(static_cast<std::uint8_t*>(c_.y) + at, steps_(x), c_.result.zero, count);
  }

 private:
  template <bool Added, int R, int N>
  [[gnu::always_inline]] void direct_block(const F (&sums)[R][N], std::int64_t row, std::int64_t column) const {
    const DirectSteps<Added, Added, false> steps(c_, direct_, added_zero_);
    const std::int64_t filters = c_.geometry.filters, at = row * filters + column;
    const std::int32_t zero = c_.result.zero, flip = added_flip_;
    auto* const to = static_cast<std::uint8_t*>(c_.y) + at;
    const auto* const other = static_cast<const std::uint8_t*>(c_.added.data) + (Added ? at : 0);
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      const std::int64_t first = v * kWidth;
      const F multiplier = V::load(direct_.multipliers + column + first), offset = V::load(direct_.offsets + column + first);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        F added{};
        if constexpr (Added) added = Dot::load_bytes(other + r * filters + first, flip);
        Dot::store_bytes(to + r * filters + first, steps(sums[r][v], multiplier, offset, added), zero);
      }
    }
  }

  template <bool Rounded, bool Added, bool Gated>
  void direct(const float* sums, std::int64_t ld, int rows, std::int64_t row, std::int64_t column, std::int64_t count) const {
    const std::int64_t filters = c_.geometry.filters;
    std::int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth)
      direct_column<Rounded, Added, Gated, true>(sums + i, ld, rows, row * filters + column + i, column + i, V::kWidth);
    if (i < count)
      direct_column<Rounded, Added, Gated, false>(sums + i, ld, rows, row * filters + column + i, column + i,
                                                  static_cast<std::size_t>(count - i));
  }

  /// One vector of each row.
  template <bool Rounded, bool Added, bool Gated, bool Whole>
  void direct_column(const float* sums, std::int64_t ld, int rows, std::int64_t at, std::int64_t column, std::size_t count) const {
    const DirectSteps<Rounded, Added, Gated> steps(c_, direct_, added_zero_);
    const F multiplier = load_floats<Whole>(direct_.multipliers + column, count);
    const F offset = load_floats<Whole>(direct_.offsets + column, count);
    const std::int64_t filters = c_.geometry.filters;
    const std::int32_t zero = c_.result.zero, flip = added_flip_;
    auto* to = static_cast<std::uint8_t*>(c_.y) + at;
    const auto* other = static_cast<const std::uint8_t*>(c_.added.data) + (Added ? at : 0);
    for (int r = 0; r < rows; ++r, to += filters) {
      F added{};
      if constexpr (Added) {
        added = bytes<Whole>(other, flip, count);
        other += filters;
      }
      store_bytes<Whole>(to, steps(V::load(sums + r * ld), multiplier, offset, added), zero, count);
    }
  }

  template <bool Whole>
  static F bytes(const std::uint8_t* from, std::int32_t flip, std::size_t count) {
    if constexpr (Whole) return Dot::load_bytes(from, flip);
    std::uint8_t some[V::kWidth] = {};
    for (std::size_t i = 0; i < count; ++i) some[i] = from[i];
    return Dot::load_bytes(some, flip);
  }

  template <bool Whole>
  static void store_bytes(std::uint8_t* to, F steps, std::int32_t zero, std::size_t count) {
    if constexpr (Whole) return Dot::store_bytes(to, steps, zero);
    std::uint8_t some[V::kWidth];
    Dot::store_bytes(some, steps, zero);
    for (std::size_t i = 0; i < count; ++i) to[i] = some[i];
  }

  void one_row(const float* sums, std::int64_t row, std::int64_t column, std::int64_t count, const Results& results) const {
    const std::int64_t at = row * c_.geometry.filters + column;
    float* const block = results.data
                             ? results.data + (row - results.row) * (results.column_end - results.column) + column - results.column
                             : nullptr;
    std::int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) vector<true>(sums + i, at + i, column + i, V::kWidth, block ? block + i : nullptr);
    if (i < count) vector<false>(sums + i, at + i, column + i, static_cast<std::size_t>(count - i), block ? block + i : nullptr);
  }

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
    return V::mul(V::sub(bytes<Whole>(from, added_flip_, count), added_zero_), added_scale_);
  }

  const Convolution& c_;
  const Direct& direct_;
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
