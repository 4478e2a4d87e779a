// What the sums of a convolution become, in the order of kernels/cpu/qconv/finish.h, so that results have the same bits.
#pragma once

#include "kernels/cuda/mma.h"
#include "kernels/cuda/qconv/plan.h"

namespace onnxopt::qconv::cuda {
namespace {

constexpr int kSignedLowest = -128, kLevels = 255;

ONNXOPT_IN_KERNEL float raised(float x, float low) { return x < low ? low : x; }
ONNXOPT_IN_KERNEL float lowered(float x, float high) { return x > high ? high : x; }

ONNXOPT_IN_KERNEL std::int32_t zero_of(const Tensor& tensor) {
  return tensor.type == Type::kInt8 ? static_cast<std::int32_t>(*static_cast<const std::int8_t*>(tensor.zero))
                                    : static_cast<std::int32_t>(*static_cast<const std::uint8_t*>(tensor.zero));
}

/// A quantization, and its range in its steps.
struct Steps {
  float scale = 1.0f, low = 0.0f, high = 0.0f;
  std::int32_t zero = 0;

  ONNXOPT_IN_KERNEL explicit Steps(const Tensor& to) {
    if (to.type == Type::kNone || to.type == Type::kFloat) return;
    const std::int32_t first = to.type == Type::kInt8 ? kSignedLowest : 0;
    scale = *to.scale;
    zero = zero_of(to);
    low = static_cast<float>(first - zero);
    high = static_cast<float>(first + kLevels - zero);
  }
  ONNXOPT_IN_KERNEL float within(float steps) const { return lowered(raised(steps, low), high); }
};

ONNXOPT_IN_KERNEL float gated(const gemm::Gate& gate, float x) {
  const float open = lowered(raised(x * gate.alpha + gate.beta, 0.0f), 1.0f);
  return gate.scale * (x * open) + gate.shift;
}

/// What results of one tensor become.
struct Finisher {
  const Problem& p;
  Steps result, rounding, added;
  float scale, inverse, unit, first;  // of x; per step of the result; the same where no gate is passed before; per first step
  std::int32_t zero;
  bool direct;  // only bytes are added and made

  ONNXOPT_IN_KERNEL Finisher(const Problem& p, bool has_program)
      : p(p), result(p.result), rounding(p.rounded), added(p.added), scale(*p.x.scale), zero(zero_of(p.x)) {
    inverse = 1.0f / result.scale;
    unit = p.gated ? 1.0f : inverse;
    first = p.rounded.type != Type::kNone ? 1.0f / rounding.scale : unit;
    direct = p.result.type != Type::kFloat && p.added.type != Type::kFloat && !has_program;
  }

  ONNXOPT_IN_KERNEL bool rounds() const { return p.rounded.type != Type::kNone; }

  /// A sum of a filter as a number of steps of the result.
  ONNXOPT_IN_KERNEL float steps_of(float sum, float weight_scale, float bias, float other) const {
    float y = sum * (scale * weight_scale * first) + bias * first;
    if (rounds()) y = rintf(rounding.within(y)) * (rounding.scale * unit);
    if (p.added.type != Type::kNone) y = y + (other - static_cast<float>(added.zero)) * (added.scale * unit);
    if (p.gated) y = gated(p.gate, y) * inverse;
    const float low = p.clipped ? result.within(p.clip.low * inverse) : result.low;
    const float high = p.clipped ? result.within(p.clip.high * inverse) : result.high;
    return lowered(raised(y, low), high);
  }

  /// A sum as the number that it stands for, with what is added to it.
  ONNXOPT_IN_KERNEL float number_of(float sum, float weight_scale, float bias, float other) const {
    float y = sum * (scale * weight_scale);
    if (p.bias) y = y + bias;
    if (rounds()) y = rintf(rounding.within(y * first)) * rounding.scale;
    if (p.added.type == Type::kFloat) return y + other;
    return p.added.type == Type::kNone ? y : y + (other - static_cast<float>(added.zero)) * added.scale;
  }

  /// Such a number, gated and clipped.
  ONNXOPT_IN_KERNEL float shaped(float y) const {
    if (p.gated) y = gated(p.gate, y);
    return p.clipped ? lowered(raised(y, p.clip.low), p.clip.high) : y;
  }

  /// Steps of the result as a byte.
  ONNXOPT_IN_KERNEL std::uint8_t byte_of(float steps) const {
    return static_cast<std::uint8_t>((steps == steps ? static_cast<std::int32_t>(rintf(steps)) : 0) + result.zero);
  }
};

/// What is added to neighbouring results.
template <int E>
ONNXOPT_IN_KERNEL Floats<E> read_added(const Tensor& added, std::int64_t at, int count, bool vectors) {
  Floats<E> floats = splat<E>(0.0f);
  if (added.type == Type::kFloat) {
    const auto read = read_numbers<float, E>(added.data, at, count, vectors);
    ONNXOPT_UNROLL for (int k = 0; k < E; ++k) floats.values[k] = read.values[k];
  } else if (added.type == Type::kInt8) {
    const auto read = read_numbers<std::int8_t, E>(added.data, at, count, vectors);
    ONNXOPT_UNROLL for (int k = 0; k < E; ++k) floats.values[k] = static_cast<float>(read.values[k]);
  } else if (added.type == Type::kUint8) {
    const auto read = read_numbers<std::uint8_t, E>(added.data, at, count, vectors);
    ONNXOPT_UNROLL for (int k = 0; k < E; ++k) floats.values[k] = static_cast<float>(read.values[k]);
  }
  return floats;
}

/// Finishes sums of neighbouring filters from `filter` on of one pixel, which lie at `at` in y.
template <class L, class Code>
ONNXOPT_IN_KERNEL void finish(const Products<Code>& products, const Finisher& finisher, const ew::Slots<L>& slots,
                              const ew::Vector<std::int32_t, L::kCount>& sums, std::int64_t at, std::int64_t filter, int count) {
  constexpr int E = L::kCount;
  const Problem& p = products.problem;
  const bool vectors = products.vectors && E > 1;
  const auto of_weights = read_numbers<std::int32_t, E>(p.sums, filter, count, vectors);
  const auto scales = read_numbers<float, E>(p.weight_scales, filter, count, vectors);
  ew::Vector<float, E> bias;
  ONNXOPT_UNROLL for (int k = 0; k < E; ++k) bias.values[k] = 0.0f;
  if (p.bias) bias = read_numbers<float, E>(p.bias, filter, count, vectors);
  const Floats<E> other = read_added<E>(p.added, at, count, vectors);
  Floats<E> y;
  ONNXOPT_UNROLL for (int k = 0; k < E; ++k) {
    const auto sum = static_cast<float>(ew::op_sub(sums.values[k], ew::op_mul(finisher.zero, of_weights.values[k])));
    y.values[k] = finisher.direct ? finisher.steps_of(sum, scales.values[k], bias.values[k], other.values[k])
                                  : finisher.number_of(sum, scales.values[k], bias.values[k], other.values[k]);
  }
  if constexpr (!std::is_same_v<Code, NoProgram>) {
    const L taken = lanes_of<L>(y);
    const L made = ew::evaluate(products.epilogue, slots, at, &taken);
    if (p.result.type == Type::kFloat) return;
    y = floats_of(made);
  } else if (!finisher.direct) {
    ONNXOPT_UNROLL for (int k = 0; k < E; ++k) y.values[k] = finisher.shaped(y.values[k]);
  }
  if (p.result.type == Type::kFloat) {
    ew::Vector<float, E> numbers;
    ONNXOPT_UNROLL for (int k = 0; k < E; ++k) numbers.values[k] = y.values[k];
    return write_numbers(p.y, at, numbers, count, vectors);
  }
  ew::Vector<std::uint8_t, E> bytes;
  ONNXOPT_UNROLL for (int k = 0; k < E; ++k) bytes.values[k] =
      finisher.byte_of(finisher.direct ? y.values[k] : finisher.result.within(y.values[k] * finisher.inverse));
  write_numbers(p.y, at, bytes, count, vectors);
}

}  // namespace
}  // namespace onnxopt::qconv::cuda
