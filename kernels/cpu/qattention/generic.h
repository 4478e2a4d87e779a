// Attention of bytes: its products are those of qgemm's micro-kernel.
//
// Each query, each key and each column of a tile's values is rounded around 0, so that its largest byte is 127 or -127. Weights,
// which are between 0 and 1, are rounded to 65535 steps, whose high and low bytes are multiplied apart: a row has many small
// weights that count together.
#include <type_traits>

#include "kernels/cpu/attention/group.h"
#include "kernels/cpu/qattention/qattention.h"
#include "kernels/cpu/qgemm/micro.h"

namespace onnxopt::qattention {
namespace {

using attention::kPanel;
using attention::least;
using attention::Place;
using attention::Problem;
using attention::Range;
using attention::signed_of;
using attention::Tile;
using attention::Workspace;
using qgemm::Dot;
using simd::V;
using simd::W;
using F = V::F;

constexpr std::int64_t kGroup = signed_of(qgemm::kGroup), kWidth = signed_of(W), kPanelColumns = signed_of(kPanel);
constexpr float kLevels = 65535.0f, kLargest = 127.0f;
/// The zero point of queries: the products take them as unsigned bytes.
constexpr std::int32_t kMiddle = 128;
/// Bytes of a cache line: parts of the memory begin with one.
constexpr std::int64_t kLine = 64;

/// Queries, keys, values and weights of a group as bytes, and what each of their rows or columns is scaled with.
struct Bytes {
  static constexpr std::int64_t kTogetherRows = Dot::kRows, kTogetherColumns = signed_of(qgemm::kColumns);
  std::uint8_t *queries, *high_weights, *low_weights, *rows_of_keys;
  std::int8_t *keys, *values;
  float *query_scales, *key_scales, *value_scales, *high_scales, *low_scales;
  std::int32_t *query_zeros, *key_sums, *nothing;
  std::int64_t depth, weight_step, value_panel;

  /// The sizes of the parts, in the order of the constructor.
  struct Sizes {
    std::int64_t of[14];
  };
  static Sizes sizes(const Problem& p, std::int64_t rows, std::int64_t block_rows) {
    const std::int64_t depth = round_up(p.depth, kGroup), tile = attention::tile_of(p), width = round_up(p.width, kTogetherColumns);
    const std::int64_t ones = std::int64_t{sizeof(float)} * (block_rows > width ? block_rows : width);
    const std::int64_t weights = block_rows * (tile + kLine), four = sizeof(float);
    return {{rows * depth, weights, weights, kPanelColumns * depth, tile * depth, tile * width, rows * four, tile * four,
             width * four, ones, ones, rows * four, tile * four, ones}};
  }
  static std::int64_t bytes(const Problem& p, std::int64_t rows, std::int64_t block_rows) {
    std::int64_t total = 0;
    for (const std::int64_t size : sizes(p, rows, block_rows).of) total += round_up(size, kLine) + kLine;
    return total;
  }

  Bytes(const Problem& p, std::int64_t rows, const Workspace& work)
      : depth(round_up(p.depth, kGroup)),
        weight_step(attention::tile_of(p) + kLine),
        value_panel(attention::tile_of(p) * kPanelColumns) {
    const Sizes all = sizes(p, rows, work.block_rows);
    char* memory = work.operands;
    const std::int64_t* size = all.of;
    // A vector of bytes may be written behind the last one.
    const auto take = [&](auto*& part) {
      part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(memory);
      memory += round_up(*size++, kLine) + kLine;
    };
    take(queries), take(high_weights), take(low_weights), take(rows_of_keys), take(keys), take(values), take(query_scales),
        take(key_scales);
    take(value_scales), take(high_scales), take(low_scales), take(query_zeros), take(key_sums), take(nothing);
    const std::int64_t ones = all.of[13] / signed_of(sizeof(float));
    for (std::int64_t i = 0; i < ones; ++i) {
      high_scales[i] = 256.0f / kLevels;
      low_scales[i] = 1.0f / kLevels;
      nothing[i] = 0;
    }
  }
};

class ByteGroup final : public attention::Group<ByteGroup> {
 public:
  ByteGroup(const Problem& problem, const Workspace& work, std::int64_t group, std::int64_t row, std::int64_t rows)
      : Group(problem, work, group, row, rows), o_(problem, rows, work) {}

  void find_queries() {
    for (std::int64_t r = 0; r < rows_; r += kWidth) {
      const float* rows[W];
      const std::int64_t count = least(rows_ - r, kWidth);
      for (std::int64_t i = 0; i < count; ++i) rows[i] = floats_of(p_.q, place(r + i), p_.depth, p_.rotary.of_queries, i);
      round_rows(rows, count, kMiddle, o_.queries + r * o_.depth, o_.query_scales + r);
      for (std::int64_t i = 0; i < count; ++i) o_.query_zeros[r + i] = kMiddle;
    }
  }

  void pack(const Tile& tile) const {
    for (std::int64_t j = 0; j < tile.size; j += kPanelColumns) {
      for (std::int64_t key = j; key < least(j + kPanelColumns, tile.size); ++key)
        fetch_row(p_.v, {batch_, kv_head_, tile.begin + key}, p_.width);
      pack_keys(tile, j);
    }
    for (std::int64_t column = 0; column < p_.width; column += kWidth) pack_values(tile, column);
  }

  void multiply_keys(const Tile& tile, std::int64_t r, std::int64_t rows) const {
    for (std::int64_t j = 0; j < tile.size; j += Bytes::kTogetherColumns) {
      qgemm::Target target{
          w_.scores + j,       w_.score_step,      static_cast<std::size_t>(least(tile.size - j, Bytes::kTogetherColumns)),
          o_.query_scales + r, o_.query_zeros + r, o_.key_scales + j,
          o_.key_sums + j};
      multiply_strip(o_.queries + r * o_.depth, o_.depth, rows, o_.depth, {o_.keys + j * o_.depth, kPanelColumns * o_.depth},
                     target);
    }
  }

  void keep(std::int64_t i, std::int64_t j, F weights) const {
    const std::int64_t at = i * o_.weight_step + j;
    Dot::store_words(o_.high_weights + at, o_.low_weights + at, V::mul(weights, V::set1(kLevels)));
  }

  void multiply_values(const Tile& tile, std::int64_t r, std::int64_t rows, bool add) const {
    for (std::int64_t j = 0; j < p_.width; j += Bytes::kTogetherColumns) {
      const qgemm::Columns values{o_.values + j / kPanelColumns * o_.value_panel, o_.value_panel};
      qgemm::Target target{w_.results + r * w_.result_step + j,
                           w_.result_step,
                           static_cast<std::size_t>(least(p_.width - j, Bytes::kTogetherColumns)),
                           o_.high_scales,
                           o_.nothing,
                           o_.value_scales + j,
                           o_.nothing};
      target.added_ld = w_.result_step;
      if (add) target.added = target.c;
      multiply_strip(o_.high_weights, o_.weight_step, rows, round_up(tile.size, kGroup), values, target);
      target.row_scales = o_.low_scales;
      target.added = target.c;
      multiply_strip(o_.low_weights, o_.weight_step, rows, round_up(tile.size, kGroup), values, target);
    }
  }

 private:
  /// A row, rotated, its columns side by side; one of up to 16 that are looked at together.
  const float* floats_of(const attention::View& view, const Place& at, std::int64_t columns, bool rotated, std::int64_t i) const {
    if (!rotated && view.steps.column == 1) return attention::row_of(view, at);
    float* const line = w_.line + i * columns;
    attention::copy_row(rotated ? &p_.rotary : nullptr, view, at, columns, line);
    return line;
  }

  /// Up to a vector of rows as bytes around `zero`, and the scale of each: NaN where something is not finite.
  void round_rows(const float* const* rows, std::int64_t count, std::int32_t zero, std::uint8_t* to, float* scales) const {
    F largest[W], doubts[W];
#pragma GCC unroll 16
    for (std::int64_t i = 0; i < kWidth; ++i) largest[i] = doubts[i] = V::set1(0.0f);
    for (std::int64_t i = 0; i < count; ++i)
      for (std::int64_t d = 0; d < p_.depth; d += kWidth) {
        const F x = part_of(rows[i], d);
        largest[i] = V::max(largest[i], V::abs(x));
        doubts[i] = V::add(doubts[i], V::mul(x, V::set1(0.0f)));
      }
    attention::transpose(largest);
    attention::transpose(doubts);
    for (std::int64_t i = 1; i < kWidth; ++i) {
      largest[0] = V::max(largest[0], largest[i]);
      doubts[0] = V::add(doubts[0], doubts[i]);
    }
    float inverses[W];
    V::store(inverses, inverse_of(scale_of(largest[0])));
    V::store_first(scales, V::add(scale_of(largest[0]), doubts[0]), static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i)
      for (std::int64_t d = 0; d < p_.depth; d += kWidth)
        Dot::store_bytes(to + i * o_.depth + d, V::mul(part_of(rows[i], d), V::set1(inverses[i])), zero);
  }

  F part_of(const float* row, std::int64_t d) const {
    return p_.depth - d >= kWidth ? V::load(row + d) : V::load_first(row + d, static_cast<std::size_t>(p_.depth - d));
  }

  static F scale_of(F largest) { return V::mul(largest, V::set1(1.0f / kLargest)); }
  /// The reciprocal of scales; 0 of those that are none.
  static F inverse_of(F scale) {
    const F none = V::set1(std::numeric_limits<float>::min());
    return V::select(V::less(scale, none), V::set1(0.0f), V::div(V::set1(1.0f), V::max(none, scale)));
  }

  /// Up to 16 keys from `j` on as columns, four bytes of each side by side; the missing ones are zero.
  void pack_keys(const Tile& tile, std::int64_t j) const {
    const std::int64_t count = least(tile.size - j, kPanelColumns);
    std::int8_t* const panel = o_.keys + j * o_.depth;
    for (std::int64_t part = 0; part < kPanelColumns; part += kWidth) {
      const float* rows[W];
      const std::int64_t held = count > part ? least(count - part, kWidth) : 0;
      for (std::int64_t i = 0; i < held; ++i)
        rows[i] = floats_of(p_.k, {batch_, kv_head_, tile.begin + j + part + i}, p_.depth, p_.rotary.of_keys, i);
      round_rows(rows, held, 0, o_.rows_of_keys, o_.key_scales + j + part);
      for (std::int64_t i = 0; i < held; ++i) o_.key_scales[j + part + i] *= p_.scale;
      for (std::int64_t d = 0; d < o_.depth; d += kWidth * kGroup) transpose_square(d, held, panel + part * kGroup);
      sum_keys(panel + part * kGroup, o_.key_sums + j + part);
    }
  }

  /// The sums of the bytes of a vector of keys.
  void sum_keys(const std::int8_t* columns, std::int32_t* to) const {
    constexpr std::uint8_t kOnes[kGroup] = {1, 1, 1, 1};
    Dot::Sums sums = Dot::zero();
    for (std::int64_t d = 0; d < o_.depth; d += kGroup)
      sums = Dot::add(sums, Dot::broadcast(kOnes), Dot::load(columns + d * kPanelColumns));
    Dot::store_sums(to, sums);
  }

  /// Four bytes are moved as one float would be.
  void transpose_square(std::int64_t from, std::int64_t count, std::int8_t* panel) const {
    const std::int64_t groups = least((o_.depth - from) / kGroup, kWidth);
    F square[W];
#pragma GCC unroll 16
    for (std::int64_t i = 0; i < kWidth; ++i)
      square[i] = i < count ? V::load_first(reinterpret_cast<const float*>(o_.rows_of_keys + i * o_.depth + from),
                                            static_cast<std::size_t>(groups))
                            : V::set1(0.0f);
    attention::transpose(square);
#pragma GCC unroll 16
    for (std::int64_t g = 0; g < kWidth; ++g)
      if (g < groups) V::store(reinterpret_cast<float*>(panel + (from + g * kGroup) * kPanelColumns), square[g]);
  }

  /// A vector of columns, from `column` on, of all values of a tile; missing columns and values are zero.
  void pack_values(const Tile& tile, std::int64_t column) const {
    const auto columns = static_cast<std::size_t>(least(p_.width - column, kWidth));
    const auto row = [&](std::int64_t j) {
      if (j >= tile.size) return V::set1(0.0f);
      return V::load_first(floats_of(p_.v, {batch_, kv_head_, tile.begin + j}, p_.width, false, 0) + column, columns);
    };
    F largest = V::set1(0.0f), doubt = V::set1(0.0f);
    for (std::int64_t j = 0; j < tile.size; ++j) {
      const F one = row(j);
      largest = V::max(largest, V::abs(one));
      doubt = V::add(doubt, V::mul(one, V::set1(0.0f)));
    }
    const F inverse = inverse_of(scale_of(largest));
    V::store(o_.value_scales + column, V::add(scale_of(largest), doubt));
    std::int8_t* const to = o_.values + column / kPanelColumns * o_.value_panel + column % kPanelColumns * kGroup;
    const auto rounded = [&](std::int64_t j) { return V::mul(row(j), inverse); };
    for (std::int64_t j = 0; j < tile.size; j += kGroup)
      Dot::store_fours(to + j * kPanelColumns, rounded(j), rounded(j + 1), rounded(j + 2), rounded(j + 3));
  }

  /// C = A B or C + A B, in blocks of nearly the same number of rows.
  static void multiply_strip(const std::uint8_t* a, std::int64_t a_step, std::int64_t rows, std::int64_t depth,
                             const qgemm::Columns& b, const qgemm::Target& whole) {
    const std::int64_t blocks = (rows + Dot::kRows - 1) / Dot::kRows;
    for (std::int64_t i = 0; i < blocks; ++i) {
      const std::int64_t begin = rows * i / blocks, end = rows * (i + 1) / blocks;
      qgemm::Target target = whole;
      target.c += begin * whole.ld;
      target.row_scales += begin;
      target.zeros += begin;
      if (whole.added) target.added += begin * whole.added_ld;
      qgemm::multiply(static_cast<int>(end - begin), qgemm::Strided{a + begin * a_step, a_step}, 1,
                      static_cast<std::size_t>(depth / kGroup), b, target);
    }
  }

  Bytes o_;
};

}  // namespace

namespace ONNXOPT_VARIANT {

void run(const Problem& problem, const Range& range) { attention::run_groups<ByteGroup, Bytes>(problem, range); }

}  // namespace ONNXOPT_VARIANT
}  // namespace onnxopt::qattention
