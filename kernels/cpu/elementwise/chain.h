// Chains: operations of floats of which each reads the result of the one before it. A pack runs through the whole chain in
// registers; only results that something else reads are written.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/elementwise/plan.h"
#include "kernels/cpu/simd/functions.h"

namespace onnxopt::elementwise {
namespace {

using namespace simd;

template <class F>
inline F read(const Place& source, std::size_t i) {
  const auto* data = static_cast<const float*>(source.data);
  return source.scalar ? load<F>(data, 0) : load<F>(data + i, W);
}

/// The values at hand, of M packs. M is 1: GCC keeps the elements of such an array in registers over the switch, where it spills a
/// plain variable.
template <class F, int M>
struct Batch {
  F packs[M];
};

/// An operand of a step of a chain, for the elements from `i` on; `x` is the value at hand.
template <class F>
inline F operand(const Step& step, int index, const Place* table, F x, std::size_t i) {
  const std::uint16_t place = step.operands[index];
  return place == Step::kAtHand ? x : read<F>(table[place], i);
}

template <class F, int M>
inline void apply(const Step& step, const Place* table, Batch<F, M>& batch, std::size_t i) {
  const float* p = step.parameters;
  const auto each = [&](auto body) {
#pragma GCC unroll 4
    for (int k = 0; k < M; ++k) batch.packs[k] = body(batch.packs[k], i + static_cast<std::size_t>(k) * sizeof(F) / sizeof(float));
  };
  const auto unary = [&](auto body) { each([&](F x, std::size_t) { return body(x); }); };
  const auto binary = [&](auto body) {
    each([&](F x, std::size_t at) { return body(operand(step, 0, table, x, at), operand(step, 1, table, x, at)); });
  };
  const auto ternary = [&](auto body) {
    each([&](F x, std::size_t at) {
      return body(operand(step, 0, table, x, at), operand(step, 1, table, x, at), operand(step, 2, table, x, at));
    });
  };
  switch (step.op) {
    case Op::k_neg: return unary([](F v) { return -v; });
    case Op::k_abs: return unary([](F v) { return abs(v); });
    case Op::k_sign:
      return unary([](F v) { return select(v > splat<F>(0.0f), splat<F>(1.0f), select(v < splat<F>(0.0f), splat<F>(-1.0f), v)); });
    case Op::k_sqrt: return unary([](F v) { return sqrt(v); });
    case Op::k_reciprocal: return unary([](F v) { return splat<F>(1.0f) / v; });
    case Op::k_exp: return unary([](F v) { return exp(v); });
    case Op::k_log: return unary([](F v) { return log(v); });
    case Op::k_sigmoid: return unary([](F v) { return sigmoid(v); });
    case Op::k_tanh: return unary([](F v) { return tanh(v); });
    case Op::k_erf: return unary([](F v) { return erf(v); });
    case Op::k_relu: return unary([](F v) { return max(splat<F>(0.0f), v); });
    case Op::k_floor: return unary([](F v) { return floor(v); });
    case Op::k_ceil: return unary([](F v) { return ceil(v); });
    case Op::k_round: return unary([](F v) { return round(v); });
    case Op::k_softplus: return unary([](F v) { return softplus(v); });
    case Op::k_softsign: return unary([](F v) { return v / (splat<F>(1.0f) + abs(v)); });
    case Op::k_gelu: return unary([](F v) { return gelu(v); });
    case Op::k_gelu_tanh: return unary([](F v) { return gelu_tanh(v); });
    case Op::k_hard_swish: return unary([](F v) { return v * hard_sigmoid(v, 1.0f / 6.0f, 0.5f); });
    case Op::k_mish: return unary([](F v) { return mish(v); });
    case Op::k_silu: return unary([](F v) { return silu(v); });
    case Op::k_leaky_relu: return unary([p](F v) { return select(v < splat<F>(0.0f), v * splat<F>(p[0]), v); });
    case Op::k_elu: return unary([p](F v) { return elu(v, p[0]); });
    case Op::k_celu: return unary([p](F v) { return celu(v, p[0]); });
    case Op::k_selu: return unary([p](F v) { return splat<F>(p[1]) * elu(v, p[0]); });
    case Op::k_hard_sigmoid: return unary([p](F v) { return hard_sigmoid(v, p[0], p[1]); });
    case Op::k_thresholded_relu: return unary([p](F v) { return select(v > splat<F>(p[0]), v, splat<F>(0.0f)); });
    case Op::k_add: return binary([](F v, F w) { return v + w; });
    case Op::k_sub: return binary([](F v, F w) { return v - w; });
    case Op::k_mul: return binary([](F v, F w) { return v * w; });
    case Op::k_div: return binary([](F v, F w) { return v / w; });
    case Op::k_min: return binary([](F v, F w) { return propagating_min(v, w); });
    case Op::k_max: return binary([](F v, F w) { return propagating_max(v, w); });
    case Op::k_clip: return ternary([](F v, F low, F high) { return min(high, max(low, v)); });
    default: return;  // casts between float types: what they round is rounded by the caller
  }
}

/// Runs the elements from `i` on through a chain.
template <class F, int M>
[[gnu::flatten]] inline void run_batch(const Step* begin, const Step* end, const Place* table, std::size_t i) {
  constexpr std::size_t size = sizeof(F) / sizeof(float);
  Batch<F, M> batch;
  for (int k = 0; k < M; ++k) batch.packs[k] = read<F>(table[begin->operands[0]], i + static_cast<std::size_t>(k) * size);
  for (const Step* step = begin; step != end; ++step) {
    apply(*step, table, batch, i);
    if (step->result == DType::f16)
      for (F& x : batch.packs) x = round_to_half(x);
    if (step->target == Step::kNowhere) continue;
    auto* target = static_cast<float*>(table[step->target].data) + i;
    for (int k = 0; k < M; ++k) store(target + static_cast<std::size_t>(k) * size, batch.packs[k]);
  }
}

/// Runs the first `n` elements of a tile, whole vectors, through a chain.
void run_chain(const Step* begin, const Step* end, const Place* table, std::size_t n) {
  constexpr std::size_t pack = V::kPack * W;
  std::size_t i = 0;
  for (; i + pack <= n; i += pack) run_batch<Pack<V::kPack>, 1>(begin, end, table, i);
  // What is left goes as few packs as well: vectors one by one would each wait for their own results.
  if constexpr (V::kPack > 4)
    if (i + 4 * W <= n) run_batch<Pack<4>, 1>(begin, end, table, i), i += 4 * W;
  if constexpr (V::kPack > 2)
    if (i + 2 * W <= n) run_batch<Pack<2>, 1>(begin, end, table, i), i += 2 * W;
  for (; i < n; i += W) run_batch<Pack<1>, 1>(begin, end, table, i);
}

}  // namespace
}  // namespace onnxopt::elementwise
