// Small kernels, right and wrong ones, for test_simt.py: runs the one that is named and prints what it made, or the sentence.
//
//     onnxopt_simt_driver NAME
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernels/cuda/simt/simt.h"

namespace {

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
