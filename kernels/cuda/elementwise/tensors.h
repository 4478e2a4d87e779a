// The tensors of one launch, and how a thread reads and writes its elements of them.
#pragma once

#include "kernels/cuda/elementwise/functions.h"

namespace onnxopt::elementwise {

enum class DType : std::uint8_t;

namespace cuda {

/// How an input is walked through along the domain.
enum class Walk : std::uint8_t {
  kRepeated,    // one element, all strides are 0
  kContiguous,  // element by element, as the domain
  kRows,        // the elements of a thread lie in one row, a stride apart
  kAny,
};

template <int Rank>
struct Input {
  const void* data;
  DType type;
  Walk walk;
  bool vector;                 // the elements of a thread are contiguous and aligned
  std::int64_t strides[Rank];  // in elements, per dim; 0 where broadcast
};

struct Output {
  void* data;
  DType type;
  bool vector;
};

/// A dim, and how to divide by it: n / size = (mulhi(n, multiplier) + n) >> shift for n below 2^31 (Granlund and Montgomery,
/// "Division by Invariant Integers using Multiplication").
struct Dim {
  std::int64_t size;
  std::uint32_t multiplier, shift;
};

template <int Inputs, int Outputs, int Rank>
struct Tensors {
  static constexpr unsigned kInputs = Inputs, kOutputs = Outputs, kRank = Rank;
  using Input = cuda::Input<Rank>;

  Input inputs[Inputs];
  Output outputs[Outputs];
  Dim dims[Rank];  // innermost last
  std::int64_t elements;
  std::uint16_t rank;
  bool narrow;  // elements can be numbered with 31 bits
};

/// Of nearly all programs, and of every program.
using SmallTensors = Tensors<16, 8, 6>;
using LargeTensors = Tensors<32, 16, 16>;

// --- memory ---
/// What one instruction moves.
template <int Bytes>
struct alignas(Bytes) Chunk {
  std::uint32_t parts[Bytes / 4];
};
template <>
struct alignas(2) Chunk<2> {
  std::uint16_t part;
};
template <>
struct alignas(1) Chunk<1> {
  std::uint8_t part;
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

ONNXOPT_DEVICE std::int64_t divide(std::int64_t n, const Dim& dim, bool narrow) {
  if (!narrow) return n / dim.size;
  const auto low = static_cast<std::uint32_t>(n);
  const auto high = static_cast<std::uint32_t>(static_cast<std::uint64_t>(low) * dim.multiplier >> 32);
  return (high + low) >> dim.shift;
}

/// Where an element of the domain lies in an input.
template <class Domain>
ONNXOPT_DEVICE std::int64_t offset_of(const Domain& domain, const typename Domain::Input& input, std::int64_t element) {
  std::int64_t offset = 0;
  for (int axis = domain.rank - 1; axis > 0; --axis) {
    const std::int64_t rest = divide(element, domain.dims[axis], domain.narrow);
    offset += (element - rest * domain.dims[axis].size) * input.strides[axis];
    element = rest;
  }
  return offset + element * input.strides[0];
}

/// Where the elements of a thread lie in an input. Behind the last one the first is repeated, so that all can be read.
template <int E>
struct Places {
  std::int64_t at[E];
};

template <int E, class Domain>
ONNXOPT_DEVICE Places<E> find_places(const Domain& domain, const typename Domain::Input& input, std::int64_t first, int count) {
  const bool contiguous = input.walk == Walk::kContiguous;
  const std::int64_t start = contiguous ? first : input.walk == Walk::kRepeated ? 0 : offset_of(domain, input, first);
  const std::int64_t stride = contiguous ? 1 : input.strides[domain.rank - 1];
  Places<E> places;
  ONNXOPT_UNROLL for (int k = 0; k < E; ++k) {
    const bool elsewhere = input.walk == Walk::kAny && k > 0 && k < count;
    places.at[k] = elsewhere ? offset_of(domain, input, first + k) : k < count ? start + k * stride : start;
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

template <class T, int E>
ONNXOPT_DEVICE void write_elements(const Output& output, std::int64_t first, int count, const Vector<T, E>& vector) {
  T* target = static_cast<T*>(output.data) + first;
  if (output.vector && count == E)
    vector.write(target);
  else
    ONNXOPT_UNROLL for (int k = 0; k < E; ++k) if (k < count) target[k] = vector.values[k];
}

/// The same as a call, so that what few inputs need is not written for each of their elements.
template <class Domain>
ONNXOPT_APART std::int64_t find_offset(const Domain& domain, const typename Domain::Input& input, std::int64_t element) {
  return offset_of(domain, input, element);
}

/// An input's elements of a thread.
template <class T, int E, class Domain>
ONNXOPT_DEVICE Vector<T, E> read_input(const Domain& domain, int number, std::int64_t first, int count) {
  const auto& input = domain.inputs[number];
  const bool known = input.walk == Walk::kContiguous || input.walk == Walk::kRepeated;
  const std::int64_t stride = input.walk == Walk::kContiguous ? 1 : input.strides[domain.rank - 1];
  Places<E> places;
  places.at[0] = known ? first * stride : find_offset(domain, input, first);
  ONNXOPT_UNROLL for (int k = 1; k < E; ++k) {
    places.at[k] = places.at[0] + (k < count ? k * stride : 0);
    if (input.walk == Walk::kAny && k < count) places.at[k] = find_offset(domain, input, first + k);
  }
  return read_elements<T, E>(input, places, count);
}

/// Elements of a thread that begin at `first`, at most `E`.
template <int E>
ONNXOPT_DEVICE int count_from(std::int64_t first, std::int64_t elements) {
  return elements - first < E ? static_cast<int>(elements - first) : E;
}

}  // namespace cuda
}  // namespace onnxopt::elementwise
