// The kernel for elements of two bytes, on tensor cores: a block takes 64 rows of a head through all keys, 64 at a time; each of
// its four warps has 16 rows to itself, whose scores, softmax and weighted values stay in registers.
//
// After T. Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning" (2023).
#pragma once

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/task.cuh"

namespace onnxopt::attention::cuda {
namespace {

constexpr int kHalfThreads = 128, kHalfRows = 64;
/// Keys that are taken at once: as many as there are registers for their scores.
template <int D>
constexpr int kHalfKeys = D > 64 ? 32 : 64;
constexpr float kLog2OfE = 1.44269504f;

/// `D`: columns of queries and keys that are in shared memory at once, and those of values that a block computes. Rows are 16 bytes
/// further apart than they are long, so that those of neighbours fall into other banks.
template <int D>
struct alignas(16) HalfShared {
  static constexpr int kStep = D + 8;
  std::uint16_t queries[kHalfRows * kStep], keys[kHalfKeys<D> * kStep], values[kHalfKeys<D> * kStep];
};

/// e^x, to within two units in the last place: far less than what weights of two bytes lose.
ONNXOPT_IN_KERNEL float quick_exp(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * kLog2OfE));
  return result;
#else
  return exp2f(x * kLog2OfE);
#endif
}

using HalfTask = TaskOf<int>;

/// Queries, keys or values of all heads, with what is read of them.
template <class E>
struct Operand {
  using T = typename E::Stored;
  const ViewOf<T>& view;
  const RotaryOf<T>& rotary;
  bool rotates;
  const std::int64_t &count, &depth;  // of each head
};

/// Begins to lay `D` columns of `R` rows of a head into shared memory; what is not there becomes 0.
template <int D, int R, class E>
ONNXOPT_IN_KERNEL void lay_halves(const Operand<E>& operand, int batch, int head, std::int64_t first, std::int64_t column,
                                  std::uint16_t* target) {
  constexpr int kElements = kChunk / 2, kOfRow = D / kElements, kStep = HalfShared<D>::kStep;
  const Steps& steps = operand.view.steps;
  if (steps.column != 1 || operand.rotates) {
    const Rows<E> rows(operand.view, operand.rotary, operand.rotates, batch, head, operand.count, operand.depth);
    ONNXOPT_ROLLED for (int i = static_cast<int>(threadIdx.x); i < R * D; i += kHalfThreads) target[i / D * kStep + i % D] =
        E::put(rows.at(first + i / D, column + i % D));
    return;
  }
  const std::uint16_t* const base = operand.view.data + offset_of(steps, batch, head, first) + column;
  const int width = width_of(base, steps.row * 2);
  ONNXOPT_ROLLED for (int chunk = static_cast<int>(threadIdx.x); chunk < R * kOfRow; chunk += kHalfThreads) {
    const int row = chunk / kOfRow, own = chunk % kOfRow * kElements;
    const std::int64_t left = first + row < operand.count ? operand.depth - column - own : 0;
    const std::uint16_t* const source = left > 0 ? base + row * steps.row + own : base;
    copy_chunk(reinterpret_cast<std::byte*>(target + row * kStep + own), reinterpret_cast<const std::byte*>(source), left * 2,
               width);
  }
}

/// What a warp has of scores [16, keys] or of results [16, D]: tiles of eight columns.
template <int N>
struct Tiles {
  Fragment<float> of[N / 8];
};

/// Adds products of the warp's queries with keys, over `D` columns.
template <int D, class E>
ONNXOPT_IN_KERNEL void add_scores(const HalfShared<D>& shared, Tiles<kHalfKeys<D>>& scores) {
  constexpr int kStep = HalfShared<D>::kStep;
  const unsigned lane = threadIdx.x % 32;
  const std::uint16_t* const queries = shared.queries + (threadIdx.x / 32 * 16 + lane % 16) * kStep + lane / 16 * 8;
  const std::uint16_t* const keys = shared.keys + (lane % 8 + lane / 16 * 8) * kStep + lane / 8 % 2 * 8;
  ONNXOPT_UNROLL for (int k = 0; k < D; k += 16) {
    FragmentA a;
    load_matrices(queries + k, a.words);
    ONNXOPT_UNROLL for (int n = 0; n < kHalfKeys<D> / 8; n += 2) {
      std::uint32_t words[4];
      load_matrices(keys + n * 8 * kStep + k, words);
      multiply_add<E::kElement>(scores.of[n], a, {{words[0], words[1]}});
      multiply_add<E::kElement>(scores.of[n + 1], a, {{words[2], words[3]}});
    }
  }
}

template <class E>
ONNXOPT_IN_KERNEL std::uint32_t two_of(float low, float high) {
  return static_cast<std::uint32_t>(E::put(low)) | static_cast<std::uint32_t>(E::put(high)) << 16;
}

/// Adds the values of keys, weighted.
template <int D, class E>
ONNXOPT_IN_KERNEL void add_weighted(const HalfShared<D>& shared, const Tiles<kHalfKeys<D>>& weights, Tiles<D>& sums) {
  constexpr int kStep = HalfShared<D>::kStep;
  const unsigned lane = threadIdx.x % 32;
  const std::uint16_t* const values = shared.values + lane % 16 * kStep + lane / 16 * 8;
  ONNXOPT_UNROLL for (int k = 0; k < kHalfKeys<D> / 8; k += 2) {
    const auto &first = weights.of[k].values, &second = weights.of[k + 1].values;
    const FragmentA a{{two_of<E>(first[0], first[1]), two_of<E>(first[2], first[3]), two_of<E>(second[0], second[1]),
                       two_of<E>(second[2], second[3])}};
    ONNXOPT_UNROLL for (int n = 0; n < D / 8; n += 2) {
      std::uint32_t words[4];
      load_transposed(values + k * 8 * kStep + n * 8, words);
      multiply_add<E::kElement>(sums.of[n], a, {{words[0], words[1]}});
      multiply_add<E::kElement>(sums.of[n + 1], a, {{words[2], words[3]}});
    }
  }
}

/// Combines the numbers of the four lanes that share rows.
template <class Combine>
ONNXOPT_IN_KERNEL float of_four(float value, Combine combine) {
  value = combine(value, __shfl_xor_sync(kWholeWarp, value, 1));
  return combine(value, __shfl_xor_sync(kWholeWarp, value, 2));
}

/// The softmax of a lane's two rows, as far as keys were seen.
struct HalfOnline {
  float largest[2] = {-INFINITY, -INFINITY}, sums[2] = {0.0f, 0.0f};

  /// Turns scores into weights, of which only those of the first `count` keys are there, and makes earlier sums worth what they are
  /// now.
  template <int D>
  ONNXOPT_IN_KERNEL void take(Tiles<kHalfKeys<D>>& scores, std::int64_t count, Tiles<D>& results) {
    const int own = static_cast<int>(threadIdx.x % 4) * 2;
    ONNXOPT_UNROLL for (int r = 0; r < 2; ++r) {
      float found = largest[r], sum = 0.0f;
      ONNXOPT_UNROLL for (int n = 0; n < kHalfKeys<D> / 8; ++n)
          ONNXOPT_UNROLL for (int c = 0; c < 2; ++c) if (n * 8 + own + c < count) found =
              larger(scores.of[n].values[r * 2 + c], found);
      found = of_four(found, larger);
      const float top = found == -INFINITY ? 0.0f : found;  // nothing was seen yet that has a weight
      ONNXOPT_UNROLL for (int n = 0; n < kHalfKeys<D> / 8; ++n) ONNXOPT_UNROLL for (int c = 0; c < 2; ++c) {
        float& score = scores.of[n].values[r * 2 + c];
        score = n * 8 + own + c < count ? quick_exp(score - top) : 0.0f;
        sum += score;
      }
      const float worth = quick_exp(largest[r] - top);
      sums[r] = sums[r] * worth + of_four(sum, [](float a, float b) { return a + b; });
      largest[r] = found;
      ONNXOPT_UNROLL for (int n = 0; n < D / 8; ++n) ONNXOPT_UNROLL for (int c = 0; c < 2; ++c) results.of[n].values[r * 2 + c] *=
          worth;
    }
  }
};

template <class E>
using HalfProblem = ProblemOf<typename E::Stored>;

/// Adds a mask to a warp's scores, or replaces those that it hides.
template <int D, class E>
ONNXOPT_IN_KERNEL void mask_scores(const HalfProblem<E>& p, const Mask& mask, const HalfTask& task, std::int64_t row,
                                   std::int64_t first_key, Tiles<kHalfKeys<D>>& scores) {
  const std::int64_t own_key = first_key + threadIdx.x % 4 * 2;
  ONNXOPT_UNROLL for (int r = 0; r < 2; ++r) {
    const std::int64_t own = row + r * 8;
    const std::int64_t at = offset_of(mask.steps, task.batch % mask.batches, task.head, own) + own_key * mask.steps.column;
    const auto left = own < p.rows ? p.keys - own_key : 0;
    ONNXOPT_UNROLL for (int n = 0; n < kHalfKeys<D> / 8; ++n) ONNXOPT_UNROLL for (int c = 0; c < 2; ++c) {
      if (n * 8 + c >= left) continue;
      float& score = scores.of[n].values[r * 2 + c];
      const std::int64_t place = at + (n * 8 + c) * mask.steps.column;
      if (mask.kind == MaskKind::kAdd)
        score += E::get(static_cast<const std::uint16_t*>(mask.data)[place]);
      else if ((static_cast<const std::uint8_t*>(mask.data)[place] != 0) == (mask.kind == MaskKind::kHide))
        score = mask.fill;
    }
  }
}

/// What scale, cap and masks make of a warp's products.
template <int D, class E>
ONNXOPT_IN_KERNEL void shape_scores(const HalfProblem<E>& p, const HalfTask& task, std::int64_t row, std::int64_t first_key,
                                    Tiles<kHalfKeys<D>>& scores) {
  ONNXOPT_UNROLL for (int n = 0; n < kHalfKeys<D> / 8; ++n) ONNXOPT_UNROLL for (int i = 0; i < 4; ++i) scores.of[n].values[i] *=
      p.scale;
  if (p.cap != 0.0f)
    ONNXOPT_UNROLL for (int n = 0; n < kHalfKeys<D> / 8; ++n) ONNXOPT_UNROLL for (int i = 0; i < 4; ++i) scores.of[n].values[i] =
        p.cap * tanhf(scores.of[n].values[i] / p.cap);
  ONNXOPT_ROLLED for (int i = 0; i < static_cast<int>(p.mask_count); ++i)
      mask_scores<D, E>(p, p.masks[i], task, row, first_key, scores);
}

template <int D, class E>
ONNXOPT_IN_KERNEL void write_halves(const HalfProblem<E>& p, const HalfTask& task, std::int64_t row, const HalfOnline& online,
                                    const Tiles<D>& results) {
  ONNXOPT_UNROLL for (int r = 0; r < 2; ++r) {
    const std::int64_t own = row + r * 8;
    if (own >= p.rows) return;
    const bool nothing = p.keys == 0 || (p.nan_to_zero && !(online.sums[r] > 0.0f));
    const float factor = 1.0f / online.sums[r];
    std::uint16_t* const y = p.y + offset_of(p.y_steps, task.batch, task.head, own);
    ONNXOPT_UNROLL for (int n = 0; n < D / 8; ++n) ONNXOPT_UNROLL for (int c = 0; c < 2; ++c) {
      const std::int64_t column = task.column + n * 8 + threadIdx.x % 4 * 2 + c;
      if (column < p.width) y[column * p.y_steps.column] = E::put(nothing ? 0.0f : results.of[n].values[r * 2 + c] * factor);
    }
  }
}

template <int D, class E>
__global__ void __launch_bounds__(kHalfThreads, D > 64 ? 3 : 4) attend_halves(const HalfProblem<E> __grid_constant__ p) {
  auto& shared = *static_cast<HalfShared<D>*>(shared_memory());
  const std::int64_t tiles = count_tiles<D>(p);
  const Operand<E> queries{p.q, p.rotary, p.rotary.of_queries, p.rows, p.depth};
  const Operand<E> keys{p.k, p.rotary, p.rotary.of_keys, p.keys, p.depth};
  const Operand<E> values{p.v, p.rotary, false, p.keys, p.width};
  const bool whole = p.depth <= D;  // so queries stay, and keys are on their way before they are needed
  for (std::int64_t number = blockIdx.x; number < tiles; number += gridDim.x) {
    const HalfTask task = task_of<D, int>(p, number);
    const std::int64_t row = task.row + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    HalfOnline online;
    Tiles<D> results{};
    if (whole) {
      lay_halves<D, kHalfRows>(queries, task.batch, task.head, task.row, 0, shared.queries);
      lay_halves<D, kHalfKeys<D>>(keys, task.batch, task.kv_head, 0, 0, shared.keys);
    }
    commit_copies();
    for (std::int64_t first = 0; first < p.keys; first += kHalfKeys<D>) {
      lay_halves<D, kHalfKeys<D>>(values, task.batch, task.kv_head, first, task.column, shared.values);
      commit_copies();
      Tiles<kHalfKeys<D>> scores{};
      if (whole) {
        wait_for_copies<1>();
        __syncthreads();
        add_scores<D, E>(shared, scores);
      } else {
        for (std::int64_t column = 0; column < p.depth; column += D) {
          lay_halves<D, kHalfRows>(queries, task.batch, task.head, task.row, column, shared.queries);
          lay_halves<D, kHalfKeys<D>>(keys, task.batch, task.kv_head, first, column, shared.keys);
          commit_copies();
          wait_for_copies<0>();
          __syncthreads();
          add_scores<D, E>(shared, scores);
          __syncthreads();
        }
      }
      shape_scores<D, E>(p, task, row, first, scores);
      online.take(scores, p.keys - first, results);
      __syncthreads();  // all keys were read
      if (whole && first + kHalfKeys<D> < p.keys)
        lay_halves<D, kHalfKeys<D>>(keys, task.batch, task.kv_head, first + kHalfKeys<D>, 0, shared.keys);
      commit_copies();
      wait_for_copies<1>();
      __syncthreads();  // the values are there
      add_weighted<D, E>(shared, scores, results);
      __syncthreads();  // and were read
    }
    write_halves<D, E>(p, task, row, online, results);
    wait_for_copies<0>();
    __syncthreads();
  }
}

struct HalfFamily {
  using Problem = Halves;
  using Half = TwoByteElement<Element::kHalf>;
  using Brain = TwoByteElement<Element::kBrain>;

  template <class Use>
  static Result<bool> for_each(const Use& use) {
    Result<bool> done = use(attend_halves<64, Half>);
    if (done) done = use(attend_halves<128, Half>);
    if (done) done = use(attend_halves<64, Brain>);
    return done ? use(attend_halves<128, Brain>) : done;
  }

  template <class Use>
  static Result<bool> plan(const Problem& problem, int, const Use& use) {
    const auto with = [&]<int D, class E>() {
      const HalfProblem<E>& parameter = problem;
      return use(attend_halves<D, E>, parameter,
                 onnxopt::cuda::Launch{count_tiles<D>(problem), kHalfThreads, sizeof(HalfShared<D>)});
    };
    const bool narrow = problem.depth <= 64 && problem.width <= 64;
    if (problem.brain) return narrow ? with.template operator()<64, Brain>() : with.template operator()<128, Brain>();
    return narrow ? with.template operator()<64, Half>() : with.template operator()<128, Half>();
  }
};

}  // namespace
}  // namespace onnxopt::attention::cuda
