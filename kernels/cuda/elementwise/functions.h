// The operations of expressions on single values: `op_NAME` for every operation of `ops.inc`. The interpreter calls them, and so
// does the source that is made of an expression; the same code is compiled by nvcc, by NVRTC, which has no headers but those that
// it is given, and, for tests on any machine, for the host.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define ONNXOPT_DEVICE __host__ __device__ __forceinline__
#define ONNXOPT_APART __host__ __device__ __noinline__
#else
#define ONNXOPT_DEVICE inline
#define ONNXOPT_APART inline
#endif
#if defined(__CUDA_ARCH__)
#define ONNXOPT_UNROLL _Pragma("unroll")
#else
#define ONNXOPT_UNROLL
#endif

namespace onnxopt::elementwise::cuda {

template <class To, class From>
ONNXOPT_DEVICE To bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

// --- float16 ---
ONNXOPT_DEVICE float from_half(std::uint16_t half) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(half));
  return result;
#else
  const std::uint32_t magnitude = half & 0x7fffu;
  // A float with the exponent field of a half is too small by the difference of the biases; that makes subnormals right as well.
  const float scaled = bits<float>(magnitude << 13) * 0x1p112f;
  const float value = magnitude < 0x7c00u ? scaled : bits<float>(0x7f800000u | magnitude << 13);
  return std::copysign(value, half & 0x8000u ? -1.0f : 1.0f);
#endif
}

/// Rounds to nearest even.
ONNXOPT_DEVICE std::uint16_t to_half(float value) {
#if defined(__CUDA_ARCH__)
  std::uint16_t result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result) : "f"(value));
  return result;
#else
  const auto pattern = bits<std::uint32_t>(value);
  const std::uint32_t sign = pattern >> 16 & 0x8000u, magnitude = pattern & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u)
    half = 0x7e00u;
  else if (magnitude >= 0x477ff000u)  // rounds to 2^16
    half = 0x7c00u;
  else if (magnitude < 0x38800000u)  // subnormal: the addition rounds at its last bit
    half = bits<std::uint32_t>(bits<float>(magnitude) + 0.5f) - 0x3f000000u;
  else
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  return static_cast<std::uint16_t>(sign | half);
#endif
}

ONNXOPT_DEVICE float round_to_half(float value) { return from_half(to_half(value)); }

// --- bfloat16, the upper half of a float ---
ONNXOPT_DEVICE float from_brain(std::uint16_t brain) { return bits<float>(static_cast<std::uint32_t>(brain) << 16); }

/// Rounds to nearest even.
ONNXOPT_DEVICE std::uint16_t to_brain(float value) {
  const auto word = bits<std::uint32_t>(value);
  if (value != value) return static_cast<std::uint16_t>(word >> 16 | 0x40u);
  return static_cast<std::uint16_t>((word + 0x7fffu + (word >> 16 & 1u)) >> 16);
}

ONNXOPT_DEVICE float round_to_brain(float value) { return from_brain(to_brain(value)); }

/// Elements of two bytes: bfloat16, or else float16.
ONNXOPT_DEVICE float from_two_bytes(std::uint16_t value, bool brain) { return brain ? from_brain(value) : from_half(value); }
ONNXOPT_DEVICE std::uint16_t to_two_bytes(float value, bool brain) { return brain ? to_brain(value) : to_half(value); }

// --- functions of a float; what a comparison with NaN chooses is what the CPU kernel chooses ---
ONNXOPT_DEVICE float lesser(float a, float b) { return a < b ? a : b; }
ONNXOPT_DEVICE float greater(float a, float b) { return a > b ? a : b; }

ONNXOPT_DEVICE float op_sigmoid(float x) {
  const float e = expf(-fabsf(x));
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}

ONNXOPT_DEVICE float op_silu(float x) {
  const float e = expf(-fabsf(x));
  return (x < 0 ? x * e : x) / (1.0f + e);
}

ONNXOPT_DEVICE float op_softplus(float x) { return x != x ? x : greater(0.0f, x) + log1pf(expf(-fabsf(x))); }

/// x tanh(softplus(x)) = x n / (n + 2) with n = e^x (e^x + 2).
ONNXOPT_DEVICE float op_mish(float x) {
  const float e = expf(lesser(20.0f, x)), n = e * (e + 2.0f);
  return x * (x > 20.0f ? 1.0f : n / (n + 2.0f));
}

ONNXOPT_DEVICE float op_gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.707106769f)); }

ONNXOPT_DEVICE float op_gelu_tanh(float x) { return 0.5f * x * (1.0f + tanhf(0.797884583f * fmaf(0.044715f, x * x * x, x))); }

ONNXOPT_DEVICE float op_hard_sigmoid(float x, float alpha, float beta) { return lesser(1.0f, greater(0.0f, x * alpha + beta)); }

ONNXOPT_DEVICE float op_elu(float x, float alpha) { return x < 0 ? alpha * expm1f(x) : x; }

ONNXOPT_DEVICE float op_celu(float x, float alpha) { return greater(0.0f, x) + lesser(0.0f, alpha * expm1f(x / alpha)); }

ONNXOPT_DEVICE float op_sqrt(float x) { return sqrtf(x); }
ONNXOPT_DEVICE float op_reciprocal(float x) { return 1.0f / x; }
ONNXOPT_DEVICE float op_exp(float x) { return expf(x); }
ONNXOPT_DEVICE float op_log(float x) { return logf(x); }
ONNXOPT_DEVICE float op_tanh(float x) { return tanhf(x); }
ONNXOPT_DEVICE float op_erf(float x) { return erff(x); }
ONNXOPT_DEVICE float op_relu(float x) { return greater(0.0f, x); }
ONNXOPT_DEVICE float op_floor(float x) { return floorf(x); }
ONNXOPT_DEVICE float op_ceil(float x) { return ceilf(x); }
ONNXOPT_DEVICE float op_round(float x) { return rintf(x); }
ONNXOPT_DEVICE float op_softsign(float x) { return x / (1.0f + fabsf(x)); }
ONNXOPT_DEVICE float op_hard_swish(float x) { return x * op_hard_sigmoid(x, 1.0f / 6.0f, 0.5f); }
ONNXOPT_DEVICE bool op_isnan(float x) { return x != x; }
ONNXOPT_DEVICE bool op_isinf(float x) { return fabsf(x) == INFINITY; }
ONNXOPT_DEVICE float op_leaky_relu(float x, float alpha) { return x < 0 ? x * alpha : x; }
ONNXOPT_DEVICE float op_selu(float x, float alpha, float gamma) { return gamma * op_elu(x, alpha); }
ONNXOPT_DEVICE float op_thresholded_relu(float x, float alpha) { return x > alpha ? x : 0.0f; }
ONNXOPT_DEVICE float op_pow(float x, float y) { return powf(x, y); }

ONNXOPT_DEVICE float op_neg(float x) { return -x; }
ONNXOPT_DEVICE float op_abs(float x) { return fabsf(x); }
ONNXOPT_DEVICE float op_sign(float x) { return x > 0 ? 1.0f : x < 0 ? -1.0f : x; }
ONNXOPT_DEVICE float op_add(float x, float y) { return x + y; }
ONNXOPT_DEVICE float op_sub(float x, float y) { return x - y; }
ONNXOPT_DEVICE float op_mul(float x, float y) { return x * y; }
ONNXOPT_DEVICE float op_div(float x, float y) { return x / y; }
ONNXOPT_DEVICE float op_min(float x, float y) { return x != x ? x : lesser(x, y); }
ONNXOPT_DEVICE float op_max(float x, float y) { return x != x ? x : greater(x, y); }
ONNXOPT_DEVICE float op_clip(float x, float low, float high) { return lesser(high, greater(low, x)); }

// --- integers: arithmetic wraps, division by zero gives zero ---
template <class T>
struct Wrapping;
template <>
struct Wrapping<std::int32_t> {
  using Unsigned = std::uint32_t;
  static constexpr std::int32_t kLowest = INT32_MIN;
  static constexpr float kLimit = 0x1p31f;
};
template <>
struct Wrapping<std::int64_t> {
  using Unsigned = std::uint64_t;
  static constexpr std::int64_t kLowest = INT64_MIN;
  static constexpr float kLimit = 0x1p63f;
};

template <class T>
ONNXOPT_DEVICE T op_add(T a, T b) {
  using U = typename Wrapping<T>::Unsigned;
  return static_cast<T>(static_cast<U>(a) + static_cast<U>(b));
}
template <class T>
ONNXOPT_DEVICE T op_sub(T a, T b) {
  using U = typename Wrapping<T>::Unsigned;
  return static_cast<T>(static_cast<U>(a) - static_cast<U>(b));
}
template <class T>
ONNXOPT_DEVICE T op_mul(T a, T b) {
  using U = typename Wrapping<T>::Unsigned;
  return static_cast<T>(static_cast<U>(a) * static_cast<U>(b));
}
template <class T>
ONNXOPT_DEVICE T op_neg(T x) {
  return op_sub<T>(0, x);
}
template <class T>
ONNXOPT_DEVICE T op_abs(T x) {
  return x < 0 ? op_neg(x) : x;
}
template <class T>
ONNXOPT_DEVICE T op_sign(T x) {
  return static_cast<T>((x > 0) - (x < 0));
}
template <class T>
ONNXOPT_DEVICE T op_div(T a, T b) {
  if (b == 0) return 0;
  return b == -1 ? op_neg(a) : static_cast<T>(a / b);
}

template <class T>
ONNXOPT_DEVICE T op_min(T x, T y) {
  return y < x ? y : x;
}
template <class T>
ONNXOPT_DEVICE T op_max(T x, T y) {
  return x < y ? y : x;
}
template <class T>
ONNXOPT_DEVICE T op_clip(T x, T low, T high) {
  const T raised = x < low ? low : x;
  return high < raised ? high : raised;
}

/// What does not fit becomes the lowest integer.
template <class T>
ONNXOPT_DEVICE T to_integer(float x) {
  constexpr float limit = Wrapping<T>::kLimit;
  return x >= -limit && x < limit ? static_cast<T>(x) : Wrapping<T>::kLowest;
}

// --- all types ---
template <class T>
ONNXOPT_DEVICE bool op_equal(T x, T y) {
  return x == y;
}
template <class T>
ONNXOPT_DEVICE bool op_less(T x, T y) {
  return x < y;
}
template <class T>
ONNXOPT_DEVICE bool op_less_equal(T x, T y) {
  return x <= y;
}
template <class T>
ONNXOPT_DEVICE bool op_greater(T x, T y) {
  return x > y;
}
template <class T>
ONNXOPT_DEVICE bool op_greater_equal(T x, T y) {
  return x >= y;
}
template <class T>
ONNXOPT_DEVICE T op_where(bool condition, T x, T y) {
  return condition ? x : y;
}
ONNXOPT_DEVICE bool op_and(bool x, bool y) { return x && y; }
ONNXOPT_DEVICE bool op_or(bool x, bool y) { return x || y; }
ONNXOPT_DEVICE bool op_xor(bool x, bool y) { return x != y; }
ONNXOPT_DEVICE bool op_not(bool x) { return !x; }

template <class T>
ONNXOPT_DEVICE float op_cast_f32(T x) {
  return static_cast<float>(x);
}
template <class T>
ONNXOPT_DEVICE float op_cast_f16(T x) {  // float16 is held as float, and rounded when it was made
  return static_cast<float>(x);
}
template <class T>
ONNXOPT_DEVICE float op_cast_bf16(T x) {
  return static_cast<float>(x);
}
ONNXOPT_DEVICE std::int32_t op_cast_i32(float x) { return to_integer<std::int32_t>(x); }
template <class T>
ONNXOPT_DEVICE std::int32_t op_cast_i32(T x) {
  return static_cast<std::int32_t>(x);
}
ONNXOPT_DEVICE std::int64_t op_cast_i64(float x) { return to_integer<std::int64_t>(x); }
template <class T>
ONNXOPT_DEVICE std::int64_t op_cast_i64(T x) {
  return static_cast<std::int64_t>(x);
}
template <class T>
ONNXOPT_DEVICE bool op_cast_bool(T x) {
  return x != 0;
}

}  // namespace onnxopt::elementwise::cuda
