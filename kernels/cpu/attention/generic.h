// Attention of floats: its products are those of the matrix micro-kernel.
#include "kernels/cpu/attention/group.h"
#include "kernels/cpu/gemm/micro.h"

namespace onnxopt::attention {
namespace {

using gemm::kColumns;
using gemm::kRows;

/// Floats at whose distance rows fall into one set of the first-level cache.
constexpr std::int64_t kSetDistance = 1024;
/// Rows of a task that read the values where they are.
constexpr std::int64_t kFewRows = 64;

/// Queries, keys and values of a group, as far as they are copied.
struct Floats {
  static constexpr std::int64_t kTogetherRows = kRows, kTogetherColumns = signed_of(kColumns);
  float *queries, *keys, *values;

  static std::int64_t bytes(const Problem& problem, std::int64_t rows, std::int64_t) {
    return (queries_of(problem, rows) + tile_of(problem) * (problem.depth + round_up(problem.width, kTogetherColumns))) *
           signed_of(sizeof(float));
  }
  static std::int64_t queries_of(const Problem& problem, std::int64_t rows) {
    return round_up(rows * problem.depth, signed_of(kPanel));
  }
  Floats(const Problem& problem, std::int64_t rows, char* memory)
      : queries(reinterpret_cast<float*>(memory)),
        keys(queries + queries_of(problem, rows)),
        values(keys + tile_of(problem) * problem.depth) {}
};

class FloatGroup final : public Group<FloatGroup> {
 public:
  FloatGroup(const Problem& problem, const Workspace& work, std::int64_t group, std::int64_t row, std::int64_t rows)
      : Group(problem, work, group, row, rows), o_(problem, rows, work.operands) {}

  /// The rows are read where they are, unless they have to be changed or would fall into one set of the first-level cache.
  void find_queries() {
    const Rotary* const rotary = p_.rotary.of_queries ? &p_.rotary : nullptr;
    const Steps& steps = p_.q.steps;
    if (rotary == nullptr && steps.column == 1 && p_.heads == p_.kv_heads && steps.row % kSetDistance != 0) {
      queries_ = row_of(p_.q, place(0));
      query_step_ = steps.row;
      return;
    }
    for (std::int64_t r = 0; r < rows_; ++r) copy_row(rotary, p_.q, place(r), p_.depth, o_.queries + r * p_.depth);
    queries_ = o_.queries;
    query_step_ = p_.depth;
  }

  /// Keys and values in the order of the micro-kernel; what comes next is on its way to the cache meanwhile.
  void pack(const Tile& tile) const {
    for (std::int64_t j = 0; j < tile.size; j += signed_of(kPanel)) {
      const std::int64_t begin = tile.begin + j, end = least(begin + signed_of(kPanel), p_.keys);
      for (std::int64_t key = begin; key < end; ++key) fetch_row(p_.v, {batch_, kv_head_, key}, p_.width);
      for (std::int64_t key = end; key < least(end + signed_of(kPanel), p_.keys); ++key)
        fetch_row(p_.k, {batch_, kv_head_, key}, p_.depth);
      pack_panel(tile.begin + j, least(tile.size - j, signed_of(kPanel)), o_.keys + j * p_.depth);
    }
    if (!reads_values_in_place()) pack_values(tile);
  }

  void multiply_keys(const Tile& tile, std::int64_t r, std::int64_t rows) const {
    const std::int64_t panel = p_.depth * signed_of(kPanel);
    for (std::int64_t j = 0; j < tile.size; j += signed_of(kColumns))
      multiply_strip(queries_ + r * query_step_, query_step_, rows, p_.depth, {o_.keys + j * p_.depth, signed_of(kPanel), panel},
                     w_.scores + j, w_.score_step, least(tile.size - j, signed_of(kColumns)), false);
  }

  void multiply_values(const Tile& tile, std::int64_t r, std::int64_t rows, bool accumulate) const {
    const bool in_place = reads_values_in_place();
    const float* const first = in_place ? row_of(p_.v, {batch_, kv_head_, tile.begin}) : o_.values;
    const std::int64_t step = in_place ? p_.v.steps.row : signed_of(kColumns);
    for (std::int64_t j = 0; j < p_.width; j += signed_of(kColumns))
      multiply_strip(w_.scores, w_.score_step, rows, tile.size, {first + (in_place ? j : j * tile.size), step, signed_of(kPanel)},
                     w_.results + r * w_.result_step + j, w_.result_step, least(p_.width - j, signed_of(kColumns)), accumulate);
  }

  void keep(std::int64_t i, std::int64_t j, V::F weights) const { V::store(w_.scores + i * w_.score_step + j, weights); }

 private:
  /// Up to 16 keys as columns, scaled; the missing ones are zero.
  void pack_panel(std::int64_t key, std::int64_t count, float* panel) const {
    const Rotary* const rotary = p_.rotary.of_keys ? &p_.rotary : nullptr;
    const bool direct = p_.k.steps.column == 1 && rotary == nullptr;
    const float* rows[kPanel] = {};
    for (std::int64_t j = 0; j < count; ++j) {
      const Place at{batch_, kv_head_, key + j};
      float* const line = w_.line + j * p_.depth;
      if (direct)
        rows[j] = row_of(p_.k, at);
      else
        copy_row(rotary, p_.k, at, p_.depth, line), rows[j] = line;
    }
    for (std::int64_t d = 0; d < p_.depth; d += signed_of(W))
      for (std::size_t part = 0; part < kPanel; part += W)
        transpose_square(rows + part, d, least(p_.depth - d, signed_of(W)), panel + d * signed_of(kPanel) + part);
  }

  void transpose_square(const float* const* rows, std::int64_t from, std::int64_t columns, float* to) const {
    const V::F scale = V::set1(p_.scale);
    V::F square[W];
#pragma GCC unroll 16
    for (std::size_t j = 0; j < W; ++j)
      square[j] = rows[j] ? V::mul(scale, V::load_first(rows[j] + from, static_cast<std::size_t>(columns))) : V::set1(0.0f);
    transpose(square);
    if (columns == signed_of(W)) {
#pragma GCC unroll 16
      for (std::size_t d = 0; d < W; ++d) V::store(to + d * kPanel, square[d]);
    } else {
      for (std::int64_t d = 0; d < columns; ++d) V::store(to + d * signed_of(kPanel), square[d]);
    }
  }

  /// Few rows do not pay for a copy of the values. The micro-kernel reads whole panels.
  bool reads_values_in_place() const {
    return rows_ <= kFewRows && p_.v.steps.column == 1 && p_.width % signed_of(kPanel) == 0 && p_.v.steps.row % kSetDistance != 0;
  }

  /// Values in strips of as many columns as the micro-kernel takes at once; the missing ones are zero.
  void pack_values(const Tile& tile) const {
    for (std::int64_t j = 0; j < tile.size; ++j) {
      const Place at{batch_, kv_head_, tile.begin + j};
      const float* row = row_of(p_.v, at);
      if (p_.v.steps.column != 1) {
        copy_row(nullptr, p_.v, at, p_.width, w_.line);
        row = w_.line;
      }
      for (std::int64_t column = 0; column < p_.width; column += signed_of(kColumns)) {
        float* const to = o_.values + column * tile.size + j * signed_of(kColumns);
        for (std::size_t d = 0; d < kColumns; d += W) {
          const std::int64_t left = p_.width - column - signed_of(d);
          V::store(to + d, left >= signed_of(W) ? V::load(row + column + d)
                           : left > 0           ? V::load_first(row + column + d, static_cast<std::size_t>(left))
                                                : V::set1(0.0f));
        }
      }
    }
  }

  /// C = A B or C + A B, in blocks of nearly the same number of rows.
  static void multiply_strip(const float* a, std::int64_t a_step, std::int64_t rows, std::int64_t depth, const gemm::Columns& b,
                             float* c, std::int64_t c_step, std::int64_t columns, bool accumulate) {
    const std::int64_t blocks = (rows + kRows - 1) / kRows;
    for (std::int64_t i = 0; i < blocks; ++i) {
      const std::int64_t begin = rows * i / blocks, end = rows * (i + 1) / blocks;
      gemm::Target target{c + begin * c_step, c_step, static_cast<std::size_t>(columns)};
      target.accumulate = accumulate;
      gemm::multiply(static_cast<int>(end - begin), gemm::Strided{a + begin * a_step, a_step}, 1, static_cast<std::size_t>(depth),
                     b, target);
    }
  }

  Floats o_;
  const float* queries_ = nullptr;
  std::int64_t query_step_ = 0;
};

}  // namespace

namespace ONNXOPT_VARIANT {

void run(const Problem& problem, const Range& range) { run_groups<FloatGroup, Floats>(problem, range); }

}  // namespace ONNXOPT_VARIANT
}  // namespace onnxopt::attention
