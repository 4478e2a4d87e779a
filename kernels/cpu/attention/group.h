// What attention of some rows does whatever its products are made of: one template, instantiated once per instruction set.
//
// A tile of keys and values is packed for a matrix micro-kernel; block by block of rows, the scores of the tile are computed, put
// through the online softmax and multiplied with the values, all in the first-level cache.
#pragma once

#include <limits>

#include "kernels/cpu/attention/attention.h"
#include "kernels/cpu/attention/transpose.h"
#include "kernels/cpu/gemm/panel.h"
#include "kernels/cpu/rounding.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd/functions.h"

namespace onnxopt::attention {
namespace {

using gemm::kPanel;
using simd::Pack;
using simd::V;
using simd::W;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLog2E = simd::kLog2E;
/// The sum of the weights of a row before its first tile.
constexpr float kUntouched = -1.0f;
/// Bytes of a group that are fetched while the one before is computed.
constexpr std::int64_t kMostFetched = 1 << 16;
/// Keys of a tile.
constexpr std::int64_t kTile = 256;
/// Rows that become weights together, so that the processor always finds independent work.
constexpr int kTogether = 4;
/// Floats of the scores of a block of rows.
constexpr std::int64_t kScores = 6656;
/// A mask hides a tile if it is nowhere above `kHidden`, as long as the row sees a score above `kSeen` elsewhere: beside that, what
/// is hidden weighs nothing.
constexpr float kHidden = -1e30f, kSeen = -1e29f;

constexpr std::int64_t signed_of(std::size_t size) { return static_cast<std::int64_t>(size); }
std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

/// A row of the heads that share keys.
struct Place {
  std::int64_t batch, head, row;
};

/// A tile of keys.
struct Tile {
  std::int64_t begin, size;
  std::int64_t padded() const { return round_up(size, signed_of(kPanel)); }
};

/// Memory of a task. Rows of scores lie a cache line further apart than they need, so that they do not share its sets.
struct Workspace {
  float *scores, *results, *largest, *sums, *line;
  char* operands;  // what `Operands` keeps
  std::int64_t score_step, result_step, block_rows;
};

/// Keys of the largest tile, rounded up to whole panels.
std::int64_t tile_of(const Problem& problem) { return round_up(least(problem.keys, kTile), signed_of(kPanel)); }

/// `Operands` says how many rows and columns its micro-kernel takes at once, and how much memory it keeps.
template <class Operands>
Workspace make_workspace(const Problem& problem, std::int64_t rows) {
  const std::int64_t width = round_up(problem.width, Operands::kTogetherColumns), score_step = tile_of(problem) + signed_of(kPanel);
  std::int64_t block_rows = kScores / score_step / Operands::kTogetherRows * Operands::kTogetherRows;
  if (block_rows < Operands::kTogetherRows) block_rows = Operands::kTogetherRows;
  const std::int64_t sizes[] = {block_rows * score_step, rows * width, rows, rows,
                                signed_of(kPanel) * (problem.depth + problem.width)};
  constexpr std::int64_t kFloat = sizeof(float);
  std::int64_t total = 0;
  for (const std::int64_t size : sizes) total += round_up(size, signed_of(kPanel)) * kFloat;
  const std::int64_t kept = Operands::bytes(problem, rows, block_rows);
  char* memory = scratch(static_cast<std::size_t>(total + kept), ScratchOwner::kAttention);
  float* parts[5];
  for (int i = 0; i < 5; ++i) {
    parts[i] = reinterpret_cast<float*>(memory);
    memory += round_up(sizes[i], signed_of(kPanel)) * kFloat;
  }
  return {parts[0], parts[1], parts[2], parts[3], parts[4], memory, score_step, width, block_rows};
}

const float* row_of(const View& view, const Place& at) {
  return view.data + at.batch * view.steps.batch + at.head * view.steps.head + at.row * view.steps.row;
}

/// A row, rotated, into `line`.
void copy_row(const Rotary* rotary, const View& view, const Place& at, std::int64_t columns, float* line) {
  const float* const x = row_of(view, at);
  const std::int64_t step = view.steps.column, width = rotary ? rotary->width : 0;
  if (rotary) {
    const float* const cos =
        rotary->cos + at.batch * rotary->cos_steps.batch + at.head * rotary->cos_steps.head + at.row * rotary->cos_steps.row;
    const float* const sin =
        rotary->sin + at.batch * rotary->sin_steps.batch + at.head * rotary->sin_steps.head + at.row * rotary->sin_steps.row;
    const std::int64_t half = width / 2;
    if (rotary->interleaved) {
      for (std::int64_t d = 0; d < width; ++d) line[d] = x[d * step] * cos[d] + x[(d ^ 1) * step] * sin[d];
    } else {
      for (std::int64_t d = 0; d < half; ++d) line[d] = x[d * step] * cos[d] + x[(d + half) * step] * sin[d];
      for (std::int64_t d = half; d < width; ++d) line[d] = x[d * step] * cos[d] + x[(d - half) * step] * sin[d];
    }
  }
  if (step == 1)
    for (std::int64_t d = width; d < columns; ++d) line[d] = x[d];
  else
    for (std::int64_t d = width; d < columns; ++d) line[d] = x[d * step];
}

/// Attention of rows of the heads that share keys. `Self` has the operands and their products:
///     find_queries()                            before anything else
///     pack(tile)                                keys and values of a tile
///     multiply_keys(tile, r, rows)              scores of rows from r on
///     keep(i, j, weights)                       weights of the block's row i from column j on, a vector
///     multiply_values(tile, r, rows, add)       results of rows, added to those of earlier tiles
template <class Self>
class Group {
 public:
  Group(const Problem& problem, const Workspace& work, std::int64_t group, std::int64_t row, std::int64_t rows)
      : p_(problem), w_(work), batch_(group / problem.kv_heads), kv_head_(group % problem.kv_heads), first_(row), rows_(rows) {
    for (std::size_t i = 0; i < p_.mask_count; ++i) mask_offsets_[i] = batch_ % p_.masks[i].batches * p_.masks[i].steps.batch;
  }

  /// Asks for the operands, where they are few.
  void fetch() const {
    const std::int64_t columns = p_.keys * (p_.depth + p_.width) + rows_ * p_.depth;
    if (columns * static_cast<std::int64_t>(sizeof(float)) > kMostFetched) return;
    for (std::int64_t j = 0; j < p_.keys; ++j) {
      fetch_row(p_.k, {batch_, kv_head_, j}, p_.depth);
      fetch_row(p_.v, {batch_, kv_head_, j}, p_.width);
    }
    for (std::int64_t r = 0; r < rows_; ++r) fetch_row(p_.q, place(r), p_.depth);
  }

  void run() {
    self().find_queries();
    if (!attend(true)) attend(false);
    for (std::int64_t r = 0; r < rows_; ++r) write(r);
  }

 protected:
  static void fetch_row(const View& view, const Place& at, std::int64_t columns) {
    const float* const row = row_of(view, at);
    for (std::int64_t d = 0; d < columns; d += signed_of(kPanel)) __builtin_prefetch(row + d * view.steps.column);
  }

  Place place(std::int64_t r) const {
    const std::int64_t row = first_ + r;
    if (p_.heads == p_.kv_heads) return {batch_, kv_head_, row};
    return {batch_, kv_head_ * (p_.heads / p_.kv_heads) + row / p_.rows, row % p_.rows};
  }

  /// All tiles, or all but those that masks hide; false where that would have left out what a row needs.
  bool attend(bool skip) {
    for (std::int64_t r = 0; r < rows_; ++r) {
      w_.largest[r] = -kInfinity;
      w_.sums[r] = kUntouched;
    }
    bool skipped = false;
    for (Tile tile{0, 0}; tile.begin < p_.keys; tile.begin += kTile) {
      tile.size = least(p_.keys - tile.begin, kTile);
      bool packed = false;
      for (std::int64_t r = 0; r < rows_; r += w_.block_rows) {
        const std::int64_t rows = least(rows_ - r, w_.block_rows);
        if (skip && p_.mask_count > 0 && hidden(tile, r, rows)) {
          skipped = true;
          continue;
        }
        if (!packed) self().pack(tile);
        packed = true;
        const bool first = w_.sums[r] == kUntouched;
        self().multiply_keys(tile, r, rows);
        std::int64_t i = 0;
        for (; i + kTogether <= rows; i += kTogether) soften<kTogether>(tile, r, i, first);
        for (; i < rows; ++i) soften<1>(tile, r, i, first);
        self().multiply_values(tile, r, rows, !first);
      }
    }
    if (!skipped) return true;
    bool complete = true;
    for (std::int64_t r = 0; r < rows_; ++r) complete = complete && w_.largest[r] > kSeen;
    return complete;
  }

  /// Where a mask has the first key of a tile, for a row.
  template <class T>
  const T* mask_row(std::size_t index, const Tile& tile, const Place& at) const {
    const Mask& mask = p_.masks[index];
    return static_cast<const T*>(mask.data) + mask_offsets_[index] + at.head * mask.steps.head + at.row * mask.steps.row +
           tile.begin * mask.steps.column;
  }

  /// Whether one of the masks hides a tile from all of some rows.
  bool hidden(const Tile& tile, std::int64_t r, std::int64_t rows) const {
    for (std::size_t i = 0; i < p_.mask_count; ++i) {
      bool all = true;
      for (std::int64_t row = r; row < r + rows && all; ++row) all = hides_row(i, tile, place(row));
      if (all) return true;
    }
    return false;
  }

  bool hides_row(std::size_t index, const Tile& tile, const Place& at) const {
    const Mask& mask = p_.masks[index];
    const std::int64_t step = mask.steps.column, size = step == 0 ? 1 : tile.size;
    bool all = true;
    if (mask.kind != MaskKind::kAdd) {
      if (!(mask.fill <= kHidden)) return false;
      const bool hides = mask.kind == MaskKind::kHide;
      const auto* const row = mask_row<std::uint8_t>(index, tile, at);
      for (std::int64_t j = 0; j < size; ++j) all &= (row[j] != 0) == hides;
    } else {
      const auto* const row = mask_row<float>(index, tile, at);
      for (std::int64_t j = 0; j < size; ++j) all &= row[j] <= kHidden;
    }
    return all;
  }

  /// The scores of N rows become weights, from row `at` of the block on that begins at `r`; what the rows have seen before is
  /// brought to their scale.
  template <int N>
  void soften(const Tile& tile, std::int64_t r, std::int64_t at, bool first) {
    using F = Pack<N>;
    const std::int64_t padded = tile.padded();
    const auto step = static_cast<std::size_t>(w_.score_step);
    float* const scores = w_.scores + at * w_.score_step;
    r += at;
    for (int i = 0; i < N; ++i) change(tile, r + i, scores + static_cast<std::size_t>(i) * step);
    F largest, shift, sum = simd::splat<F>(0.0f);
    for (int i = 0; i < N; ++i) largest.v[i] = V::set1(w_.largest[r + i]);
    // NaNs are left out.
    for (std::int64_t j = 0; j < padded; j += signed_of(W)) largest = simd::max(simd::load<F>(scores + j, step), largest);
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) shift.v[i] = V::set1(raise(r + i, V::largest(largest.v[i])));
    for (std::int64_t j = 0; j < padded; j += signed_of(W)) {
      const F weights = power((simd::load<F>(scores + j, step) - shift) * simd::splat<F>(kLog2E));
      for (int i = 0; i < N; ++i) self().keep(at + i, j, weights.v[i]);
      sum = sum + weights;
    }
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) w_.sums[r + i] = (first ? 0.0f : w_.sums[r + i]) + V::sum(sum.v[i]);
  }

  /// What cap and masks make of the scores of a row.
  void change(const Tile& tile, std::int64_t r, float* scores) const {
    if (p_.cap != 0.0f) cap(scores, tile.padded());
    if (p_.mask_count > 0) {
      const Place at = place(r);
      for (std::size_t i = 0; i < p_.mask_count; ++i) apply(i, tile, at, scores);
    }
    hide_padding(scores, tile.size, tile.padded());
  }

  /// Notes the largest score of a row; what to subtract from its scores.
  float raise(std::int64_t r, float largest) const {
    const float before = w_.largest[r];
    if (largest > before && before > -kInfinity) rescale(r, before - largest);
    w_.largest[r] = largest;
    return largest == -kInfinity ? 0.0f : largest;
  }

  static void hide_padding(float* scores, std::int64_t size, std::int64_t padded) {
    for (std::int64_t j = size / signed_of(W) * signed_of(W); j < padded; j += signed_of(W)) {
      const std::int64_t kept = size > j ? size - j : 0;
      V::store(scores + j, V::load_first(scores + j, static_cast<std::size_t>(kept), V::set1(-kInfinity)));
    }
  }

  void cap(float* scores, std::int64_t count) const {
    using F = Pack<1>;
    const F most = simd::splat<F>(p_.cap), inverse = simd::splat<F>(1.0f / p_.cap);
    for (std::int64_t j = 0; j < count; j += signed_of(W))
      simd::store(scores + j, most * simd::tanh(simd::load<F>(scores + j, W) * inverse));
  }

  void apply(std::size_t index, const Tile& tile, const Place& at, float* scores) const {
    const Mask& mask = p_.masks[index];
    if (mask.kind != MaskKind::kAdd) {
      const bool hides = mask.kind == MaskKind::kHide;
      const auto* const row = mask_row<std::uint8_t>(index, tile, at);
      const std::int64_t step = mask.steps.column;
      for (std::int64_t j = 0; j < tile.size; ++j) scores[j] = (row[j * step] != 0) == hides ? mask.fill : scores[j];
    } else if (mask.steps.column == 0) {
      const float term = *mask_row<float>(index, tile, at);
      for (std::int64_t j = 0; j < tile.size; ++j) scores[j] += term;
    } else {
      const auto* const row = mask_row<float>(index, tile, at);
      for (std::int64_t j = 0; j < tile.size; j += signed_of(W)) {
        const std::int64_t left = tile.size - j;
        const V::F term = left >= signed_of(W) ? V::load(row + j) : V::load_first(row + j, static_cast<std::size_t>(left));
        V::store(scores + j, V::add(V::load(scores + j), term));
      }
    }
  }

  /// 2^x; what would be subnormal is 0.
  template <class F>
  static F power(F x) {
    const auto gone = x < simd::splat<F>(-126.0f);
    const F kept = simd::without(gone, x), n = simd::round_small(kept);
    return simd::without(gone, simd::short_power<F>({n, kept - n}));
  }

  void rescale(std::int64_t r, float exponent) const {
    const V::F factor = power(simd::splat<Pack<1>>(exponent * kLog2E)).v[0];
    float* const result = w_.results + r * w_.result_step;
    for (std::int64_t d = 0; d < w_.result_step; d += signed_of(W)) V::store(result + d, V::mul(V::load(result + d), factor));
    float one[W];
    V::store(one, factor);
    w_.sums[r] *= one[0];
  }

  /// The row of the output: the weighted values divided by the sum of their weights.
  void write(std::int64_t r) const {
    const Place at = place(r);
    const float sum = w_.sums[r];
    const bool nothing = p_.nan_to_zero && !(sum > 0.0f);
    const float* const result = w_.results + r * w_.result_step;
    float* const y = p_.y + at.batch * p_.y_steps.batch + at.head * p_.y_steps.head + at.row * p_.y_steps.row;
    const float inverse = 1.0f / sum;
    const std::int64_t step = p_.y_steps.column;
    if (step != 1 || nothing) {
      for (std::int64_t d = 0; d < p_.width; ++d) y[d * step] = nothing ? 0.0f : result[d] * inverse;
      return;
    }
    const V::F factor = V::set1(inverse);
    std::int64_t d = 0;
    for (; d + signed_of(W) <= p_.width; d += signed_of(W)) V::store(y + d, V::mul(V::load(result + d), factor));
    if (d < p_.width) V::store_first(y + d, V::mul(V::load(result + d), factor), static_cast<std::size_t>(p_.width - d));
  }

  const Problem& p_;
  const Workspace& w_;
  std::int64_t batch_, kv_head_, first_, rows_;

 private:
  Self& self() { return static_cast<Self&>(*this); }

  std::int64_t mask_offsets_[kMostMasks];  // of the batch
};

/// Runs the groups of a range.
template <class Self, class Operands>
void run_groups(const Problem& problem, const Range& range) {
  const Workspace work = make_workspace<Operands>(problem, range.row_end - range.row);
  for (std::int64_t group = range.group; group < range.group_end; ++group) {
    if (group + 1 < range.group_end) Self(problem, work, group + 1, range.row, range.row_end - range.row).fetch();
    Self(problem, work, group, range.row, range.row_end - range.row).run();
  }
}

}  // namespace
}  // namespace onnxopt::attention
