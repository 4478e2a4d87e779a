// Attention: softmax(Q K^T scale + masks) V, tile by tile, so that the scores never lie in memory as a whole.
//
// After T. Dao et al., "FlashAttention" (2022), and M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax" (2018).
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/common.h"

namespace onnxopt::attention {

/// A tensor [batch, head, row, column] anywhere in memory: elements from one element to the next along each axis.
struct Steps {
  std::int64_t batch = 0, head = 0, row = 0, column = 0;
};

template <class T>
struct ViewOf {
  const T* data = nullptr;
  Steps steps;
};

/// What becomes of a score: the mask is added to it, or it is replaced where a boolean mask is false (kKeep) or true (kHide).
enum class MaskKind : std::uint8_t { kAdd, kKeep, kHide };

/// A mask of the scores. Along the batch it begins over again after `batches`.
struct Mask {
  const void* data = nullptr;
  MaskKind kind = MaskKind::kAdd;
  float fill = 0.0f;  // what replaces a score
  std::int64_t batches = 1;
  Steps steps;
};

/// Rotary embedding of the first `width` columns: x[d] becomes x[d] cos[d] + x[partner of d] sin[d], where the sines carry the
/// sign. The partner is half the width away or, interleaved, the neighbour. (J. Su et al., "RoFormer", 2021.)
template <class T>
struct RotaryOf {
  const T* cos = nullptr;
  const T* sin = nullptr;
  Steps cos_steps, sin_steps;
  std::int64_t width = 0;
  bool interleaved = false;
  bool of_queries = false, of_keys = false;
};

constexpr std::size_t kMostMasks = 3;

/// Heads share keys and values in groups of heads / kv_heads. Masks that are added are of the type of all tensors.
template <class T>
struct ProblemOf {
  std::int64_t batch = 0, heads = 1, kv_heads = 1;
  std::int64_t rows = 0, keys = 0;    // of each head
  std::int64_t depth = 0, width = 0;  // columns of Q and K, of V
  ViewOf<T> q, k, v;
  T* y = nullptr;
  Steps y_steps;
  float scale = 1.0f;
  float cap = 0.0f;  // scores become cap tanh(score / cap), unless it is 0
  Mask masks[kMostMasks];
  std::size_t mask_count = 0;
  bool nan_to_zero = false;  // rows without a weight become 0, not NaN
  RotaryOf<T> rotary;
};
using View = ViewOf<float>;
using Rotary = RotaryOf<float>;
using Problem = ProblemOf<float>;

/// What one task computes: rows [row, row_end) of the heads that share keys, in each of the groups [group, group_end). The rows of
/// such heads come one after the other.
struct Range {
  std::int64_t group, group_end, row, row_end;
};

/// One implementation, for one instruction set.
struct Variant {
  const char* name;
  const char* isa;
  void (*run)(const Problem&, const Range&);
};

/// The variants that were built, best first; the portable one is last.
std::span<const Variant> variants();

/// Computes a problem. The results do not depend on how `parallel_for` spreads the work.
void run(const Problem& problem, const Variant& variant, const ParallelFor& parallel_for);

}  // namespace onnxopt::attention
