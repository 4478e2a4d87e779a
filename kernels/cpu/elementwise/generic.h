// The executor: one template, instantiated once per instruction set. The including file defines `struct V` (vectors of float and
// their masks) in an unnamed namespace, so that no code is shared between files that are compiled with different flags.
//
// A domain of elements is cut into tiles of a few hundred; a tile runs through all instructions before the next one starts, so that
// intermediate values never leave the first-level cache. Tiles are whole vectors: the last elements of a row are computed in a
// padded copy by the same vector code, hence results do not depend on where tiles or threads begin.
//
// Sources of the approximations: J.-M. Muller, "Elementary Functions" (argument reduction by two-part ln 2, reconstruction by
// scaling); erf as 1 - exp(p(|x|)) after N. Juffa; coefficients by fit_coefficients.py.

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels/cpu/elementwise/plan.h"

namespace onnxopt::elementwise {
namespace {

using F = V::F;
using M = V::M;
constexpr std::size_t W = V::kWidth;

/// Elements of a row from which on tiles do not cross rows, so that broadcast operands need no copy.
constexpr std::size_t kLongRow = 64;
/// Bytes from one register to the next: a tile of the widest type, and a few cache lines, so that registers do not share the low
/// bits of their addresses (a load would wait for a store 4 KiB away, and all would fall into the same sets of the cache).
constexpr std::size_t kSlot = kTile * 8 + 5 * 64;

/// Bytes of an element in a tensor.
constexpr std::size_t stored_size(DType type) {
  return type == DType::f16 ? 2 : type == DType::i64 ? 8 : type == DType::boolean ? 1 : 4;
}

// --- functions of a vector -----------------------------------------------------------------------------------------
inline F splat(float x) { return V::set1(x); }

template <std::size_t N>
inline F polynomial(F x, const float (&c)[N]) {
  F sum = splat(c[N - 1]);
  for (std::size_t i = N - 1; i-- > 0;) sum = V::fma(sum, x, splat(c[i]));
  return sum;
}

constexpr float kExp[] = {0.49999994f, 0.166665196f, 0.0416684002f, 0.00836885069f, 0.00138143206f};

/// x = n ln 2 + r. Returns n and (e^r - 1).
struct Reduced {
  F n, expm1_r;
};
inline Reduced reduce_exp_fast(F x) {
  F n = V::round(V::mul(x, splat(1.44269504f)));
  F r = V::fma(n, splat(-1.42860677e-06f), V::fma(n, splat(-0.693145752f), x));
  return {n, V::fma(V::mul(r, r), polynomial(r, kExp), r)};
}

/// The same; what r loses to rounding is added to the polynomial.
inline Reduced reduce_exp(F x) {
  F n = V::round(V::mul(x, splat(1.44269504f)));
  F high = V::fma(n, splat(-0.693145752f), x);
  F r = V::fma(n, splat(-1.42860677e-06f), high);
  F lost = V::fma(n, splat(-1.42860677e-06f), V::sub(high, r));
  F q = polynomial(r, kExp);
  return {n, V::add(r, V::fma(V::mul(r, r), q, lost))};
}

/// NaN passes: min and max return their second operand when one is NaN.
inline F clamp_keep_nan(F x, float low, float high) { return V::min(splat(high), V::max(splat(low), x)); }

inline F exp(F x) {
  Reduced e = reduce_exp(clamp_keep_nan(x, -104.0f, 89.0f));
  return V::scale(V::add(e.expm1_r, splat(1.0f)), e.n);
}

/// e^x - 1 for x in [-104, 60], accurate near 0.
inline F expm1_bounded(F x) {
  Reduced e = reduce_exp(x);
  F s = V::scale(splat(1.0f), e.n);
  return V::fma(s, e.expm1_r, V::sub(s, splat(1.0f)));
}

inline F expm1(F x) {
  F y = expm1_bounded(clamp_keep_nan(x, -104.0f, 60.0f));
  return V::select(V::greater(x, splat(60.0f)), exp(x), y);
}

/// a / (b + b_lost), where b_lost is what the rounding of b lost: the quotient is corrected by its remainder. b is at least 1 and
/// finite.
inline F divide_exactly(F a, F b, F b_lost) {
  F inverse = V::inverse(b);
  F q = V::mul(a, inverse);
  F minus_q = V::negate(q);
  return V::fma(V::fma(minus_q, b_lost, V::fma(minus_q, b, a)), inverse, q);
}

/// Of x <= 0, where nothing overflows.
inline F exp_nonpositive(F x) {
  Reduced e = reduce_exp(V::max(splat(-104.0f), x));
  return V::scale(V::add(e.expm1_r, splat(1.0f)), e.n);
}

/// e / (1 + e) with e = e^-|x| for negative x, else 1 / (1 + e).
inline F sigmoid(F x) {
  const F zero = splat(0.0f), one = splat(1.0f);
  F e = exp_nonpositive(V::negate(V::abs(x)));
  F u = V::add(e, one);
  return divide_exactly(V::select(V::less(x, zero), e, one), u, V::sub(e, V::sub(u, one)));
}

/// tanh(x) = em1 / (em1 + 2) with em1 = e^(2|x|) - 1; beyond 10 it is 1 in float.
inline F tanh(F x) {
  const F two = splat(2.0f);
  F em1 = expm1_bounded(V::min(splat(20.0f), V::add(V::abs(x), V::abs(x))));
  F d = V::add(em1, two);
  F d_lost = V::sub(em1, V::sub(d, two));
  F t = V::copysign(divide_exactly(em1, d, d_lost), x);
  return V::select(V::unordered(x), x, t);
}

constexpr float kErfSmall[] = {0.128379151f, -0.376124799f, 0.112816826f, -0.0267617274f, 0.00498594809f, -0.000595377351f};
constexpr float kErfLarge[] = {-0.000166447164f, -1.12779725f,    -0.636976063f,  -0.104113683f,
                               0.0223152153f,    -0.00306549086f, 0.000198219728f};

inline F erf(F x) {
  F t = V::abs(x);
  F small = V::fma(polynomial(V::mul(x, x), kErfSmall), x, x);
  Reduced e = reduce_exp_fast(polynomial(V::min(splat(4.0f), t), kErfLarge));
  F power = V::scale(V::add(e.expm1_r, splat(1.0f)), e.n);
  F large = V::copysign(V::sub(splat(1.0f), power), x);
  F result = V::select(V::greater(t, splat(0.92f)), large, small);
  return V::select(V::unordered(x), x, result);
}

constexpr float kLog[] = {0.333333313f, -0.250008196f, 0.200012267f, -0.166233569f,
                          0.142017588f, -0.131601825f, 0.12761575f,  -0.0763449296f};

/// log of a positive finite number: x = m 2^e with m in [sqrt 1/2, sqrt 2).
inline F log_positive(F x) {
  M tiny = V::less(x, splat(1.17549435e-38f));
  F m, e;
  V::split(V::select(tiny, V::mul(x, splat(8388608.0f)), x), m, e);
  e = V::select(tiny, V::sub(e, splat(23.0f)), e);
  F f = V::sub(m, splat(1.0f));
  F square = V::mul(f, f);
  F tail = V::mul(V::mul(polynomial(f, kLog), f), square);
  tail = V::fma(e, splat(1.42860677e-06f), tail);
  tail = V::fma(splat(-0.5f), square, tail);
  return V::fma(e, splat(0.693145752f), V::add(f, tail));
}

inline F log(F x) {
  F y = log_positive(x);
  const float inf = std::numeric_limits<float>::infinity();
  y = V::select(V::equal(x, splat(0.0f)), splat(-inf), y);
  y = V::select(V::equal(x, splat(inf)), x, y);
  y = V::select(V::less(x, splat(0.0f)), splat(std::numeric_limits<float>::quiet_NaN()), y);
  return V::select(V::unordered(x), x, y);
}

/// log(1 + e) for e in [0, 1]: the rounding of 1 + e is put back to first order.
inline F log1p_unit(F e) {
  F u = V::add(e, splat(1.0f));
  F lost = V::sub(e, V::sub(u, splat(1.0f)));
  return V::add(log_positive(u), V::div(lost, u));
}

inline F softplus(F x) {
  F y = V::add(V::max(splat(0.0f), x), log1p_unit(exp_nonpositive(V::negate(V::abs(x)))));
  return V::select(V::unordered(x), x, y);
}

/// x sigmoid(x): a product needs no more of the sigmoid than plain arithmetic gives.
inline F silu(F x) {
  Reduced r = reduce_exp_fast(V::max(splat(-104.0f), V::negate(V::abs(x))));
  F e = V::scale(V::add(r.expm1_r, splat(1.0f)), r.n);
  F scaled = V::select(V::less(x, splat(0.0f)), V::mul(x, e), x);
  return V::mul(scaled, V::inverse(V::add(e, splat(1.0f))));
}

/// x tanh(softplus(x)) = x n / (n + 2) with n = e^x (e^x + 2).
inline F mish(F x) {
  F e = exp(V::min(splat(20.0f), x));
  F n = V::mul(e, V::add(e, splat(2.0f)));
  F ratio = V::mul(n, V::inverse(V::add(n, splat(2.0f))));
  return V::mul(x, V::select(V::greater(x, splat(20.0f)), splat(1.0f), ratio));
}

inline F gelu(F x) {
  F one_plus_erf = V::add(splat(1.0f), erf(V::mul(x, splat(0.707106769f))));
  return V::mul(V::mul(splat(0.5f), x), one_plus_erf);
}

inline F gelu_tanh(F x) {
  F cube = V::mul(V::mul(x, x), x);
  F inner = V::mul(splat(0.797884583f), V::fma(splat(0.044715f), cube, x));
  // 1 + tanh absorbs what a plain quotient loses.
  F em1 = expm1_bounded(V::min(splat(20.0f), V::add(V::abs(inner), V::abs(inner))));
  F t = V::copysign(V::div(em1, V::add(em1, splat(2.0f))), inner);
  return V::mul(V::mul(splat(0.5f), x), V::add(splat(1.0f), V::select(V::unordered(inner), inner, t)));
}

inline F clamp01(F x) { return clamp_keep_nan(x, 0.0f, 1.0f); }

inline F hard_sigmoid(F x, float alpha, float beta) { return clamp01(V::add(V::mul(x, splat(alpha)), splat(beta))); }

inline F elu(F x, float alpha) { return V::select(V::less(x, splat(0.0f)), V::mul(splat(alpha), expm1(x)), x); }

inline F propagating_min(F a, F b) { return V::select(V::unordered(a), a, V::min(a, b)); }
inline F propagating_max(F a, F b) { return V::select(V::unordered(a), a, V::max(a, b)); }

// --- one instruction over a tile -----------------------------------------------------------------------------------
/// An operand of a tile: `step` is 0 for a scalar, which is stored once per lane, and W otherwise.
struct Source {
  const void* data;
  std::size_t step;
};

struct Call {
  void* target;
  Source sources[3];
  const float* parameters;
};

using Function = void (*)(const Call&, std::size_t elements);

template <typename Body>
inline void map1(const Call& call, std::size_t n, Body body) {
  auto* x = static_cast<const float*>(call.sources[0].data);
  auto* y = static_cast<float*>(call.target);
  const std::size_t sx = call.sources[0].step;
#pragma GCC unroll 4
  for (std::size_t i = 0; i < n; i += W, x += sx) V::store(y + i, body(V::load(x)));
}

template <typename Body>
inline void map2(const Call& call, std::size_t n, Body body) {
  auto* a = static_cast<const float*>(call.sources[0].data);
  auto* b = static_cast<const float*>(call.sources[1].data);
  auto* y = static_cast<float*>(call.target);
  const std::size_t sa = call.sources[0].step, sb = call.sources[1].step;
#pragma GCC unroll 4
  for (std::size_t i = 0; i < n; i += W, a += sa, b += sb) V::store(y + i, body(V::load(a), V::load(b)));
}

template <typename Body>
inline void map3(const Call& call, std::size_t n, Body body) {
  auto* a = static_cast<const float*>(call.sources[0].data);
  auto* b = static_cast<const float*>(call.sources[1].data);
  auto* c = static_cast<const float*>(call.sources[2].data);
  auto* y = static_cast<float*>(call.target);
  const std::size_t sa = call.sources[0].step, sb = call.sources[1].step, sc = call.sources[2].step;
  for (std::size_t i = 0; i < n; i += W, a += sa, b += sb, c += sc) V::store(y + i, body(V::load(a), V::load(b), V::load(c)));
}

/// The same for types without vector code of our own; the compiler vectorizes these loops. A scalar operand is a loop of its own.
template <typename T, typename R, typename Body>
inline void loop1(const Call& call, std::size_t n, Body body) {
  auto* x = static_cast<const T*>(call.sources[0].data);
  auto* y = static_cast<R*>(call.target);
  if (call.sources[0].step == 0) {
    const R value = body(*x);
    for (std::size_t i = 0; i < n; ++i) y[i] = value;
  } else {
    for (std::size_t i = 0; i < n; ++i) y[i] = body(x[i]);
  }
}

template <typename T, typename R, typename Body>
inline void loop2(const Call& call, std::size_t n, Body body) {
  auto* a = static_cast<const T*>(call.sources[0].data);
  auto* b = static_cast<const T*>(call.sources[1].data);
  auto* y = static_cast<R*>(call.target);
  const bool va = call.sources[0].step != 0, vb = call.sources[1].step != 0;
  if (va && vb) {
    for (std::size_t i = 0; i < n; ++i) y[i] = body(a[i], b[i]);
  } else if (va) {
    const T right = *b;
    for (std::size_t i = 0; i < n; ++i) y[i] = body(a[i], right);
  } else if (vb) {
    const T left = *a;
    for (std::size_t i = 0; i < n; ++i) y[i] = body(left, b[i]);
  } else {
    const R value = body(*a, *b);
    for (std::size_t i = 0; i < n; ++i) y[i] = value;
  }
}

template <typename T>
inline void select_loop(const Call& call, std::size_t n) {
  auto* c = static_cast<const std::uint8_t*>(call.sources[0].data);
  auto* a = static_cast<const T*>(call.sources[1].data);
  auto* b = static_cast<const T*>(call.sources[2].data);
  auto* y = static_cast<T*>(call.target);
  const std::size_t sc = call.sources[0].step != 0, sa = call.sources[1].step != 0, sb = call.sources[2].step != 0;
  if (sc && sa && sb) {
    for (std::size_t i = 0; i < n; ++i) y[i] = c[i] ? a[i] : b[i];
  } else {
    for (std::size_t i = 0; i < n; ++i) y[i] = c[i * sc] ? a[i * sa] : b[i * sb];
  }
}

template <typename T>
inline void clip_loop(const Call& call, std::size_t n) {
  auto* x = static_cast<const T*>(call.sources[0].data);
  auto* low = static_cast<const T*>(call.sources[1].data);
  auto* high = static_cast<const T*>(call.sources[2].data);
  auto* y = static_cast<T*>(call.target);
  const std::size_t sx = call.sources[0].step != 0, sl = call.sources[1].step != 0, sh = call.sources[2].step != 0;
  for (std::size_t i = 0; i < n; ++i) {
    T raised = x[i * sx] < low[i * sl] ? low[i * sl] : x[i * sx];
    y[i] = high[i * sh] < raised ? high[i * sh] : raised;
  }
}

template <typename T>
using Unsigned = std::make_unsigned_t<T>;

/// Integer arithmetic wraps, as two's complement hardware does; division by zero gives zero and never traps.
template <typename T>
inline T wrap_add(T a, T b) {
  return static_cast<T>(static_cast<Unsigned<T>>(a) + static_cast<Unsigned<T>>(b));
}
template <typename T>
inline T wrap_sub(T a, T b) {
  return static_cast<T>(static_cast<Unsigned<T>>(a) - static_cast<Unsigned<T>>(b));
}
template <typename T>
inline T wrap_mul(T a, T b) {
  return static_cast<T>(static_cast<Unsigned<T>>(a) * static_cast<Unsigned<T>>(b));
}
template <typename T>
inline T safe_div(T a, T b) {
  if (b == 0) return 0;
  return b == -1 ? wrap_sub<T>(0, a) : static_cast<T>(a / b);
}

/// A float to an integer as x86 converts it: what does not fit becomes the lowest integer.
template <typename T>
inline T to_integer(float x) {
  constexpr float limit = sizeof(T) == 4 ? 2147483648.0f : 9223372036854775808.0f;
  return x >= -limit && x < limit ? static_cast<T>(x) : std::numeric_limits<T>::min();
}

template <typename T>
bool integer_call(Op op, const Call& call, std::size_t n) {
  switch (op) {
    case Op::k_neg: loop1<T, T>(call, n, [](T x) { return wrap_sub<T>(0, x); }); return true;
    case Op::k_abs: loop1<T, T>(call, n, [](T x) { return x < 0 ? wrap_sub<T>(0, x) : x; }); return true;
    case Op::k_sign: loop1<T, T>(call, n, [](T x) { return static_cast<T>((x > 0) - (x < 0)); }); return true;
    case Op::k_add: loop2<T, T>(call, n, wrap_add<T>); return true;
    case Op::k_sub: loop2<T, T>(call, n, wrap_sub<T>); return true;
    case Op::k_mul: loop2<T, T>(call, n, wrap_mul<T>); return true;
    case Op::k_div: loop2<T, T>(call, n, safe_div<T>); return true;
    case Op::k_min: loop2<T, T>(call, n, [](T a, T b) { return b < a ? b : a; }); return true;
    case Op::k_max: loop2<T, T>(call, n, [](T a, T b) { return a < b ? b : a; }); return true;
    case Op::k_clip: clip_loop<T>(call, n); return true;
    case Op::k_cast_f32:
    case Op::k_cast_f16: loop1<T, float>(call, n, [](T x) { return static_cast<float>(x); }); return true;
    case Op::k_cast_i32: loop1<T, std::int32_t>(call, n, [](T x) { return static_cast<std::int32_t>(x); }); return true;
    case Op::k_cast_i64: loop1<T, std::int64_t>(call, n, [](T x) { return static_cast<std::int64_t>(x); }); return true;
    default: return false;
  }
}

template <typename T>
bool comparison_call(Op op, const Call& call, std::size_t n) {
  using B = std::uint8_t;
  switch (op) {
    case Op::k_equal: loop2<T, B>(call, n, [](T a, T b) { return static_cast<B>(a == b); }); return true;
    case Op::k_less: loop2<T, B>(call, n, [](T a, T b) { return static_cast<B>(a < b); }); return true;
    case Op::k_less_equal: loop2<T, B>(call, n, [](T a, T b) { return static_cast<B>(a <= b); }); return true;
    case Op::k_greater: loop2<T, B>(call, n, [](T a, T b) { return static_cast<B>(a > b); }); return true;
    case Op::k_greater_equal: loop2<T, B>(call, n, [](T a, T b) { return static_cast<B>(a >= b); }); return true;
    case Op::k_cast_bool: loop1<T, B>(call, n, [](T x) { return static_cast<B>(x != 0); }); return true;
    case Op::k_where: select_loop<T>(call, n); return true;
    default: return false;
  }
}

bool boolean_call(Op op, const Call& call, std::size_t n) {
  using B = std::uint8_t;
  switch (op) {
    case Op::k_and: loop2<B, B>(call, n, [](B a, B b) { return static_cast<B>((a != 0) & (b != 0)); }); return true;
    case Op::k_or: loop2<B, B>(call, n, [](B a, B b) { return static_cast<B>((a != 0) | (b != 0)); }); return true;
    case Op::k_xor: loop2<B, B>(call, n, [](B a, B b) { return static_cast<B>((a != 0) ^ (b != 0)); }); return true;
    case Op::k_equal: loop2<B, B>(call, n, [](B a, B b) { return static_cast<B>((a != 0) == (b != 0)); }); return true;
    case Op::k_not: loop1<B, B>(call, n, [](B x) { return static_cast<B>(x == 0); }); return true;
    case Op::k_cast_f32:
    case Op::k_cast_f16: loop1<B, float>(call, n, [](B x) { return x ? 1.0f : 0.0f; }); return true;
    case Op::k_cast_i32: loop1<B, std::int32_t>(call, n, [](B x) { return static_cast<std::int32_t>(x != 0); }); return true;
    case Op::k_cast_i64: loop1<B, std::int64_t>(call, n, [](B x) { return static_cast<std::int64_t>(x != 0); }); return true;
    default: return comparison_call<B>(op, call, n);
  }
}

bool float_call(Op op, const Call& call, std::size_t n) {
  const float* p = call.parameters;
  switch (op) {
    case Op::k_neg: map1(call, n, V::negate); return true;
    case Op::k_abs: map1(call, n, V::abs); return true;
    case Op::k_sqrt: map1(call, n, V::sqrt); return true;
    case Op::k_reciprocal: map1(call, n, [](F x) { return V::div(splat(1.0f), x); }); return true;
    case Op::k_exp: map1(call, n, exp); return true;
    case Op::k_log: map1(call, n, log); return true;
    case Op::k_sigmoid: map1(call, n, sigmoid); return true;
    case Op::k_tanh: map1(call, n, tanh); return true;
    case Op::k_erf: map1(call, n, erf); return true;
    case Op::k_relu: map1(call, n, [](F x) { return V::max(splat(0.0f), x); }); return true;
    case Op::k_floor: map1(call, n, V::floor); return true;
    case Op::k_ceil: map1(call, n, V::ceil); return true;
    case Op::k_round: map1(call, n, V::round); return true;
    case Op::k_softplus: map1(call, n, softplus); return true;
    case Op::k_softsign: map1(call, n, [](F x) { return V::div(x, V::add(splat(1.0f), V::abs(x))); }); return true;
    case Op::k_gelu: map1(call, n, gelu); return true;
    case Op::k_gelu_tanh: map1(call, n, gelu_tanh); return true;
    case Op::k_hard_swish: map1(call, n, [](F x) { return V::mul(x, hard_sigmoid(x, 1.0f / 6.0f, 0.5f)); }); return true;
    case Op::k_mish: map1(call, n, mish); return true;
    case Op::k_silu: map1(call, n, silu); return true;
    case Op::k_leaky_relu:
      map1(call, n, [p](F x) { return V::select(V::less(x, splat(0.0f)), V::mul(x, splat(p[0])), x); });
      return true;
    case Op::k_elu: map1(call, n, [p](F x) { return elu(x, p[0]); }); return true;
    case Op::k_celu:
      map1(call, n, [p](F x) {
        F low = V::mul(splat(p[0]), expm1(V::div(x, splat(p[0]))));
        return V::add(V::max(splat(0.0f), x), V::min(splat(0.0f), low));
      });
      return true;
    case Op::k_selu: map1(call, n, [p](F x) { return V::mul(splat(p[1]), elu(x, p[0])); }); return true;
    case Op::k_hard_sigmoid: map1(call, n, [p](F x) { return hard_sigmoid(x, p[0], p[1]); }); return true;
    case Op::k_thresholded_relu:
      map1(call, n, [p](F x) { return V::select(V::greater(x, splat(p[0])), x, splat(0.0f)); });
      return true;
    case Op::k_add: map2(call, n, V::add); return true;
    case Op::k_sub: map2(call, n, V::sub); return true;
    case Op::k_mul: map2(call, n, V::mul); return true;
    case Op::k_div: map2(call, n, V::div); return true;
    case Op::k_min: map2(call, n, propagating_min); return true;
    case Op::k_max: map2(call, n, propagating_max); return true;
    case Op::k_clip: map3(call, n, [](F x, F low, F high) { return V::min(high, V::max(low, x)); }); return true;
    case Op::k_sign: loop1<float, float>(call, n, [](float x) { return x > 0 ? 1.0f : x < 0 ? -1.0f : x; }); return true;
    case Op::k_pow: loop2<float, float>(call, n, [](float a, float b) { return std::pow(a, b); }); return true;
    case Op::k_isnan: loop1<float, std::uint8_t>(call, n, [](float x) { return static_cast<std::uint8_t>(x != x); }); return true;
    case Op::k_isinf:
      loop1<float, std::uint8_t>(
          call, n, [](float x) { return static_cast<std::uint8_t>(std::fabs(x) == std::numeric_limits<float>::infinity()); });
      return true;
    case Op::k_cast_f32:
    case Op::k_cast_f16: map1(call, n, [](F x) { return x; }); return true;
    case Op::k_cast_i32: loop1<float, std::int32_t>(call, n, to_integer<std::int32_t>); return true;
    case Op::k_cast_i64: loop1<float, std::int64_t>(call, n, to_integer<std::int64_t>); return true;
    default: return comparison_call<float>(op, call, n);
  }
}

void execute(const Instruction& instruction, const Call& call, std::size_t n) {
  switch (instruction.type) {
    case DType::f32:
    case DType::f16: float_call(instruction.op, call, n); break;
    case DType::i32:
      if (!integer_call<std::int32_t>(instruction.op, call, n)) comparison_call<std::int32_t>(instruction.op, call, n);
      break;
    case DType::i64:
      if (!integer_call<std::int64_t>(instruction.op, call, n)) comparison_call<std::int64_t>(instruction.op, call, n);
      break;
    case DType::boolean: boolean_call(instruction.op, call, n); break;
  }
  if (instruction.result == DType::f16) {
    auto* values = static_cast<float*>(call.target);
    for (std::size_t i = 0; i < n; ++i) values[i] = V::from_half(V::to_half(values[i]));
  }
}

// --- the domain ----------------------------------------------------------------------------------------------------
/// Everything one thread needs: registers, splat operands, and copies of operands that cannot be read in place.
class Worker {
 public:
  explicit Worker(const Plan& plan) : plan_(plan), memory_(scratch(plan.register_count * kSlot)) {
    for (std::size_t i = 0; i < plan.literal_count; ++i) {
      const Literal& literal = plan.literals[i];
      fill(slot(plan.literal_slots[i]), &literal.f, stored_size(literal.type == DType::f16 ? DType::f32 : literal.type));
    }
    for (std::size_t i = 0; i < plan.input_count; ++i) {
      const PlanInput& input = plan.inputs[i];
      if (!input.used || !input.scalar) continue;
      float widened;
      const void* value = input.data;
      if (input.type == DType::f16) {
        std::uint16_t half;
        std::memcpy(&half, input.data, 2);
        widened = V::from_half(half);
        value = &widened;
      }
      fill(slot(plan.input_slots[i]), value, stored_size(input.type == DType::f16 ? DType::f32 : input.type));
    }
  }

  /// Computes elements [begin, end) of the domain in its order.
  void run(std::int64_t begin, std::int64_t end) {
    const bool long_rows = plan_.row >= static_cast<std::int64_t>(kLongRow);
    while (begin < end) {
      std::int64_t count = end - begin;
      if (count > static_cast<std::int64_t>(kTile)) count = static_cast<std::int64_t>(kTile);
      if (long_rows && count > plan_.row - begin % plan_.row) count = plan_.row - begin % plan_.row;
      const std::int64_t whole = count / static_cast<std::int64_t>(W) * static_cast<std::int64_t>(W);
      if (whole > 0) tile(begin, whole, long_rows, true);
      if (whole < count) tile(begin + whole, count - whole, long_rows, false);
      begin += count;
    }
  }

 private:
  char* slot(std::size_t index) { return memory_ + index * kSlot; }

  static void fill(char* target, const void* value, std::size_t size) {
    for (std::size_t i = 0; i < W; ++i) std::memcpy(target + i * size, value, size);
  }

  void tile(std::int64_t begin, std::int64_t count, bool in_row, bool whole) {
    const std::size_t padded = (static_cast<std::size_t>(count) + W - 1) / W * W;
    Source inputs[Program::kMaxInputs];
    for (std::size_t i = 0; i < plan_.input_count; ++i)
      if (plan_.inputs[i].used) inputs[i] = load(i, begin, count, in_row, whole);
    for (std::size_t i = 0; i < plan_.step_count; ++i) {
      const std::uint16_t step = plan_.steps[i];
      const Instruction& instruction = plan_.instructions[step];
      Call call{target_of(step, begin, whole), {}, instruction.parameters};
      for (int k = 0; k < 3; ++k) {
        const Operand& operand = instruction.operands[k];
        if (operand.kind == Operand::kInput) call.sources[k] = inputs[operand.index];
        if (operand.kind == Operand::kTemporary) call.sources[k] = {target_of(operand.index, begin, whole), W};
        if (operand.kind == Operand::kLiteral) call.sources[k] = {slot(plan_.literal_slots[operand.index]), 0};
      }
      execute(instruction, call, padded);
    }
    for (std::size_t i = 0; i < plan_.output_count; ++i) store(i, begin, count, whole);
  }

  /// Where a result goes: straight to the output for whole vectors of a type that is stored as it is computed, else to its
  /// register.
  void* target_of(std::uint16_t step, std::int64_t begin, bool whole) {
    const std::int16_t output = plan_.output_of[step];
    if (whole && output >= 0)
      return plan_.targets[output] + begin * static_cast<std::int64_t>(stored_size(plan_.instructions[step].result));
    return slot(plan_.registers[step]);
  }

  Source load(std::size_t index, std::int64_t begin, std::int64_t count, bool in_row, bool whole) {
    const PlanInput& input = plan_.inputs[index];
    char* copy = slot(plan_.input_slots[index]);
    if (input.scalar) return {copy, 0};
    if (!in_row) {
      gather_across(copy, input, begin, count);
      return {copy, W};
    }
    const std::int64_t stride = input.strides[plan_.rank - 1];
    const std::int64_t offset = offset_of(input, begin / plan_.row) + begin % plan_.row * stride;
    if (stride == 1 && whole && input.type != DType::f16)
      return {input.data + offset * static_cast<std::int64_t>(stored_size(input.type)), W};
    gather(copy, input, offset, stride, count);
    return {copy, W};
  }

  /// Offset of the first element of a row.
  std::int64_t offset_of(const PlanInput& input, std::int64_t row) const {
    std::int64_t offset = 0;
    for (std::size_t axis = plan_.rank - 1; axis-- > 0;) {
      offset += row % plan_.dims[axis] * input.strides[axis];
      row /= plan_.dims[axis];
    }
    return offset;
  }

  /// Copies elements of several short rows, one after the other.
  void gather_across(char* copy, const PlanInput& input, std::int64_t begin, std::int64_t count) {
    const std::size_t width = stored_size(input.type == DType::f16 ? DType::f32 : input.type);
    const std::int64_t stride = input.strides[plan_.rank - 1];
    while (count > 0) {
      const std::int64_t within = begin % plan_.row;
      const std::int64_t part = count < plan_.row - within ? count : plan_.row - within;
      gather(copy, input, offset_of(input, begin / plan_.row) + within * stride, stride, part);
      copy += static_cast<std::size_t>(part) * width;
      begin += part;
      count -= part;
    }
  }

  static void gather(char* copy, const PlanInput& input, std::int64_t offset, std::int64_t stride, std::int64_t count) {
    switch (input.type) {
      case DType::f32:
      case DType::i32: gather_as<std::uint32_t>(copy, input.data, offset, stride, count); break;
      case DType::i64: gather_as<std::uint64_t>(copy, input.data, offset, stride, count); break;
      case DType::boolean: gather_as<std::uint8_t>(copy, input.data, offset, stride, count); break;
      case DType::f16: {
        auto* source = reinterpret_cast<const std::uint16_t*>(input.data) + offset;
        auto* target = reinterpret_cast<float*>(copy);
        for (std::int64_t i = 0; i < count; ++i) target[i] = V::from_half(source[i * stride]);
        break;
      }
    }
  }

  template <typename T>
  static void gather_as(char* copy, const char* data, std::int64_t offset, std::int64_t stride, std::int64_t count) {
    const T* source = reinterpret_cast<const T*>(data) + offset;
    T* target = reinterpret_cast<T*>(copy);
    if (stride == 1) {
      std::memcpy(target, source, static_cast<std::size_t>(count) * sizeof(T));
    } else if (stride == 0) {
      const T value = *source;
      for (std::int64_t i = 0; i < count; ++i) target[i] = value;
    } else {
      for (std::int64_t i = 0; i < count; ++i) target[i] = source[i * stride];
    }
  }

  void store(std::size_t index, std::int64_t begin, std::int64_t count, bool whole) {
    const std::uint16_t step = plan_.output_steps[index];
    const DType type = plan_.instructions[step].result;
    const void* held = target_of(step, begin, whole);
    char* target = plan_.targets[index] + begin * static_cast<std::int64_t>(stored_size(type));
    if (held == target) return;
    if (type == DType::f16) {
      auto* values = static_cast<const float*>(held);
      auto* halves = reinterpret_cast<std::uint16_t*>(target);
      for (std::int64_t i = 0; i < count; ++i) halves[i] = V::to_half(values[i]);
    } else {
      std::memcpy(target, held, static_cast<std::size_t>(count) * stored_size(type));
    }
  }

  const Plan& plan_;
  char* memory_;
};

}  // namespace

namespace VARIANT {

void run(const Plan& plan, std::int64_t begin, std::int64_t end) { Worker(plan).run(begin, end); }

}  // namespace VARIANT
}  // namespace onnxopt::elementwise
