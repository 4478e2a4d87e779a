// The kernel: a block takes 64 rows of a head through all keys, 64 at a time: scores, online softmax, weighted values. The sums are
// float32, each multiplication and addition rounded once.
//
// After T. Dao et al., "FlashAttention" (2022), and M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax" (2018).
#pragma once

#include "kernels/cuda/attention/task.cuh"

namespace onnxopt::attention::cuda {
namespace {

constexpr unsigned kThreads = 256;
/// Threads are a square of 16 x 16, each of which has four rows and four keys, or four rows and `C` columns.
constexpr int kSide = 16, kRows = 64, kKeys = 64, kSteps = 16;
/// From one step or key to the next, so that those of neighbours fall into other banks.
constexpr int kRowStep = kRows + 4;

/// Columns of the values that a block computes.
template <int C>
constexpr int kColumns = kSide * C;

template <int C>
struct alignas(16) Shared {
  float queries[kSteps * kRowStep], keys[kSteps * kRowStep];  // [step, row or key]
  float weights[kKeys * kRowStep];                            // [key, row]
  float values[kSteps * kColumns<C>];                         // [key, column]
};

template <int C>
ONNXOPT_DEVICE std::int64_t tiles_of(const Problem& p) {
  return count_tiles<kColumns<C>>(p);
}

using FloatRows = Rows<FloatElement>;
using Task = TaskOf<std::int64_t>;

/// Lays 16 steps of 64 rows into shared memory.
ONNXOPT_IN_KERNEL void lay_down(const FloatRows& rows, std::int64_t first, std::int64_t step, float* target) {
  const unsigned own = threadIdx.x % kSteps;
  ONNXOPT_UNROLL for (unsigned row = threadIdx.x / kSteps; row < kRows; row += kThreads / kSteps) target[own * kRowStep + row] =
      rows.at(first + row, step + own);
}

/// The numbers of a thread: four rows of keys or columns.
template <int N>
struct Square {
  float values[4][N];
};

/// Scores of 64 keys, of which each thread gets its own.
template <int C>
ONNXOPT_IN_KERNEL Square<4> products(const Problem& p, const FloatRows& queries, const FloatRows& keys, const Task& task,
                                     std::int64_t first_key, Shared<C>& shared) {
  Square<4> sums{};
  const unsigned row = threadIdx.x / kSide * 4, key = threadIdx.x % kSide * 4;
  for (std::int64_t step = 0; step < p.depth; step += kSteps) {
    lay_down(queries, task.row, step, shared.queries);
    lay_down(keys, first_key, step, shared.keys);
    __syncthreads();
    ONNXOPT_UNROLL for (int k = 0; k < kSteps; ++k) {
      const Floats<4> a = read<4>(shared.queries + k * kRowStep + row), b = read<4>(shared.keys + k * kRowStep + key);
      ONNXOPT_UNROLL for (int r = 0; r < 4; ++r) ONNXOPT_UNROLL for (int c = 0; c < 4; ++c) sums.values[r][c] =
          fmaf(a.values[r], b.values[c], sums.values[r][c]);
    }
    __syncthreads();
  }
  return sums;
}

/// What masks make of a score.
ONNXOPT_IN_KERNEL float masked(const Problem& p, const Task& task, std::int64_t row, std::int64_t key, float score) {
  score *= p.scale;
  if (p.cap != 0.0f) score = p.cap * tanhf(score / p.cap);
  for (int i = 0; i < static_cast<int>(p.mask_count); ++i) {
    const Mask& mask = p.masks[i];
    const std::int64_t at = offset_of(mask.steps, task.batch % mask.batches, task.head, row) + key * mask.steps.column;
    if (mask.kind == MaskKind::kAdd)
      score += static_cast<const float*>(mask.data)[at];
    else if ((static_cast<const std::uint8_t*>(mask.data)[at] != 0) == (mask.kind == MaskKind::kHide))
      score = mask.fill;
  }
  return score;
}

/// Combines the numbers of the 16 threads that share rows.
template <class Combine>
ONNXOPT_IN_KERNEL float of_row(float value, Combine combine) {
  for (int bits = kSide / 2; bits > 0; bits /= 2) value = combine(value, __shfl_xor_sync(kWholeWarp, value, bits));
  return value;
}

/// The softmax of four rows, as far as keys were seen.
struct Online {
  float largest[4], sums[4];

  /// Turns scores into weights, of which only the first `count` are there, and returns what earlier weights are worth now.
  ONNXOPT_IN_KERNEL Floats<4> take(Square<4>& scores, std::int64_t count) {
    Floats<4> worth;
    ONNXOPT_UNROLL for (int r = 0; r < 4; ++r) {
      float found = largest[r];
      ONNXOPT_UNROLL for (int c = 0; c < 4; ++c) if (c < count) found = larger(scores.values[r][c], found);
      found = of_row(found, larger);
      const float top = found == -INFINITY ? 0.0f : found;  // nothing was seen yet that has a weight
      float sum = 0.0f;
      ONNXOPT_UNROLL for (int c = 0; c < 4; ++c) {
        scores.values[r][c] = c < count ? expf(scores.values[r][c] - top) : 0.0f;
        sum += scores.values[r][c];
      }
      worth.values[r] = expf(largest[r] - top);
      sums[r] = sums[r] * worth.values[r] + of_row(sum, [](float a, float b) { return a + b; });
      largest[r] = found;
    }
    return worth;
  }
};

/// Adds the values of 64 keys, weighted.
template <int C>
ONNXOPT_IN_KERNEL void add_values(const Problem& p, const Task& task, std::int64_t first_key, Shared<C>& shared, Square<C>& sums) {
  const float* const values = p.v.data + offset_of(p.v.steps, task.batch, task.kv_head, 0);
  const unsigned row = threadIdx.x / kSide * 4, column = threadIdx.x % kSide * 4;
  for (int begin = 0; begin < kKeys && first_key + begin < p.keys; begin += kSteps) {
    ONNXOPT_UNROLL for (unsigned i = threadIdx.x; i < kSteps * kColumns<C>; i += kThreads) {
      const std::int64_t key = first_key + begin + i / kColumns<C>, d = task.column + i % kColumns<C>;
      shared.values[i] = key < p.keys && d < p.width ? values[key * p.v.steps.row + d * p.v.steps.column] : 0.0f;
    }
    __syncthreads();
    ONNXOPT_UNROLL for (int k = 0; k < kSteps; ++k) {
      const Floats<4> weights = read<4>(shared.weights + (begin + k) * kRowStep + row);
      ONNXOPT_UNROLL for (int j = 0; j < C; j += 4) {
        const Floats<4> four = read<4>(shared.values + k * kColumns<C> + j * kSide + column);
        ONNXOPT_UNROLL for (int r = 0; r < 4; ++r) ONNXOPT_UNROLL for (int c = 0; c < 4; ++c) sums.values[r][j + c] =
            fmaf(weights.values[r], four.values[c], sums.values[r][j + c]);
      }
    }
    __syncthreads();
  }
}

template <int C>
ONNXOPT_IN_KERNEL void write_rows(const Problem& p, const Task& task, const Online& online, const Square<C>& sums) {
  ONNXOPT_UNROLL for (int r = 0; r < 4; ++r) {
    const std::int64_t row = task.row + threadIdx.x / kSide * 4 + r;
    if (row >= p.rows) return;
    const bool nothing = p.keys == 0 || (p.nan_to_zero && !(online.sums[r] > 0.0f));
    const float factor = 1.0f / online.sums[r];
    float* const y = p.y + offset_of(p.y_steps, task.batch, task.head, row);
    ONNXOPT_UNROLL for (int c = 0; c < C; ++c) {
      const std::int64_t column = task.column + c / 4 * (4 * kSide) + threadIdx.x % kSide * 4 + c % 4;
      if (column < p.width) y[column * p.y_steps.column] = nothing ? 0.0f : sums.values[r][c] * factor;
    }
  }
}

template <int C>
__global__ void __launch_bounds__(kThreads, 2) attend(const Problem __grid_constant__ p) {
  auto& shared = *static_cast<Shared<C>*>(shared_memory());
  const std::int64_t tiles = tiles_of<C>(p);
  for (std::int64_t number = blockIdx.x; number < tiles; number += gridDim.x) {
    const Task task = task_of<kColumns<C>, std::int64_t>(p, number);
    const FloatRows queries(p.q, p.rotary, p.rotary.of_queries, task.batch, task.head, p.rows, p.depth);
    const FloatRows keys(p.k, p.rotary, p.rotary.of_keys, task.batch, task.kv_head, p.keys, p.depth);
    const unsigned row = threadIdx.x / kSide * 4, key = threadIdx.x % kSide * 4;
    Online online;
    Square<C> sums{};
    ONNXOPT_UNROLL for (int r = 0; r < 4; ++r) {
      online.largest[r] = -INFINITY;
      online.sums[r] = 0.0f;
    }
    for (std::int64_t first = 0; first < p.keys; first += kKeys) {
      Square<4> scores = products(p, queries, keys, task, first, shared);
      ONNXOPT_UNROLL for (int r = 0; r < 4; ++r)
          ONNXOPT_UNROLL for (int c = 0; c < 4; ++c) if (task.row + row + r < p.rows && first + key + c < p.keys)
              scores.values[r][c] = masked(p, task, task.row + row + r, first + key + c, scores.values[r][c]);
      const Floats<4> worth = online.take(scores, p.keys - first - key);
      ONNXOPT_UNROLL for (int c = 0; c < 4; ++c) {
        Floats<4> of_key;
        ONNXOPT_UNROLL for (int r = 0; r < 4; ++r) of_key.values[r] = scores.values[r][c];
        write(shared.weights + (key + static_cast<unsigned>(c)) * kRowStep + row, of_key);
      }
      ONNXOPT_UNROLL for (int r = 0; r < 4; ++r) ONNXOPT_UNROLL for (int c = 0; c < C; ++c) sums.values[r][c] *= worth.values[r];
      add_values(p, task, first, shared, sums);
    }
    write_rows(p, task, online, sums);
  }
}

struct Family {
  using Problem = attention::Problem;

  template <class Use>
  static Result<bool> for_each(const Use& use) {
    const Result<bool> done = use(attend<4>);
    return done ? use(attend<8>) : done;
  }

  /// The columns of a thread are those that fit best.
  template <class Use>
  static Result<bool> plan(const Problem& problem, int, const Use& use) {
    const auto with = [&]<int C>() {
      return use(attend<C>, problem, onnxopt::cuda::Launch{tiles_of<C>(problem), kThreads, sizeof(Shared<C>)});
    };
    return problem.width <= kColumns<4> ? with.template operator()<4>() : with.template operator()<8>();
  }
};

}  // namespace
}  // namespace onnxopt::attention::cuda
