// What the source of a kernel is written with. It is compiled for a device, and for the host with the fibers of `simt.h`. As for
// files of instruction sets, nothing of it may be shared between the two: a kernel lies in an unnamed namespace.
#pragma once

#include "kernels/cuda/elementwise/evaluate.h"

#if defined(__CUDACC__)
#define ONNXOPT_IN_KERNEL __device__ __forceinline__
/// A function that several kernels call, so that it is compiled once.
#define ONNXOPT_CALLED __device__ __noinline__
#else
#include "kernels/cuda/simt/simt.h"
#define ONNXOPT_IN_KERNEL inline
#define ONNXOPT_CALLED inline
#endif

/// A loop of rare work, whose copies would only take registers from the others.
#if defined(__CUDA_ARCH__)
#define ONNXOPT_ROLLED _Pragma("unroll 1")
#else
#define ONNXOPT_ROLLED
#endif

namespace onnxopt {
namespace {

/// The block's dynamic shared memory.
ONNXOPT_IN_KERNEL void* shared_memory() {
#if defined(__CUDACC__)
  extern __shared__ elementwise::cuda::Chunk<16> memory[];
  return memory;
#else
  return simt::self().shared;
#endif
}

constexpr unsigned kWholeWarp = 0xffffffffu;

/// Neighbouring elements.
template <int E>
struct Floats {
  float values[E];
};

template <int E>
ONNXOPT_IN_KERNEL Floats<E> splat(float value) {
  Floats<E> floats;
  ONNXOPT_UNROLL for (int k = 0; k < E; ++k) floats.values[k] = value;
  return floats;
}

template <class L>
ONNXOPT_IN_KERNEL Floats<L::kCount> floats_of(const L& lanes) {
  Floats<L::kCount> floats;
  ONNXOPT_UNROLL for (int k = 0; k < L::kCount; ++k) floats.values[k] =
      elementwise::cuda::Held<float, typename L::Word>::get(lanes.words[k]);
  return floats;
}

template <class L>
ONNXOPT_IN_KERNEL L lanes_of(const Floats<L::kCount>& floats) {
  L lanes;
  ONNXOPT_UNROLL for (int k = 0; k < L::kCount; ++k) lanes.words[k] =
      elementwise::cuda::word_of<typename L::Word>(floats.values[k]);
  return lanes;
}

/// Neighbouring numbers, of which the first `count` are there.
template <class Number, int E>
ONNXOPT_IN_KERNEL elementwise::cuda::Vector<Number, E> read_numbers(const void* source, std::int64_t at, int count, bool vectors) {
  const Number* const place = static_cast<const Number*>(source) + at;
  elementwise::cuda::Vector<Number, E> numbers;
  if (vectors)
    numbers.read(place);
  else
    ONNXOPT_UNROLL for (int k = 0; k < E; ++k) numbers.values[k] = k < count ? place[k] : Number{0};
  return numbers;
}

template <class Number, int E>
ONNXOPT_IN_KERNEL void write_numbers(void* target, std::int64_t at, const elementwise::cuda::Vector<Number, E>& numbers, int count,
                                     bool vectors) {
  Number* const place = static_cast<Number*>(target) + at;
  if (vectors) return numbers.write(place);
  ONNXOPT_UNROLL for (int k = 0; k < E; ++k) if (k < count) place[k] = numbers.values[k];
}

/// Reads and writes neighbours, whose place is aligned as they are together.
template <int E>
ONNXOPT_IN_KERNEL Floats<E> read(const float* source) {
  elementwise::cuda::Vector<float, E> vector;
  vector.read(source);
  Floats<E> floats;
  ONNXOPT_UNROLL for (int k = 0; k < E; ++k) floats.values[k] = vector.values[k];
  return floats;
}

template <int E>
ONNXOPT_IN_KERNEL void write(float* target, const Floats<E>& floats) {
  elementwise::cuda::Vector<float, E> vector;
  ONNXOPT_UNROLL for (int k = 0; k < E; ++k) vector.values[k] = floats.values[k];
  vector.write(target);
}

}  // namespace
}  // namespace onnxopt
