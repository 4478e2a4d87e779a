// The kernel: threads share a row, and keep what they read of it in shared memory, each its own part.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/norm/plan.h"

namespace onnxopt::norm::cuda {
namespace {

constexpr int kTerms = Terms::kMost;

struct Plus {
  ONNXOPT_IN_KERNEL float operator()(float a, float b) const { return a + b; }
};
struct Largest {  // a NaN may be left out, since the sum of powers then shows it
  ONNXOPT_IN_KERNEL float operator()(float a, float b) const { return a > b ? a : b; }
};

/// The threads that share a row.
struct Team {
  unsigned lanes, warps;
  float* numbers;  // one of each thread of the block

  /// Every thread gets the same: what `combine` makes of all their values. All threads of the block have to be here.
  template <class Combine>
  ONNXOPT_IN_KERNEL float all(float value, Combine combine) const {
    for (unsigned bits = lanes / 2; bits > 0; bits /= 2)
      value = combine(value, __shfl_xor_sync(kWholeWarp, value, static_cast<int>(bits)));
    if (warps == 1) return value;
    __syncthreads();  // the numbers before were read
    numbers[threadIdx.x] = value;
    __syncthreads();
    const unsigned first = threadIdx.x / (kLanes * warps) * (kLanes * warps) + threadIdx.x % kLanes;
    value = numbers[first];
    for (unsigned warp = 1; warp < warps; ++warp) value = combine(value, numbers[first + warp * kLanes]);
    return value;
  }

  ONNXOPT_IN_KERNEL unsigned member() const { return threadIdx.x / kLanes % warps * lanes + threadIdx.x % kLanes % lanes; }
  ONNXOPT_IN_KERNEL unsigned members() const { return lanes * warps; }
  /// Which of the rows that the block takes at once.
  ONNXOPT_IN_KERNEL unsigned row() const { return threadIdx.x / kLanes / warps * (kLanes / lanes) + threadIdx.x % kLanes / lanes; }
  ONNXOPT_IN_KERNEL unsigned rows() const { return blockDim.x / members(); }
};

/// Combines the values that a thread has of its items, and then those of the team.
template <int E, class Combine>
ONNXOPT_IN_KERNEL float combine_all(const Team& team, Floats<E> floats, Combine combine) {
  ONNXOPT_UNROLL for (int step = 1; step < E; step *= 2) ONNXOPT_UNROLL for (int k = 0; k + step < E; k += 2 * step)
      floats.values[k] = combine(floats.values[k], floats.values[k + step]);
  return team.all(floats.values[0], combine);
}

/// What a row needs to be finished: a row x becomes factor (x - center) + shift, or what Softmax makes of it.
template <int E>
struct Statistics {
  Kind kind;
  float epsilon;
  float share;  // of an element in the mean
  float center = 0.0f, factor = 1.0f, shift = 0.0f;
  Floats<E> total{}, rest{};

  ONNXOPT_IN_KERNEL bool powers() const { return kind == Kind::kSoftmax || kind == Kind::kLogSoftmax; }

  ONNXOPT_IN_KERNEL void begin(int pass) {
    total = splat<E>(powers() && pass == 0 ? -INFINITY : 0.0f);
    rest = splat<E>(0.0f);
  }

  ONNXOPT_IN_KERNEL void add(int pass, const Floats<E>& x) {
    ONNXOPT_UNROLL for (int k = 0; k < E; ++k) {
      const float value = x.values[k], difference = value - center;
      float& sum = total.values[k];
      if (powers()) {
        sum = pass == 0 ? Largest()(sum, value) : sum + expf(difference);
      } else if (kind == Kind::kLayer && pass == 0) {
        sum += value;
      } else {
        sum = fmaf(difference, difference, sum);
        rest.values[k] += difference;
      }
    }
  }

  /// The mean is corrected by that of the differences to it, which rounding leaves.
  ONNXOPT_IN_KERNEL void end(int pass, const Team& team) {
    if (powers()) {
      if (pass == 0) {
        center = combine_all(team, total, Largest());
      } else {
        const float sum = combine_all(team, total, Plus());
        factor = 1.0f / sum;
        shift = logf(sum);
      }
      return;
    }
    const float mean = combine_all(team, total, Plus()) * share;
    if (kind == Kind::kLayer && pass == 0) {
      center = mean;
      return;
    }
    const float correction = kind == Kind::kLayer ? combine_all(team, rest, Plus()) * share : 0.0f;
    const float variance = fmaf(-correction, correction, mean);
    factor = 1.0f / sqrtf((variance < 0.0f ? 0.0f : variance) + epsilon);
    shift = -(correction * factor);
  }

  /// Whether the first pass tells all.
  ONNXOPT_IN_KERNEL bool one_pass() const { return kind == Kind::kRms; }

  ONNXOPT_IN_KERNEL Floats<E> finish(Floats<E> x) const {
    ONNXOPT_UNROLL for (int k = 0; k < E; ++k) {
      const float difference = x.values[k] - center;
      x.values[k] = kind == Kind::kSoftmax      ? expf(difference) * factor
                    : kind == Kind::kLogSoftmax ? difference - shift
                                                : fmaf(difference, factor, shift);
    }
    return x;
  }
};

/// A factor or term of each element: of the element's own, or of its channel. A channel has all elements of an item.
template <int E, class Code>
ONNXOPT_IN_KERNEL Floats<E> affine(const Rows<Code>& p, const float* values, std::int64_t row, std::int64_t element) {
  if (p.by_element) return read<E>(values + element);
  const std::int64_t channels = p.width / p.run.size;
  return splat<E>(values[row % p.period * channels + ew::divide(element, p.run, p.narrow)]);
}

/// Normalized elements of a row, from element `k` on, with factors and terms.
template <int E, class Code>
ONNXOPT_IN_KERNEL Floats<E> scaled(const Rows<Code>& p, std::int64_t row, std::int64_t k, Floats<E> x) {
  if (p.scale) {
    const Floats<E> scale = affine<E>(p, p.scale, row, k);
    ONNXOPT_UNROLL for (int i = 0; i < E; ++i) x.values[i] *= scale.values[i];
  }
  if (p.bias) {
    const Floats<E> bias = affine<E>(p, p.bias, row, k);
    ONNXOPT_UNROLL for (int i = 0; i < E; ++i) x.values[i] += bias.values[i];
  }
  return x;
}

/// Where a row begins in the tensor.
template <class Code>
ONNXOPT_IN_KERNEL std::int64_t first_of(const Rows<Code>& p, std::int64_t row) {
  return p.inner == 1 ? row * p.width : row / p.inner * p.width * p.inner + row % p.inner;
}

/// Where a row of each term begins.
struct Starts {
  const char* data[Terms::kMost];
};

ONNXOPT_IN_KERNEL std::int64_t bytes_of(const Terms::Term& term, std::int64_t elements) { return elements * (term.half ? 2 : 4); }

ONNXOPT_IN_KERNEL Starts starts_of(const Sum& sum, std::int64_t row, bool narrow) {
  Starts starts;
  ONNXOPT_UNROLL for (int i = 0; i < kTerms; ++i) starts.data[i] = reinterpret_cast<const char*>(sum.terms.terms[i].data);
  for (int axis = static_cast<int>(sum.terms.rank) - 1; axis >= 0; --axis) {
    const std::int64_t rest = ew::divide(row, sum.dims[axis], narrow), at = row - rest * sum.dims[axis].size;
    ONNXOPT_UNROLL for (int i = 0; i < kTerms; ++i) if (i < static_cast<int>(sum.terms.count)) starts.data[i] +=
        bytes_of(sum.terms.terms[i], at * sum.terms.terms[i].steps[axis]);
    row = rest;
  }
  return starts;
}

template <class Code>
ONNXOPT_IN_KERNEL Starts starts_of(const Code&, std::int64_t, bool) {
  return {};
}

/// Elements of a row of a term, from element `k` on.
template <int E>
ONNXOPT_IN_KERNEL Floats<E> read_term(const Terms::Term& term, const char* start, std::int64_t k) {
  if (!term.half) {
    const float* const data = reinterpret_cast<const float*>(start);
    return term.scalar ? splat<E>(*data) : read<E>(data + k);
  }
  const std::uint16_t* const data = reinterpret_cast<const std::uint16_t*>(start);
  if (term.scalar) return splat<E>(ew::from_half(*data));
  ew::Vector<std::uint16_t, E> halves;
  halves.read(data + k);
  Floats<E> floats;
  ONNXOPT_UNROLL for (int i = 0; i < E; ++i) floats.values[i] = ew::from_half(halves.values[i]);
  return floats;
}

/// The sum of a row's terms, from element `k` on, in their order.
template <int E>
ONNXOPT_IN_KERNEL Floats<E> add_terms(const Terms& terms, const Starts& starts, std::int64_t k) {
  Floats<E> sum = splat<E>(0.0f);
  ONNXOPT_UNROLL for (int i = 0; i < kTerms; ++i) {
    if (i >= static_cast<int>(terms.count)) break;
    const Floats<E> term = read_term<E>(terms.terms[i], starts.data[i], k);
    ONNXOPT_UNROLL for (int e = 0; e < E; ++e) sum.values[e] =
        i == 0 ? term.values[e] * terms.factor : sum.values[e] + term.values[e];
  }
  return sum;
}

template <class Code>
constexpr bool kPlain = std::is_same_v<Code, Sum>;

/// Elements of a row as they are before they are normalized; `at` is where they lie in the tensor.
template <class L, class Code>
ONNXOPT_IN_KERNEL Floats<L::kCount> source(const Rows<Code>& p, const ew::Slots<L>& slots, const Starts& starts, std::int64_t k,
                                           std::int64_t at) {
  if constexpr (kPlain<Code>) {
    if (p.x) return read<L::kCount>(p.x + at);
    const Floats<L::kCount> x = add_terms<L::kCount>(p.prologue.terms, starts, k);
    if (p.kept) write(p.kept + at, x);
    return x;
  } else {
    return p.prologue_present ? floats_of(ew::evaluate(p.prologue, slots, at)) : read<L::kCount>(p.x + at);
  }
}

/// Writes a result, or what the epilogue makes of it.
template <class L, class Code>
ONNXOPT_IN_KERNEL void finish(const Rows<Code>& p, const ew::Slots<L>& slots, std::int64_t at, const Floats<L::kCount>& y) {
  if constexpr (!kPlain<Code>) {
    if (p.epilogue_present) {
      const L result = lanes_of<L>(y);
      ew::evaluate(p.epilogue, slots, at, &result);
      return;
    }
  }
  if (p.y_half == nullptr) return write(p.y + at, y);
  ew::Vector<std::uint16_t, L::kCount> halves;
  ONNXOPT_UNROLL for (int k = 0; k < L::kCount; ++k) halves.values[k] = ew::to_half(y.values[k]);
  halves.write(p.y_half + at);
}

template <class L, class Code>
__global__ void __launch_bounds__(kMostThreads, 1) normalize_rows(const Rows<Code> __grid_constant__ p) {
  constexpr int E = L::kCount;
  // Slots, what is held of rows, and the team's numbers.
  const ew::Slots<L> slots{shared_memory(), threadIdx.x, blockDim.x};
  float* const held = reinterpret_cast<float*>(static_cast<L*>(slots.memory) + p.slots * blockDim.x);
  const Team team{p.lanes, p.warps, held + p.held * blockDim.x * E};
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * team.rows();
  for (std::int64_t block_row = static_cast<std::int64_t>(blockIdx.x) * team.rows(); block_row < p.rows; block_row += stride) {
    const std::int64_t row = block_row + team.row();
    // Where a team has no row, its threads take part in what all threads do together.
    const std::int64_t width = row < p.rows ? p.width : 0;
    const std::int64_t first = first_of(p, row);
    const Starts starts = starts_of(p.prologue, row, p.rows < std::int64_t{1} << 31);
    Statistics<E> statistics{p.kind, p.epsilon, 1.0f / static_cast<float>(p.width)};
    for (int pass = statistics.one_pass() ? 1 : 0, begin = pass; pass <= 2; ++pass) {
      statistics.begin(pass);
      unsigned item = 0;
      for (std::int64_t k = team.member() * E; k < width; k += team.members() * E, ++item) {
        const std::int64_t at = first + k * p.inner;
        float* const place = held + (item * blockDim.x + threadIdx.x) * E;
        const bool is_held = item < p.held;
        Floats<E> x = is_held && pass > begin ? read<E>(place) : source(p, slots, starts, k, at);
        if (is_held && pass == begin) write(place, x);
        if (pass < 2)
          statistics.add(pass, x);
        else
          finish(p, slots, at, scaled(p, row, k, statistics.finish(x)));
      }
      if (pass < 2) statistics.end(pass, team);
    }
  }
}

struct Family {
  using Problem = cuda::Problem;

  template <class Use>
  static Result<bool> for_each(const Use& use) {
    return for_each_form([&]<class L, class Code>() { return use(normalize_rows<L, Code>); });
  }

  template <class Use>
  static Result<bool> plan(const Problem& problem, int, const Use& use) {
    return with_rows(problem, [&]<class L, class Code>(const Rows<Code>& rows, const Launch& launch) {
      return use(normalize_rows<L, Code>, rows, launch);
    });
  }
};

}  // namespace
}  // namespace onnxopt::norm::cuda
