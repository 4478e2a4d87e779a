// CUDA's names for a host compiler: the source of a kernel, compiled as C++, runs with a fiber for each thread of a block.
//
// A fiber runs until it has to wait for others: at a barrier of its block, or where threads of its warp exchange values. Blocks run
// one after the other. What a device answers with a hang or with garbage ends the launch with a sentence: a barrier that some
// threads never reach, threads that wait at different ones, a shuffle from a lane that does not take part, a write behind the
// shared memory. Fibers run in ascending and in descending order by turns, dynamic shared memory begins as NaNs, and asynchronous
// copies happen when a thread waits for them and not before, so that a barrier or a wait that is missing shows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <type_traits>

#include "kernels/cpu/common.h"

namespace onnxopt::simt {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct Index {
  unsigned x = 0, y = 0, z = 0;
};

/// What a thread knows of itself.
struct Thread {
  Index thread, block;
  Dim3 block_size, grid_size;
  void* shared = nullptr;  // the block's dynamic shared memory
};

constexpr unsigned kWarp = 32, kMostThreads = 1024;
/// Bytes that a thread gives to its warp at once: the fragments of a matrix instruction.
constexpr std::size_t kMostBytes = 64;

using Where = std::source_location;

/// The thread that runs.
const Thread& self();
/// Its number in its warp.
unsigned lane();

/// Waits until all threads of the block are here.
void wait_for_block(const Where& where);

/// Gives a value to the threads of the warp that `mask` names, waits until all of them are here, and returns the values of all
/// lanes, `kMostBytes` apart, which stay until one of these threads exchanges again.
const std::byte* exchange(unsigned mask, const void* value, std::size_t bytes, const Where& where);

/// Begins to copy `bytes` bytes, of which the first `present` are there; the others become 0. Both places have to be aligned as
/// that many bytes.
void begin_copy(void* target, const void* source, std::size_t bytes, std::size_t present, const Where& where);
/// Makes the thread's copies since the last call a group.
void commit_copies();
/// Waits for the thread's groups but the last `left` ones.
void finish_copies(unsigned left);

/// Ends the launch with a sentence.
[[noreturn]] void fail(const char* what, const Where& where);

/// The values that the lanes of a warp gave.
template <class T>
class Given {
 public:
  Given(unsigned mask, const T& value, const Where& where) : mask_(mask), where_(where) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= kMostBytes);
    values_ = exchange(mask, &value, sizeof value, where);
  }
  bool has(unsigned lane) const { return mask_ >> lane & 1; }
  T operator[](unsigned lane) const {
    if (!has(lane)) fail("reads the value of a lane that does not take part", where_);
    T value;
    std::memcpy(&value, values_ + lane * kMostBytes, sizeof value);
    return value;
  }

 private:
  const std::byte* values_;
  unsigned mask_;
  Where where_;
};

/// Runs a kernel's body for every thread of a grid; a sentence says what went wrong.
Result<bool> launch(Dim3 grid, Dim3 block, std::size_t shared_bytes, const std::function<void()>& body);

/// The same for blocks that share `tiles` of work: fewer of them than a device has, so that a block takes several.
Result<bool> launch_few(std::int64_t tiles, unsigned threads, std::size_t shared_bytes, const std::function<void()>& body);

/// What stands for a device's multiprocessors: so few that large tiles keep all of them busy.
constexpr int kProcessors = 3;

/// The lane that another one reads by `offset`, in parts of a warp of `width` lanes; itself where that is in another part.
inline unsigned within(unsigned from, unsigned to, unsigned width) { return from / width == to / width ? to : from; }

}  // namespace onnxopt::simt

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
/// A parameter that a kernel reads in place: `const Code __grid_constant__ code`.
#define __grid_constant__ &
/// One block runs at a time in a thread of the host.
#define __shared__ static thread_local

#define threadIdx (::onnxopt::simt::self().thread)
#define blockIdx (::onnxopt::simt::self().block)
#define blockDim (::onnxopt::simt::self().block_size)
#define gridDim (::onnxopt::simt::self().grid_size)

inline void __syncthreads(const onnxopt::simt::Where& where = onnxopt::simt::Where::current()) {
  onnxopt::simt::wait_for_block(where);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, const onnxopt::simt::Where& where = onnxopt::simt::Where::current()) {
  onnxopt::simt::exchange(mask, nullptr, 0, where);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              const onnxopt::simt::Where& where = onnxopt::simt::Where::current()) {
  const unsigned own = onnxopt::simt::lane(), part = static_cast<unsigned>(width);
  return onnxopt::simt::Given<T>(mask, value, where)[own / part * part + static_cast<unsigned>(source) % part];
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  const onnxopt::simt::Where& where = onnxopt::simt::Where::current()) {
  const unsigned own = onnxopt::simt::lane();
  return onnxopt::simt::Given<T>(
      mask, value, where)[onnxopt::simt::within(own, own ^ static_cast<unsigned>(bits), static_cast<unsigned>(width))];
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned offset, int width = 32,
                   const onnxopt::simt::Where& where = onnxopt::simt::Where::current()) {
  const unsigned own = onnxopt::simt::lane();
  return onnxopt::simt::Given<T>(mask, value, where)[onnxopt::simt::within(own, own + offset, static_cast<unsigned>(width))];
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned offset, int width = 32,
                 const onnxopt::simt::Where& where = onnxopt::simt::Where::current()) {
  const unsigned own = onnxopt::simt::lane();
  return onnxopt::simt::Given<T>(mask, value, where)[onnxopt::simt::within(own, own - offset, static_cast<unsigned>(width))];
}

inline unsigned __ballot_sync(unsigned mask, int predicate, const onnxopt::simt::Where& where = onnxopt::simt::Where::current()) {
  const onnxopt::simt::Given<bool> given(mask, predicate != 0, where);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < onnxopt::simt::kWarp; ++lane)
    if (given.has(lane) && given[lane]) votes |= 1u << lane;
  return votes;
}

inline int __any_sync(unsigned mask, int predicate, const onnxopt::simt::Where& where = onnxopt::simt::Where::current()) {
  return __ballot_sync(mask, predicate, where) != 0;
}

inline int __all_sync(unsigned mask, int predicate, const onnxopt::simt::Where& where = onnxopt::simt::Where::current()) {
  return __ballot_sync(mask, predicate, where) == mask;
}

/// Fibers take turns only where they wait, so what a thread does between is atomic.
template <class T>
T atomicAdd(T* target, std::type_identity_t<T> value) {
  const T old = *target;
  *target = old + value;
  return old;
}

template <class T>
T atomicMax(T* target, std::type_identity_t<T> value) {
  const T old = *target;
  if (old < value) *target = value;
  return old;
}
