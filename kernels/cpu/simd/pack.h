// Packs: a few vectors that run through a function together, operation by operation, so that the processor always finds independent
// work while it waits for a result. The including file has defined `struct V`, the vectors of its instruction set.
#pragma once

#include <cstddef>

namespace onnxopt::simd {
namespace {

constexpr std::size_t W = V::kWidth;

template <int N>
struct Pack {
  V::F v[N];
};

/// A truth value for each element.
template <int N>
struct Mask {
  V::M v[N];
};

#define PACK_FUNCTION(name, result, parameters, expression)                  \
  template <int N>                                                           \
  inline result<N> name parameters {                                         \
    result<N> r;                                                             \
    _Pragma("GCC unroll 8") for (int i = 0; i < N; ++i) r.v[i] = expression; \
    return r;                                                                \
  }

PACK_FUNCTION(operator+, Pack, (Pack<N> a, Pack<N> b), V::add(a.v[i], b.v[i]))
PACK_FUNCTION(operator-, Pack, (Pack<N> a, Pack<N> b), V::sub(a.v[i], b.v[i]))
PACK_FUNCTION(operator*, Pack, (Pack<N> a, Pack<N> b), V::mul(a.v[i], b.v[i]))
PACK_FUNCTION(operator/, Pack, (Pack<N> a, Pack<N> b), V::div(a.v[i], b.v[i]))
PACK_FUNCTION(operator-, Pack, (Pack<N> a), V::negate(a.v[i]))
PACK_FUNCTION(fma, Pack, (Pack<N> a, Pack<N> b, Pack<N> c), V::fma(a.v[i], b.v[i], c.v[i]))
/// a b - c
PACK_FUNCTION(fms, Pack, (Pack<N> a, Pack<N> b, Pack<N> c), V::fms(a.v[i], b.v[i], c.v[i]))
/// c - a b
PACK_FUNCTION(fnma, Pack, (Pack<N> a, Pack<N> b, Pack<N> c), V::fnma(a.v[i], b.v[i], c.v[i]))
PACK_FUNCTION(inverse, Pack, (Pack<N> a), V::inverse(a.v[i]))
PACK_FUNCTION(sqrt, Pack, (Pack<N> a), V::sqrt(a.v[i]))
PACK_FUNCTION(abs, Pack, (Pack<N> a), V::abs(a.v[i]))
PACK_FUNCTION(floor, Pack, (Pack<N> a), V::floor(a.v[i]))
PACK_FUNCTION(ceil, Pack, (Pack<N> a), V::ceil(a.v[i]))
PACK_FUNCTION(round, Pack, (Pack<N> a), V::round(a.v[i]))
/// The second operand when one is NaN.
PACK_FUNCTION(min, Pack, (Pack<N> a, Pack<N> b), V::min(a.v[i], b.v[i]))
PACK_FUNCTION(max, Pack, (Pack<N> a, Pack<N> b), V::max(a.v[i], b.v[i]))
PACK_FUNCTION(copysign, Pack, (Pack<N> a, Pack<N> b), V::copysign(a.v[i], b.v[i]))
PACK_FUNCTION(scale, Pack, (Pack<N> p, Pack<N> n), V::scale(p.v[i], n.v[i]))
PACK_FUNCTION(round_to_half, Pack, (Pack<N> a), V::round_to_half(a.v[i]))
PACK_FUNCTION(operator<, Mask, (Pack<N> a, Pack<N> b), V::less(a.v[i], b.v[i]))
PACK_FUNCTION(operator>, Mask, (Pack<N> a, Pack<N> b), V::greater(a.v[i], b.v[i]))
PACK_FUNCTION(operator==, Mask, (Pack<N> a, Pack<N> b), V::equal(a.v[i], b.v[i]))
PACK_FUNCTION(unordered, Mask, (Pack<N> a), V::unordered(a.v[i]))
PACK_FUNCTION(select, Pack, (Mask<N> m, Pack<N> a, Pack<N> b), V::select(m.v[i], a.v[i], b.v[i]))
#undef PACK_FUNCTION

template <class F>
inline F splat(float x) {
  F r;
  for (auto& one : r.v) one = V::set1(x);
  return r;
}

template <int N>
inline void split(Pack<N> x, Pack<N>& m, Pack<N>& e) {
  for (int i = 0; i < N; ++i) V::split(x.v[i], m.v[i], e.v[i]);
}

/// A function of so many vectors at a time: one that needs many registers.
template <int P, int N, class Body>
inline Pack<N> in_parts(Pack<N> x, Body body) {
  static_assert(N % P == 0);
  Pack<N> r;
  for (int i = 0; i < N; i += P) {
    Pack<P> part;
    for (int k = 0; k < P; ++k) part.v[k] = x.v[i + k];
    part = body(part);
    for (int k = 0; k < P; ++k) r.v[i + k] = part.v[k];
  }
  return r;
}

/// `V::lookup` and `V::half_octave`, for vectors that have tables.
template <int N, std::size_t K, class Vectors = V>
inline Pack<N> lookup(const float (&table)[K], Pack<N> x) {
  Pack<N> r;
  _Pragma("GCC unroll 8") for (int i = 0; i < N; ++i) r.v[i] = Vectors::lookup(table, x.v[i]);
  return r;
}

template <int N, class Vectors = V>
inline Pack<N> half_octave(Pack<N> x) {
  Pack<N> r;
  _Pragma("GCC unroll 8") for (int i = 0; i < N; ++i) r.v[i] = Vectors::half_octave(x.v[i]);
  return r;
}

/// Vectors `distance` elements apart; a distance of 0 repeats the first.
template <class F>
inline F load(const float* p, std::size_t distance) {
  F r;
  for (auto& one : r.v) {
    one = V::load(p);
    p += distance;
  }
  return r;
}

template <int N>
inline void store(float* p, Pack<N> x) {
  for (int i = 0; i < N; ++i) V::store(p + static_cast<std::size_t>(i) * W, x.v[i]);
}

}  // namespace
}  // namespace onnxopt::simd
