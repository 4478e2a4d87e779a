// Functions of a pack of floats. Every function takes any number of vectors, `F` being a Pack.
//
// Sources of the approximations: J.-M. Muller, "Elementary Functions" (argument reduction, reconstruction by scaling); erf as
// 1 - exp(p(|x|)) after N. Juffa; coefficients by fit_coefficients.py. Where vectors are looked up in tables, tanh, erf and gelu
// are polynomials of the distance to the middle of one of a few intervals.
#pragma once

#include <limits>

#include "kernels/cpu/simd/pack.h"
#include "kernels/cpu/simd/tables.h"

namespace onnxopt::simd {
namespace {

/// c[From] + c[From + 1] x + ...
template <std::size_t From = 0, class F, std::size_t K>
inline F polynomial(F x, const float (&c)[K]) {
  if constexpr (From + 1 == K)
    return splat<F>(c[From]);
  else
    return fma(polynomial<From + 1>(x, c), x, splat<F>(c[From]));
}

/// c[From] + c[From + 1] x + ..., of the coefficients that the lowest bits of `interval` say.
template <std::size_t From = 0, class F, std::size_t K, std::size_t N>
inline F polynomial(F x, const float (&c)[K][N], F interval) {
  if constexpr (From + 1 == K) {
    return lookup(c[From], interval);
  } else {
    const F rest = polynomial<From + 1>(x, c, interval);  // before the next coefficients are looked up: registers are few
    return fma(rest, x, lookup(c[From], interval));
  }
}

/// NaN passes.
template <class F>
inline F clamp_keep_nan(F x, float low, float high) {
  return min(splat<F>(high), max(splat<F>(low), x));
}

/// 1.5 * 2^23. Added to a number of at most 2^22 and taken off again, it leaves the nearest integer, since the unit in the last
/// place of such a sum is 1: fewer operations than the processor's own rounding.
constexpr float kRounding = 12582912.0f;

/// The integer nearest to x, |x| <= 2^22.
template <class F>
inline F round_small(F x) {
  return x + splat<F>(kRounding) - splat<F>(kRounding);
}

/// The integer nearest to x y, |x y| <= 2^22.
template <class F>
inline F round_product(F x, F y) {
  return fma(x, y, splat<F>(kRounding)) - splat<F>(kRounding);
}

/// -|x|
template <class F>
inline F negative_abs(F x) {
  return copysign(x, splat<F>(-1.0f));
}

constexpr float kLog2E = 1.44269504f, kLog2ELow = 1.92596303e-08f;
/// 2^f = 1 + f q(f) for |f| <= 1/2; the shorter one is good to an ulp.
constexpr float kPower[] = {0.693147182f, 0.240226477f, 0.0555033199f, 0.00961843878f, 0.00133990031f, 0.000153532572f};
constexpr float kShortPower[] = {0.693147004f, 0.240222409f, 0.0555073507f, 0.00967161916f, 0.00132645911f};

/// e^x = 2^n 2^f with |f| <= 1/2.
template <class F>
struct Reduced {
  F n, f;
};

template <class F>
inline Reduced<F> reduce(F x) {
  const F n = round_product(x, splat<F>(kLog2E));
  return {n, fma(x, splat<F>(kLog2ELow), fms(x, splat<F>(kLog2E), n))};
}

/// 2^(n + f), good to two ulps: enough where 1 is added to it.
template <class F>
inline F short_power(Reduced<F> t) {
  return scale(fma(t.f, polynomial(t.f, kShortPower), splat<F>(1.0f)), t.n);
}

/// x, but 0 where `gone` says so. What underflows takes many times as long as other numbers, so elements whose result is 0 anyway
/// are computed of 0, and their result is replaced.
template <class Mask, class F>
inline F without(Mask gone, F x) {
  return select(gone, splat<F>(0.0f), x);
}

/// e^x is a normal number from the first on, and not 0 from the second on.
constexpr float kLeastNormalPower = -87.0f, kLeastPower = -104.0f;

/// e^x for x <= 88, good to two ulps; it is 0 below `least`.
template <class F>
inline F short_exp(F x, float least = kLeastNormalPower) {
  const auto gone = x < splat<F>(least);
  return without(gone, short_power(reduce(without(gone, x))));
}

/// e^x for x <= 89.
template <class F>
inline F bounded_exp(F x) {
  const auto gone = x < splat<F>(kLeastPower);
  const Reduced<F> t = reduce(without(gone, x));
  return without(gone, scale(fma(t.f, polynomial(t.f, kPower), splat<F>(1.0f)), t.n));
}

template <class F>
inline F exp(F x) {
  return bounded_exp(min(splat<F>(89.0f), x));
}

/// e^x - 1, accurate near 0.
template <class F>
inline F expm1(F x) {
  const Reduced<F> t = reduce(clamp_keep_nan(x, -20.0f, 60.0f));
  const F s = scale(splat<F>(1.0f), t.n);
  const F y = fma(s, t.f * polynomial(t.f, kPower), s - splat<F>(1.0f));
  return select(x > splat<F>(60.0f), exp(x), y);
}

/// a / (b + b_lost), where b_lost is what the rounding of b lost: the quotient is corrected by its remainder. b is at least 1 and
/// finite.
template <class F>
inline F divide_exactly(F a, F b, F b_lost) {
  const F estimate = inverse(b);
  const F q = a * estimate;
  return fma(fnma(q, b_lost, fnma(q, b, a)), estimate, q);
}

/// e / (1 + e) with e = e^-|x| for negative x, else 1 / (1 + e).
template <class F>
inline F sigmoid(F x) {
  const F one = splat<F>(1.0f);
  const F e = bounded_exp(negative_abs(x));
  const F u = e + one;
  return divide_exactly(select(x < splat<F>(0.0f), e, one), u, e - (u - one));
}

/// x sigmoid(x), as x e / (1 + e) with e = e^-|x| for negative x, so that nothing overflows.
template <class F>
inline F silu(F x) {
  const F e = short_exp(negative_abs(x), kLeastPower);
  return select(x < splat<F>(0.0f), x * e, x) * inverse(e + splat<F>(1.0f));
}

/// tanh(x) = x + x^3 p(x^2) for |x| <= 0.75.
constexpr float kTanh[] = {-0.333330691f, 0.133265212f, -0.0533902571f, 0.0196649134f, -0.00476949057f};

/// The nearest of points that lie so far apart, the first one at 0; x >= 0.
template <class F>
struct Nearest {
  F number;  // its lowest bits are those of the point's number
  F distance;
};

template <class F>
inline Nearest<F> nearest(F x, float spacing) {
  const F number = fma(x, splat<F>(1 / spacing), splat<F>(kRounding));
  return {number, fnma(number - splat<F>(kRounding), splat<F>(spacing), x)};
}

template <class F>
inline F tanh_by_table(F x) {
  const F t = min(splat<F>(kTanhEnd), abs(x)), interval = half_octave(t);
  return copysign(polynomial(t - lookup(kTanhMiddles, interval), kTanhTable, interval), x);
}

/// 1 - 2 / (e^2|x| + 1) where that does not cancel; beyond 10 it is 1 in float.
template <class F>
inline F tanh(F x) {
  if constexpr (V::kTables) return tanh_by_table(x);
  const F one = splat<F>(1.0f);
  const F t = abs(x), square = t * t;
  const F small = fma(t * square, polynomial(square, kTanh), t);
  const F doubled = min(splat<F>(20.0f), t + t), n = round_product(doubled, splat<F>(kLog2E));
  const F e = short_power<F>({n, fms(doubled, splat<F>(kLog2E), n)});
  const F large = fnma(splat<F>(2.0f), inverse(e + one), one);
  return copysign(select(t > splat<F>(0.75f), large, small), x);
}

/// erf(x) = x + x p(x^2) for |x| <= 0.8, and 1 - 2^q(|x|) from there to 4.
constexpr float kErfSmall[] = {0.128379166f, -0.376126021f, 0.112831131f, -0.0268208086f, 0.00508513488f, -0.000653526047f};
constexpr float kErfLarge[] = {-0.00174844719f, -1.61968613f, -0.933603585f, -0.135158792f, 0.0237571038f, -0.00197723298f};

/// c[0] + (d + c[1] d + ...): near 0, where c[0] is 0, the error of c[1] is that of a small part.
template <class F>
inline F erf_by_table(F x) {
  const Nearest<F> point = nearest(min(splat<F>(kErfEnd), abs(x)), kErfSpacing);
  const F d = point.distance;
  const F more = fma(polynomial(d, kErfTable, point.number), d, d);
  return copysign(more + lookup(kErfValues, point.number), x);
}

template <class F>
inline F erf(F x) {
  if constexpr (V::kTables && sizeof(F) > 4 * sizeof(V::F)) return in_parts<4>(x, [](auto part) { return erf(part); });
  if constexpr (V::kTables) return erf_by_table(x);
  const F t = abs(x);
  const F small = fma(polynomial(t * t, kErfSmall), t, t);
  const F power = polynomial(min(splat<F>(4.0f), t), kErfLarge);
  const F n = round_small(power);
  const F large = splat<F>(1.0f) - short_power<F>({n, power - n});
  return copysign(select(t > splat<F>(0.8f), large, small), x);
}

constexpr float kLog[] = {0.333333313f, -0.250008196f, 0.200012267f, -0.166233569f,
                          0.142017588f, -0.131601825f, 0.12761575f,  -0.0763449296f};

/// log of a positive finite number: x = m 2^e with m in [sqrt 1/2, sqrt 2).
template <class F>
inline F log_positive(F x) {
  const auto tiny = x < splat<F>(std::numeric_limits<float>::min());
  F m, e;
  split(select(tiny, x * splat<F>(8388608.0f), x), m, e);
  e = select(tiny, e - splat<F>(23.0f), e);
  const F f = m - splat<F>(1.0f), square = f * f;
  F tail = polynomial(f, kLog) * f * square;
  tail = fma(e, splat<F>(1.42860677e-06f), tail);
  tail = fma(splat<F>(-0.5f), square, tail);
  return fma(e, splat<F>(0.693145752f), f + tail);
}

template <class F>
inline F log(F x) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  F y = log_positive(x);
  y = select(x == splat<F>(0.0f), splat<F>(-inf), y);
  y = select(x == splat<F>(inf), x, y);
  y = select(x < splat<F>(0.0f), splat<F>(std::numeric_limits<float>::quiet_NaN()), y);
  return select(unordered(x), x, y);
}

/// log(1 + e) for e in [0, 1]: the rounding of 1 + e is put back to first order.
template <class F>
inline F log1p_unit(F e) {
  const F u = e + splat<F>(1.0f);
  const F lost = e - (u - splat<F>(1.0f));
  return log_positive(u) + lost * inverse(u);
}

template <class F>
inline F softplus(F x) {
  const F y = max(splat<F>(0.0f), x) + log1p_unit(bounded_exp(negative_abs(x)));
  return select(unordered(x), x, y);
}

/// x tanh(softplus(x)) = x n / (n + 2) with n = e^x (e^x + 2).
template <class F>
inline F mish(F x) {
  const F e = bounded_exp(min(splat<F>(20.0f), x));
  const F n = e * (e + splat<F>(2.0f));
  const F ratio = n * inverse(n + splat<F>(2.0f));
  return x * select(x > splat<F>(20.0f), splat<F>(1.0f), ratio);
}

/// The normal distribution's tail is 2^p(t) for t >= 0; beyond 5.6 it is too small to matter, and p falls on: to -123 at 10.5.
constexpr float kTail[] = {-1.0f,           -1.15110791f,     -0.459178388f,    -0.0526014902f,
                           0.00723234005f,  -0.000276206847f, -0.000125356644f, 2.60746401e-05f,
                           -1.69359464e-06f};

/// The part of the normal distribution beyond t >= 0.
template <class F>
inline F normal_tail(F t) {
  if constexpr (V::kTables) {
    const Nearest<F> point = nearest(min(splat<F>(kTailEnd), t), kTailSpacing);
    return polynomial(point.distance, kTailTable, point.number);
  }
  const auto gone = t > splat<F>(10.5f);
  const F power = polynomial(without(gone, t), kTail);
  const F n = round_small(power);
  return without(gone, short_power<F>({n, power - n}));
}

/// x (1 + erf(x / sqrt 2)) / 2, which is x times the tail beyond -x.
template <class F>
inline F gelu(F x) {
  if constexpr (V::kTables && sizeof(F) > 4 * sizeof(V::F)) return in_parts<4>(x, [](auto part) { return gelu(part); });
  const F tail = normal_tail(abs(x));
  return x * select(x < splat<F>(0.0f), tail, splat<F>(1.0f) - tail);
}

/// The normal distribution up to t <= 4.2 is 1/2 + t p(t^2); beyond, it is 0 or 1.
constexpr float kNormal[] = {0.398907453f,     -0.0663603693f,  0.00983013026f,   -0.00111414806f, 9.45744105e-05f,
                             -5.76077036e-06f, 2.34367477e-07f, -5.63331959e-09f, 5.99807079e-11f};

/// `gelu`, good to 1e-5 of its operand: for what is rounded to bytes.
template <class F>
inline F coarse_gelu(F x) {
  const F t = clamp_keep_nan(x, -4.2f, 4.2f);
  return x * fma(t, polynomial(t * t, kNormal), splat<F>(0.5f));
}

/// x (1 + tanh y) / 2 = x sigmoid(2 y).
template <class F>
inline F gelu_tanh(F x) {
  const F doubled = x * fma(x * x, splat<F>(2 * 0.797884583f * 0.044715f), splat<F>(2 * 0.797884583f));
  const F e = short_exp(negative_abs(doubled));
  return select(x < splat<F>(0.0f), x * e, x) * inverse(e + splat<F>(1.0f));
}

template <class F>
inline F hard_sigmoid(F x, float alpha, float beta) {
  return clamp_keep_nan(x * splat<F>(alpha) + splat<F>(beta), 0.0f, 1.0f);
}

template <class F>
inline F elu(F x, float alpha) {
  return select(x < splat<F>(0.0f), splat<F>(alpha) * expm1(x), x);
}

template <class F>
inline F celu(F x, float alpha) {
  const F low = splat<F>(alpha) * expm1(x / splat<F>(alpha));
  return max(splat<F>(0.0f), x) + min(splat<F>(0.0f), low);
}

template <class F>
inline F propagating_min(F a, F b) {
  return select(unordered(a), a, min(a, b));
}

template <class F>
inline F propagating_max(F a, F b) {
  return select(unordered(a), a, max(a, b));
}

}  // namespace
}  // namespace onnxopt::simd
