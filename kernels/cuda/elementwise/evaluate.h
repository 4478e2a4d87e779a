// The evaluator of one thread. The same code is compiled for the device and, for tests on any machine, for the host.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/cuda/elementwise/code.h"

#if defined(__CUDACC__)
#define ONNXOPT_DEVICE __host__ __device__ __forceinline__
#else
#define ONNXOPT_DEVICE inline
#endif
#if defined(__CUDA_ARCH__)
#define ONNXOPT_UNROLL _Pragma("unroll")
#else
#define ONNXOPT_UNROLL
#endif

namespace onnxopt::elementwise::cuda {

/// The values of a thread's elements. A word holds a float, an integer, or 0 or 1; float16 is held as float.
template <class W, int E>
struct Lanes {
  using Word = W;
  static constexpr int kCount = E;
  W words[E];
};

template <class To, class From>
ONNXOPT_DEVICE To bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

template <class T, class W>
struct Held {
  static ONNXOPT_DEVICE T get(W word) { return static_cast<T>(word); }
};
template <class W>
struct Held<float, W> {
  static ONNXOPT_DEVICE float get(W word) { return bits<float>(static_cast<std::uint32_t>(word)); }
};
template <class W>
struct Held<bool, W> {
  static ONNXOPT_DEVICE bool get(W word) { return word != 0; }
};

template <class W>
ONNXOPT_DEVICE W word_of(float value) {
  return bits<std::uint32_t>(value);
}
template <class W>
ONNXOPT_DEVICE W word_of(std::int32_t value) {
  return static_cast<std::uint32_t>(value);
}
template <class W>
ONNXOPT_DEVICE W word_of(std::int64_t value) {
  return static_cast<W>(value);
}
template <class W>
ONNXOPT_DEVICE W word_of(bool value) {
  return value ? 1 : 0;
}

template <class T, class L, class F>
ONNXOPT_DEVICE L map(const L& a, F f) {
  using W = typename L::Word;
  L result;
  ONNXOPT_UNROLL for (int k = 0; k < L::kCount; ++k) result.words[k] = word_of<W>(f(Held<T, W>::get(a.words[k])));
  return result;
}

template <class T, class L, class F>
ONNXOPT_DEVICE L map(const L& a, const L& b, F f) {
  using W = typename L::Word;
  L result;
  ONNXOPT_UNROLL for (int k = 0; k < L::kCount; ++k) result.words[k] =
      word_of<W>(f(Held<T, W>::get(a.words[k]), Held<T, W>::get(b.words[k])));
  return result;
}

template <class T, class L, class F>
ONNXOPT_DEVICE L map(const L& a, const L& b, const L& c, F f) {
  using W = typename L::Word;
  L result;
  ONNXOPT_UNROLL for (int k = 0; k < L::kCount; ++k) result.words[k] =
      word_of<W>(f(Held<T, W>::get(a.words[k]), Held<T, W>::get(b.words[k]), Held<T, W>::get(c.words[k])));
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

// --- functions of a float; what a comparison with NaN chooses is what the CPU kernel chooses ---
ONNXOPT_DEVICE float lesser(float a, float b) { return a < b ? a : b; }
ONNXOPT_DEVICE float greater(float a, float b) { return a > b ? a : b; }

ONNXOPT_DEVICE float sigmoid(float x) {
  const float e = expf(-fabsf(x));
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}

ONNXOPT_DEVICE float silu(float x) {
  const float e = expf(-fabsf(x));
  return (x < 0 ? x * e : x) / (1.0f + e);
}

ONNXOPT_DEVICE float softplus(float x) { return x != x ? x : greater(0.0f, x) + log1pf(expf(-fabsf(x))); }

/// x tanh(softplus(x)) = x n / (n + 2) with n = e^x (e^x + 2).
ONNXOPT_DEVICE float mish(float x) {
  const float e = expf(lesser(20.0f, x)), n = e * (e + 2.0f);
  return x * (x > 20.0f ? 1.0f : n / (n + 2.0f));
}

ONNXOPT_DEVICE float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.707106769f)); }

ONNXOPT_DEVICE float gelu_tanh(float x) { return 0.5f * x * (1.0f + tanhf(0.797884583f * fmaf(0.044715f, x * x * x, x))); }

ONNXOPT_DEVICE float hard_sigmoid(float x, float alpha, float beta) { return lesser(1.0f, greater(0.0f, x * alpha + beta)); }

ONNXOPT_DEVICE float elu(float x, float alpha) { return x < 0 ? alpha * expm1f(x) : x; }

ONNXOPT_DEVICE float celu(float x, float alpha) { return greater(0.0f, x) + lesser(0.0f, alpha * expm1f(x / alpha)); }

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
ONNXOPT_DEVICE T wrap_add(T a, T b) {
  using U = typename Wrapping<T>::Unsigned;
  return static_cast<T>(static_cast<U>(a) + static_cast<U>(b));
}
template <class T>
ONNXOPT_DEVICE T wrap_sub(T a, T b) {
  using U = typename Wrapping<T>::Unsigned;
  return static_cast<T>(static_cast<U>(a) - static_cast<U>(b));
}
template <class T>
ONNXOPT_DEVICE T wrap_mul(T a, T b) {
  using U = typename Wrapping<T>::Unsigned;
  return static_cast<T>(static_cast<U>(a) * static_cast<U>(b));
}
template <class T>
ONNXOPT_DEVICE T safe_div(T a, T b) {
  if (b == 0) return 0;
  return b == -1 ? wrap_sub<T>(0, a) : static_cast<T>(a / b);
}

/// What does not fit becomes the lowest integer.
template <class T>
ONNXOPT_DEVICE T to_integer(float x) {
  constexpr float limit = Wrapping<T>::kLimit;
  return x >= -limit && x < limit ? static_cast<T>(x) : Wrapping<T>::kLowest;
}

// --- one operation ---
template <class T, class L>
ONNXOPT_DEVICE L compare(Op op, const L& a, const L& b, const L& c) {
  switch (op) {
    case Op::k_equal: return map<T>(a, b, [](T x, T y) { return x == y; });
    case Op::k_less: return map<T>(a, b, [](T x, T y) { return x < y; });
    case Op::k_less_equal: return map<T>(a, b, [](T x, T y) { return x <= y; });
    case Op::k_greater: return map<T>(a, b, [](T x, T y) { return x > y; });
    case Op::k_greater_equal: return map<T>(a, b, [](T x, T y) { return x >= y; });
    case Op::k_cast_bool: return map<T>(a, [](T x) { return x != 0; });
    case Op::k_where: {
      L result;
      ONNXOPT_UNROLL for (int k = 0; k < L::kCount; ++k) result.words[k] = a.words[k] ? b.words[k] : c.words[k];
      return result;
    }
    default: return a;  // a cast to the same type
  }
}

template <class L>
ONNXOPT_DEVICE L apply_to_floats(Op op, const L& a, const L& b, const L& c) {
  switch (op) {
    case Op::k_neg: return map<float>(a, [](float x) { return -x; });
    case Op::k_abs: return map<float>(a, [](float x) { return fabsf(x); });
    case Op::k_sign: return map<float>(a, [](float x) { return x > 0 ? 1.0f : x < 0 ? -1.0f : x; });
    case Op::k_sqrt: return map<float>(a, [](float x) { return sqrtf(x); });
    case Op::k_reciprocal: return map<float>(a, [](float x) { return 1.0f / x; });
    case Op::k_exp: return map<float>(a, [](float x) { return expf(x); });
    case Op::k_log: return map<float>(a, [](float x) { return logf(x); });
    case Op::k_sigmoid: return map<float>(a, [](float x) { return sigmoid(x); });
    case Op::k_tanh: return map<float>(a, [](float x) { return tanhf(x); });
    case Op::k_erf: return map<float>(a, [](float x) { return erff(x); });
    case Op::k_relu: return map<float>(a, [](float x) { return greater(0.0f, x); });
    case Op::k_floor: return map<float>(a, [](float x) { return floorf(x); });
    case Op::k_ceil: return map<float>(a, [](float x) { return ceilf(x); });
    case Op::k_round: return map<float>(a, [](float x) { return rintf(x); });
    case Op::k_softplus: return map<float>(a, [](float x) { return softplus(x); });
    case Op::k_softsign: return map<float>(a, [](float x) { return x / (1.0f + fabsf(x)); });
    case Op::k_gelu: return map<float>(a, [](float x) { return gelu(x); });
    case Op::k_gelu_tanh: return map<float>(a, [](float x) { return gelu_tanh(x); });
    case Op::k_hard_swish: return map<float>(a, [](float x) { return x * hard_sigmoid(x, 1.0f / 6.0f, 0.5f); });
    case Op::k_mish: return map<float>(a, [](float x) { return mish(x); });
    case Op::k_silu: return map<float>(a, [](float x) { return silu(x); });
    case Op::k_isnan: return map<float>(a, [](float x) { return x != x; });
    case Op::k_isinf: return map<float>(a, [](float x) { return fabsf(x) == INFINITY; });
    case Op::k_leaky_relu: return map<float>(a, b, [](float x, float alpha) { return x < 0 ? x * alpha : x; });
    case Op::k_elu: return map<float>(a, b, [](float x, float alpha) { return elu(x, alpha); });
    case Op::k_celu: return map<float>(a, b, [](float x, float alpha) { return celu(x, alpha); });
    case Op::k_selu: return map<float>(a, b, c, [](float x, float alpha, float gamma) { return gamma * elu(x, alpha); });
    case Op::k_hard_sigmoid: return map<float>(a, b, c, [](float x, float s, float t) { return hard_sigmoid(x, s, t); });
    case Op::k_thresholded_relu: return map<float>(a, b, [](float x, float alpha) { return x > alpha ? x : 0.0f; });
    case Op::k_add: return map<float>(a, b, [](float x, float y) { return x + y; });
    case Op::k_sub: return map<float>(a, b, [](float x, float y) { return x - y; });
    case Op::k_mul: return map<float>(a, b, [](float x, float y) { return x * y; });
    case Op::k_div: return map<float>(a, b, [](float x, float y) { return x / y; });
    case Op::k_min: return map<float>(a, b, [](float x, float y) { return x != x ? x : lesser(x, y); });
    case Op::k_max: return map<float>(a, b, [](float x, float y) { return x != x ? x : greater(x, y); });
    case Op::k_pow: return map<float>(a, b, [](float x, float y) { return powf(x, y); });
    case Op::k_clip: return map<float>(a, b, c, [](float x, float low, float high) { return lesser(high, greater(low, x)); });
    case Op::k_cast_i32: return map<float>(a, [](float x) { return to_integer<std::int32_t>(x); });
    case Op::k_cast_i64:
      if constexpr (sizeof(typename L::Word) == 8)
        return map<float>(a, [](float x) { return to_integer<std::int64_t>(x); });
      else
        return a;
    default: return compare<float>(op, a, b, c);
  }
}

template <class T, class L>
ONNXOPT_DEVICE L apply_to_integers(Op op, const L& a, const L& b, const L& c) {
  switch (op) {
    case Op::k_neg: return map<T>(a, [](T x) { return wrap_sub<T>(0, x); });
    case Op::k_abs: return map<T>(a, [](T x) { return x < 0 ? wrap_sub<T>(0, x) : x; });
    case Op::k_sign: return map<T>(a, [](T x) { return static_cast<T>((x > 0) - (x < 0)); });
    case Op::k_add: return map<T>(a, b, [](T x, T y) { return wrap_add(x, y); });
    case Op::k_sub: return map<T>(a, b, [](T x, T y) { return wrap_sub(x, y); });
    case Op::k_mul: return map<T>(a, b, [](T x, T y) { return wrap_mul(x, y); });
    case Op::k_div: return map<T>(a, b, [](T x, T y) { return safe_div(x, y); });
    case Op::k_min: return map<T>(a, b, [](T x, T y) { return y < x ? y : x; });
    case Op::k_max: return map<T>(a, b, [](T x, T y) { return x < y ? y : x; });
    case Op::k_clip:
      return map<T>(a, b, c, [](T x, T low, T high) {
        const T raised = x < low ? low : x;
        return high < raised ? high : raised;
      });
    case Op::k_cast_f32:
    case Op::k_cast_f16: return map<T>(a, [](T x) { return static_cast<float>(x); });
    case Op::k_cast_i32: return map<T>(a, [](T x) { return static_cast<std::int32_t>(x); });
    case Op::k_cast_i64: return map<T>(a, [](T x) { return static_cast<std::int64_t>(x); });
    default: return compare<T>(op, a, b, c);
  }
}

template <class L>
ONNXOPT_DEVICE L apply_to_booleans(Op op, const L& a, const L& b, const L& c) {
  switch (op) {
    case Op::k_and: return map<bool>(a, b, [](bool x, bool y) { return x && y; });
    case Op::k_or: return map<bool>(a, b, [](bool x, bool y) { return x || y; });
    case Op::k_xor: return map<bool>(a, b, [](bool x, bool y) { return x != y; });
    case Op::k_not: return map<bool>(a, [](bool x) { return !x; });
    case Op::k_equal: return map<bool>(a, b, [](bool x, bool y) { return x == y; });
    case Op::k_cast_f32:
    case Op::k_cast_f16: return map<bool>(a, [](bool x) { return x ? 1.0f : 0.0f; });
    case Op::k_where: return compare<bool>(op, a, b, c);
    default: return a;  // casts to integers: 0 and 1 are held alike in all of them
  }
}

template <class L>
ONNXOPT_DEVICE L apply(const Statement& statement, const L& a, const L& b, const L& c) {
  switch (statement.type) {
    case DType::i32: return apply_to_integers<std::int32_t>(statement.op, a, b, c);
    case DType::i64:
      if constexpr (sizeof(typename L::Word) == 8)
        return apply_to_integers<std::int64_t>(statement.op, a, b, c);
      else
        return a;
    case DType::boolean: return apply_to_booleans(statement.op, a, b, c);
    default: return apply_to_floats(statement.op, a, b, c);
  }
}

// --- memory ---
/// What one instruction moves.
template <std::size_t Bytes>
struct alignas(Bytes) Chunk {
  using Part = std::conditional_t<Bytes >= 4, std::uint32_t, std::conditional_t<Bytes == 2, std::uint16_t, std::uint8_t>>;
  Part parts[Bytes / sizeof(Part)];
};

/// Copies an array whose place in memory is aligned as its size, or to 16 bytes if it is larger.
template <class T, int E>
struct Vector {
  static constexpr int kBytes = sizeof(T) * E, kChunk = kBytes < 16 ? kBytes : 16, kChunks = kBytes / kChunk;
  using C = Chunk<kChunk>;
  union {
    C chunks[kChunks];
    T values[E];
  };

  ONNXOPT_DEVICE void read(const T* source) {
    ONNXOPT_UNROLL for (int i = 0; i < kChunks; ++i) chunks[i] = reinterpret_cast<const C*>(source)[i];
  }
  ONNXOPT_DEVICE void write(T* target) const {
    ONNXOPT_UNROLL for (int i = 0; i < kChunks; ++i) reinterpret_cast<C*>(target)[i] = chunks[i];
  }
};

/// Values that a thread keeps for later statements. Chunks of neighbouring threads lie side by side, so that the banks of shared
/// memory never conflict.
template <class L>
struct Slots {
  void* memory;
  unsigned thread, threads;

  ONNXOPT_DEVICE L get(unsigned slot) const {
    V vector;
    ONNXOPT_UNROLL for (int i = 0; i < V::kChunks; ++i) vector.chunks[i] = *at(slot, i);
    L result;
    ONNXOPT_UNROLL for (int k = 0; k < L::kCount; ++k) result.words[k] = vector.values[k];
    return result;
  }
  ONNXOPT_DEVICE void put(unsigned slot, const L& lanes) const {
    V vector;
    ONNXOPT_UNROLL for (int k = 0; k < L::kCount; ++k) vector.values[k] = lanes.words[k];
    ONNXOPT_UNROLL for (int i = 0; i < V::kChunks; ++i) * at(slot, i) = vector.chunks[i];
  }

 private:
  using V = Vector<typename L::Word, L::kCount>;
  ONNXOPT_DEVICE typename V::C* at(unsigned slot, unsigned chunk) const {
    return static_cast<typename V::C*>(memory) + ((slot * V::kChunks + chunk) * threads + thread);
  }
};

ONNXOPT_DEVICE std::int64_t divide(std::int64_t n, const Dim& dim, bool narrow) {
  if (!narrow) return n / dim.size;
  const auto low = static_cast<std::uint32_t>(n);
  const auto high = static_cast<std::uint32_t>(static_cast<std::uint64_t>(low) * dim.multiplier >> 32);
  return (high + low) >> dim.shift;
}

/// Where an element of the domain lies in an input.
template <class Code>
ONNXOPT_DEVICE std::int64_t offset_of(const Code& code, const typename Code::Input& input, std::int64_t element) {
  std::int64_t offset = 0;
  for (int axis = code.rank - 1; axis > 0; --axis) {
    const std::int64_t rest = divide(element, code.dims[axis], code.narrow);
    offset += (element - rest * code.dims[axis].size) * input.strides[axis];
    element = rest;
  }
  return offset + element * input.strides[0];
}

/// Where the elements of a thread lie in an input. Behind the last one the first is repeated, so that all can be read.
template <int E>
struct Places {
  std::int64_t at[E];
};

template <int E, class Code>
ONNXOPT_DEVICE Places<E> find_places(const Code& code, const typename Code::Input& input, std::int64_t first, int count) {
  const bool contiguous = input.walk == Walk::kContiguous;
  const std::int64_t start = contiguous ? first : input.walk == Walk::kRepeated ? 0 : offset_of(code, input, first);
  const std::int64_t stride = contiguous ? 1 : input.strides[code.rank - 1];
  Places<E> places;
  ONNXOPT_UNROLL for (int k = 0; k < E; ++k) {
    const bool elsewhere = input.walk == Walk::kAny && k > 0 && k < count;
    places.at[k] = elsewhere ? offset_of(code, input, first + k) : k < count ? start + k * stride : start;
  }
  return places;
}

template <class T, int E, class Input>
ONNXOPT_DEVICE Vector<T, E> read_elements(const Input& input, const Places<E>& places, int count) {
  const T* data = static_cast<const T*>(input.data);
  Vector<T, E> vector;
  if (input.vector && count == E) {
    vector.read(data + places.at[0]);
  } else {
    ONNXOPT_UNROLL for (int k = 0; k < E; ++k) vector.values[k] = data[places.at[k]];
  }
  return vector;
}

template <class L, class Code>
ONNXOPT_DEVICE L load(const Code& code, const typename Code::Input& input, std::int64_t first, int count) {
  using W = typename L::Word;
  constexpr int E = L::kCount;
  const Places<E> places = find_places<E>(code, input, first, count);
  L lanes;
  switch (input.type) {
    case DType::f16: {
      const auto read = read_elements<std::uint16_t, E>(input, places, count);
      ONNXOPT_UNROLL for (int k = 0; k < E; ++k) lanes.words[k] = word_of<W>(from_half(read.values[k]));
      return lanes;
    }
    case DType::boolean: {
      const auto read = read_elements<std::uint8_t, E>(input, places, count);
      ONNXOPT_UNROLL for (int k = 0; k < E; ++k) lanes.words[k] = word_of<W>(read.values[k] != 0);
      return lanes;
    }
    case DType::i64:
      if constexpr (sizeof(W) == 8) {
        const auto read = read_elements<std::uint64_t, E>(input, places, count);
        ONNXOPT_UNROLL for (int k = 0; k < E; ++k) lanes.words[k] = read.values[k];
        return lanes;
      }
      [[fallthrough]];
    default: {
      const auto read = read_elements<std::uint32_t, E>(input, places, count);
      ONNXOPT_UNROLL for (int k = 0; k < E; ++k) lanes.words[k] = read.values[k];
      return lanes;
    }
  }
}

template <class T, int E>
ONNXOPT_DEVICE void write_elements(const Output& output, std::int64_t first, int count, const Vector<T, E>& vector) {
  T* target = static_cast<T*>(output.data) + first;
  if (output.vector && count == E)
    vector.write(target);
  else
    ONNXOPT_UNROLL for (int k = 0; k < E; ++k) if (k < count) target[k] = vector.values[k];
}

template <class L>
ONNXOPT_DEVICE void store(const Output& output, std::int64_t first, int count, const L& lanes) {
  constexpr int E = L::kCount;
  switch (output.type) {
    case DType::f16: {
      Vector<std::uint16_t, E> vector;
      ONNXOPT_UNROLL for (int k = 0; k < E; ++k) vector.values[k] =
          to_half(bits<float>(static_cast<std::uint32_t>(lanes.words[k])));
      return write_elements(output, first, count, vector);
    }
    case DType::boolean: {
      Vector<std::uint8_t, E> vector;
      ONNXOPT_UNROLL for (int k = 0; k < E; ++k) vector.values[k] = static_cast<std::uint8_t>(lanes.words[k]);
      return write_elements(output, first, count, vector);
    }
    case DType::i64:
      if constexpr (sizeof(typename L::Word) == 8) {
        Vector<std::uint64_t, E> vector;
        ONNXOPT_UNROLL for (int k = 0; k < E; ++k) vector.values[k] = lanes.words[k];
        return write_elements(output, first, count, vector);
      }
      [[fallthrough]];
    default: {
      Vector<std::uint32_t, E> vector;
      ONNXOPT_UNROLL for (int k = 0; k < E; ++k) vector.values[k] = static_cast<std::uint32_t>(lanes.words[k]);
      return write_elements(output, first, count, vector);
    }
  }
}

// --- the program ---
template <class L, class Code>
ONNXOPT_DEVICE L read_operand(const Code& code, const Slots<L>& slots, std::uint16_t operand, const L& at_hand) {
  if (operand == Statement::kAtHand) return at_hand;
  if (operand < Statement::kScalar) return slots.get(operand);
  const auto scalar = static_cast<typename L::Word>(code.scalars[operand - Statement::kScalar]);
  L lanes;
  ONNXOPT_UNROLL for (int k = 0; k < L::kCount; ++k) lanes.words[k] = scalar;
  return lanes;
}

/// Runs all statements for the elements of a thread, which begin at `first`, and returns the last result. `taken` are the results
/// of a kernel that the program is part of.
template <class L, class Code>
ONNXOPT_DEVICE L evaluate(const Code& code, const Slots<L>& slots, std::int64_t first, const L* taken = nullptr) {
  const std::int64_t left = code.elements - first;
  const int count = left < L::kCount ? static_cast<int>(left) : L::kCount;
  L at_hand = {};
  for (int i = 0; i < code.statement_count; ++i) {
    const Statement statement = code.statements[i];
    if (statement.kind == Statement::kStore) {
      store(code.outputs[statement.tensor], first, count, at_hand);
      continue;
    }
    if (statement.kind == Statement::kLoad) {
      at_hand = load<L>(code, code.inputs[statement.tensor], first, count);
    } else if (statement.kind == Statement::kTake) {
      at_hand = taken[statement.tensor];
    } else {
      const L a = read_operand(code, slots, statement.operands[0], at_hand);
      const L b = read_operand(code, slots, statement.operands[1], at_hand);
      const L c = read_operand(code, slots, statement.operands[2], at_hand);
      at_hand = apply(statement, a, b, c);
    }
    if (statement.half) at_hand = map<float>(at_hand, [](float x) { return from_half(to_half(x)); });
    if (statement.target != Statement::kNowhere) slots.put(statement.target, at_hand);
  }
  return at_hand;
}

/// What one of `threads` threads does, which share the elements.
template <class L, class Code>
ONNXOPT_DEVICE void run_thread(const Code& code, const Slots<L>& slots, std::int64_t thread, std::int64_t threads) {
  for (std::int64_t first = thread * L::kCount; first < code.elements; first += threads * L::kCount) evaluate(code, slots, first);
}

}  // namespace onnxopt::elementwise::cuda
