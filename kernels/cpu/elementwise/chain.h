// Chains: operations of floats of which each reads the result of the one before it. A pack runs through the whole chain in
// registers; only results that something else reads are written.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/elementwise/functions.h"
#include "kernels/cpu/elementwise/plan.h"

namespace onnxopt::elementwise {
namespace {

/// An operand or result of a tile: one element after the other, or a scalar stored once per lane.
struct Place {
  void* data;
  bool scalar;
};

template <class F>
inline F read(const Place& source, std::size_t i) {
  const auto* data = static_cast<const float*>(source.data);
  return source.scalar ? load<F>(data, 0) : load<F>(data + i, W);
}

/// An operand of a step of a chain, for the elements from `i` on; `x` is the value at hand.
template <class F>
inline F operand(const Step& step, int index, const Place* table, F x, std::size_t i) {
  const std::uint16_t place = step.operands[index];
  return place == Step::kAtHand ? x : read<F>(table[place], i);
}

template <class F>
inline F apply(const Step& step, const Place* table, F x, std::size_t i) {
  const float* p = step.parameters;
  const F zero = splat<F>(0.0f);
  const auto binary = [&](auto body) { return body(operand(step, 0, table, x, i), operand(step, 1, table, x, i)); };
  switch (step.op) {
    case Op::k_neg: return -x;
    case Op::k_abs: return abs(x);
    case Op::k_sign: return select(x > zero, splat<F>(1.0f), select(x < zero, splat<F>(-1.0f), x));
    case Op::k_sqrt: return sqrt(x);
    case Op::k_reciprocal: return splat<F>(1.0f) / x;
    case Op::k_exp: return exp(x);
    case Op::k_log: return log(x);
    case Op::k_sigmoid: return sigmoid(x);
    case Op::k_tanh: return tanh(x);
    case Op::k_erf: return erf(x);
    case Op::k_relu: return max(zero, x);
    case Op::k_floor: return floor(x);
    case Op::k_ceil: return ceil(x);
    case Op::k_round: return round(x);
    case Op::k_softplus: return softplus(x);
    case Op::k_softsign: return x / (splat<F>(1.0f) + abs(x));
    case Op::k_gelu: return gelu(x);
    case Op::k_gelu_tanh: return gelu_tanh(x);
    case Op::k_hard_swish: return x * hard_sigmoid(x, 1.0f / 6.0f, 0.5f);
    case Op::k_mish: return mish(x);
    case Op::k_silu: return silu(x);
    case Op::k_leaky_relu: return select(x < zero, x * splat<F>(p[0]), x);
    case Op::k_elu: return elu(x, p[0]);
    case Op::k_celu: return celu(x, p[0]);
    case Op::k_selu: return splat<F>(p[1]) * elu(x, p[0]);
    case Op::k_hard_sigmoid: return hard_sigmoid(x, p[0], p[1]);
    case Op::k_thresholded_relu: return select(x > splat<F>(p[0]), x, zero);
    case Op::k_add: return binary([](F a, F b) { return a + b; });
    case Op::k_sub: return binary([](F a, F b) { return a - b; });
    case Op::k_mul: return binary([](F a, F b) { return a * b; });
    case Op::k_div: return binary([](F a, F b) { return a / b; });
    case Op::k_min: return binary(propagating_min<F>);
    case Op::k_max: return binary(propagating_max<F>);
    case Op::k_clip: return min(operand(step, 2, table, x, i), max(operand(step, 1, table, x, i), operand(step, 0, table, x, i)));
    default: return x;  // casts between float types: what they round is rounded by the caller
  }
}

template <class F>
[[gnu::flatten]] inline void run_pack(const Step* begin, const Step* end, const Place* table, std::size_t i) {
  F x = read<F>(table[begin->operands[0]], i);
  for (const Step* step = begin; step != end; ++step) {
    x = apply(*step, table, x, i);
    if (step->result == DType::f16) x = round_to_half(x);
    if (step->target != Step::kNowhere) store(static_cast<float*>(table[step->target].data) + i, x);
  }
}

/// Runs the first `n` elements of a tile, whole vectors, through a chain.
void run_chain(const Step* begin, const Step* end, const Place* table, std::size_t n) {
  std::size_t i = 0;
  for (; i + V::kPack * W <= n; i += V::kPack * W) run_pack<Pack<V::kPack>>(begin, end, table, i);
  for (; i < n; i += W) run_pack<Pack<1>>(begin, end, table, i);
}

}  // namespace
}  // namespace onnxopt::elementwise
