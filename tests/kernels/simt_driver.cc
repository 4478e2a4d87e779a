// Small kernels, right and wrong ones, for test_simt.py: runs the one that is named and prints what it made, or the sentence.
//
//     onnxopt_simt_driver NAME
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernels/cuda/mma.h"

namespace {

using onnxopt::Element;
using onnxopt::Result;
using onnxopt::simt::Dim3;

constexpr unsigned kAll = 0xffffffffu;

/// Numbers that the threads of a case leave.
std::vector<float> numbers;

// --- kernels as they are written for a device ---
__global__ void index_of_each() {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned at = block * blockDim.x * blockDim.y * blockDim.z + thread;
  numbers[at] = static_cast<float>(at);
}

__global__ void reversed_through_static_memory() {
  __shared__ float held[96];
  held[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  numbers[threadIdx.x] = held[blockDim.x - 1 - threadIdx.x];
}

__global__ void reversed(bool synchronized, bool upwards) {
  auto* const held = static_cast<float*>(onnxopt::simt::self().shared);
  if (upwards) __syncthreads();  // so that the threads go the other way round
  held[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (synchronized) __syncthreads();
  numbers[threadIdx.x] = held[blockDim.x - 1 - threadIdx.x];
}

__global__ void shuffles() {
  const float own = static_cast<float>(threadIdx.x);
  float sum = own;
  for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(kAll, sum, bits);
  const float first = __shfl_sync(kAll, own, 0), of_eight = __shfl_sync(kAll, own, 3, 8);
  const float up = __shfl_up_sync(kAll, own, 1), down = __shfl_down_sync(kAll, own, 2, 16);
  const float in_four = __shfl_xor_sync(kAll, own, 7, 4);  // into another part: its own
  const float all[] = {sum, first, of_eight, up, down, in_four};
  for (std::size_t i = 0; i < std::size(all); ++i) numbers[threadIdx.x * std::size(all) + i] = all[i];
}

__global__ void votes() {
  const bool odd = threadIdx.x % 2 != 0;
  numbers[threadIdx.x] = static_cast<float>(__ballot_sync(kAll, odd) >> 16) + static_cast<float>(__any_sync(kAll, odd)) +
                         static_cast<float>(__all_sync(kAll, odd));
}

/// Both halves of a warp exchange on their own, and as often as they like.
__global__ void halves_of_a_warp() {
  const bool low = threadIdx.x < 16;
  float sum = 1.0f;
  for (int round = 0; round < (low ? 3 : 1); ++round)
    sum += low ? __shfl_xor_sync(0x0000ffffu, sum, 1) : __shfl_xor_sync(0xffff0000u, sum, 1);
  __syncwarp();
  numbers[threadIdx.x] = sum;
}

__global__ void atomics() {
  __shared__ int count, largest;
  if (threadIdx.x == 0) count = largest = 0;
  __syncthreads();
  atomicAdd(&count, 2);
  atomicMax(&largest, static_cast<int>(threadIdx.x * 7 % 61));
  __syncthreads();
  if (threadIdx.x == 0) numbers = {static_cast<float>(count), static_cast<float>(largest)};
}

// --- matrix instructions ---
/// The elements that test_simt.py multiplies; exact in every type.
int element_of_a(int row, int k) { return (row * 7 + k * 3) % 11; }
int element_of_b(int k, int column) { return (k * 5 + column * 2) % 7 - 3; }

/// A number as an element of a matrix.
template <Element E>
std::uint32_t pattern(int number) {
  if (onnxopt::is_byte(E)) return static_cast<std::uint8_t>(number);
  const auto value = static_cast<float>(number);
  if (E == Element::kHalf) return onnxopt::elementwise::cuda::to_half(value);
  return E == Element::kBrain ? onnxopt::elementwise::cuda::to_brain(value)
                              : onnxopt::elementwise::cuda::bits<std::uint32_t>(value);
}

/// The word of which each of `count` elements is `element(k)`, from `k` on.
template <Element E, class Get>
std::uint32_t word_of(int k, int count, Get element) {
  std::uint32_t word = 0;
  for (int i = 0; i < count; ++i) word |= pattern<E>(element(k + i)) << 32 / count * i;
  return word;
}

/// A product whose operands lie as PTX says, and whose results do.
template <Element E>
__global__ void multiply() {
  constexpr int count = onnxopt::is_byte(E) ? 4 : E == Element::kTf32 ? 1 : 2;
  const int group = static_cast<int>(threadIdx.x) / 4, place = static_cast<int>(threadIdx.x) % 4;
  onnxopt::FragmentA a;
  onnxopt::FragmentB b;
  onnxopt::Fragment<onnxopt::SumOf<E>> c;
  for (int i = 0; i < 4; ++i)
    a.words[i] = word_of<E>((place + i / 2 * 4) * count, count, [&](int k) { return element_of_a(group + i % 2 * 8, k); });
  for (int i = 0; i < 2; ++i)
    b.words[i] = word_of<E>((place + i * 4) * count, count, [&](int k) { return element_of_b(k, group); });
  for (int i = 0; i < 4; ++i) c.values[i] = static_cast<onnxopt::SumOf<E>>(i);
  onnxopt::multiply_add<E>(c, a, b);
  for (int i = 0; i < 4; ++i)
    numbers[static_cast<std::size_t>((group + i / 2 * 8) * 8 + place * 2 + i % 2)] =
        static_cast<float>(c.values[i]) - static_cast<float>(i);
}

/// Bytes that differ in their sign, sums that wrap, and what tf32 leaves of a float.
__global__ void extremes() {
  onnxopt::FragmentA a{};
  onnxopt::FragmentB b{};
  if (threadIdx.x % 4 == 0) {
    a.words[0] = 0xff;
    b.words[0] = 0x80;
  }
  onnxopt::Fragment<std::int32_t> unsigned_bytes{{INT32_MIN + 32639, 0, 0, 0}}, signed_bytes{};
  onnxopt::multiply_add<Element::kUint8>(unsigned_bytes, a, b);
  onnxopt::multiply_add<Element::kInt8>(signed_bytes, a, b);
  onnxopt::Fragment<float> floats{};
  if (threadIdx.x % 4 == 0) a.words[0] = onnxopt::to_tf32(0x3f801000u), b.words[0] = 0x3f801fffu;
  onnxopt::multiply_add<Element::kTf32>(floats, a, b);
  if (threadIdx.x == 0)
    numbers = {static_cast<float>(unsigned_bytes.values[0] == INT32_MAX), static_cast<float>(signed_bytes.values[0]),
               (floats.values[0] - 1.0f) * 0x1p10f};
}

__global__ void matrices(bool transposed) {
  auto* const held = static_cast<std::uint16_t*>(onnxopt::simt::self().shared);
  for (unsigned i = threadIdx.x; i < 256; i += 32) held[i] = static_cast<std::uint16_t>(i);
  __syncthreads();
  std::uint32_t words[4];
  const std::uint16_t* const row = held + threadIdx.x * 8;
  transposed ? onnxopt::load_transposed(row, words) : onnxopt::load_matrices(row, words);
  for (unsigned i = 0; i < 4; ++i) {
    numbers[threadIdx.x * 8 + i * 2] = static_cast<float>(words[i] & 0xffffu);
    numbers[threadIdx.x * 8 + i * 2 + 1] = static_cast<float>(words[i] >> 16);
  }
}

__global__ void row_between_lines() {
  std::uint32_t words[4];
  onnxopt::load_matrices(static_cast<std::byte*>(onnxopt::simt::self().shared) + 8, words);
}

alignas(16) constexpr float kSource[8] = {1, 2, 3, 4, 5, 6, 7, 8};

/// Two groups of copies, of which one is waited for.
__global__ void copies(bool waits) {
  auto* const held = static_cast<float*>(onnxopt::simt::self().shared);
  onnxopt::copy_async<16>(held, kSource, 12);
  onnxopt::commit_copies();
  onnxopt::copy_async<4>(held + 4, kSource + 5, 4);
  onnxopt::commit_copies();
  if (waits) onnxopt::wait_for_copies<1>();
  numbers.assign(held, held + 5);
  onnxopt::wait_for_copies<0>();
  numbers.push_back(held[4]);
}

__global__ void copy_between_words() { onnxopt::copy_async<16>(onnxopt::simt::self().shared, kSource + 1, 16); }

__global__ void half_of_the_block_waits() {
  if (threadIdx.x < 40) __syncthreads();
}

__global__ void two_barriers() {
  if (threadIdx.x < 40)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void barrier_and_shuffle() {
  if (threadIdx.x < 40)
    __syncthreads();
  else
    __shfl_xor_sync(kAll, 1.0f, 1);
}

__global__ void lane_that_returned() {
  if (threadIdx.x != 5) __shfl_xor_sync(kAll, 1.0f, 1);
}

__global__ void other_lanes() { __shfl_xor_sync(threadIdx.x < 16 ? kAll : 0xfffffff0u, 1.0f, 1); }

__global__ void not_its_own() { __shfl_xor_sync(0x0000ffffu, 1.0f, 1); }

__global__ void lane_without_value() {
  if (threadIdx.x < 16) __shfl_sync(0x0000ffffu, 1.0f, 20);
}

__global__ void behind_shared_memory() { static_cast<float*>(onnxopt::simt::self().shared)[threadIdx.x + 1] = 1.0f; }

struct Case {
  Dim3 grid, block;
  std::size_t shared, results;
  std::function<void()> body;
};

const std::map<std::string, Case>& cases() {
  static const std::map<std::string, Case> all{
      {"index_of_each", {{2, 3, 2}, {4, 2, 3}, 0, 288, index_of_each}},
      {"reversed_through_static_memory", {{2}, {96}, 0, 96, reversed_through_static_memory}},
      {"reversed", {{1}, {96}, 384, 96, [] { reversed(true, true); }}},
      {"reversed_without_barrier", {{1}, {96}, 384, 96, [] { reversed(false, false); }}},
      {"reversed_without_barrier_upwards", {{1}, {96}, 384, 96, [] { reversed(false, true); }}},
      {"shuffles", {{1}, {32}, 0, 192, shuffles}},
      {"votes", {{1}, {32}, 0, 32, votes}},
      {"halves_of_a_warp", {{1}, {32}, 0, 32, halves_of_a_warp}},
      {"atomics", {{1}, {96}, 0, 2, atomics}},
      {"multiply_uint8", {{1}, {32}, 0, 128, multiply<Element::kUint8>}},
      {"multiply_int8", {{1}, {32}, 0, 128, multiply<Element::kInt8>}},
      {"multiply_half", {{1}, {32}, 0, 128, multiply<Element::kHalf>}},
      {"multiply_brain", {{1}, {32}, 0, 128, multiply<Element::kBrain>}},
      {"multiply_tf32", {{1}, {32}, 0, 128, multiply<Element::kTf32>}},
      {"extremes", {{1}, {32}, 0, 3, extremes}},
      {"matrices", {{1}, {32}, 512, 256, [] { matrices(false); }}},
      {"matrices_transposed", {{1}, {32}, 512, 256, [] { matrices(true); }}},
      {"copies", {{1}, {1}, 20, 0, [] { copies(true); }}},
      {"copies_without_wait", {{1}, {1}, 20, 0, [] { copies(false); }}},
      {"row_between_lines", {{1}, {32}, 512, 0, row_between_lines}},
      {"copy_between_words", {{1}, {1}, 16, 0, copy_between_words}},
      {"half_of_the_block_waits", {{1}, {64}, 0, 0, half_of_the_block_waits}},
      {"two_barriers", {{1}, {64}, 0, 0, two_barriers}},
      {"barrier_and_shuffle", {{1}, {64}, 0, 0, barrier_and_shuffle}},
      {"lane_that_returned", {{1}, {32}, 0, 0, lane_that_returned}},
      {"lane_that_is_missing", {{1}, {20}, 0, 0, [] { __shfl_xor_sync(kAll, 1.0f, 1); }}},
      {"other_lanes", {{1}, {32}, 0, 0, other_lanes}},
      {"not_its_own", {{1}, {32}, 0, 0, not_its_own}},
      {"lane_without_value", {{1}, {32}, 0, 0, lane_without_value}},
      {"behind_shared_memory", {{1}, {32}, 128, 0, behind_shared_memory}},
      {"too_many_threads", {{1}, {1025}, 0, 0, [] {}}},
  };
  return all;
}

}  // namespace

int main(int count, char** arguments) {
  const auto found = count == 2 ? cases().find(arguments[1]) : cases().end();
  if (found == cases().end()) return 2;
  const Case& one = found->second;
  numbers.assign(one.results, -1.0f);
  const Result<bool> done = onnxopt::simt::launch(one.grid, one.block, one.shared, one.body);
  if (!done) std::printf("%s", done.error().c_str());
  if (done)
    for (const float number : numbers) std::printf("%g ", static_cast<double>(number));
}
