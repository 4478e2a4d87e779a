// The product of a step's rows with a matrix, and sums over the columns of blocks: one template, instantiated once per instruction
// set.
#include "kernels/cpu/gemm/micro.h"
#include "kernels/cpu/recurrence/recurrence.h"
#include "kernels/cpu/simd/functions.h"

namespace onnxopt::recurrence {
namespace {

constexpr auto kPanelFloats = static_cast<std::int64_t>(gemm::kPanel);
/// Panels that one row is multiplied with together: enough sums to hide the latency of an addition.
constexpr int kTogether = 4;

/// One row times whole panels from column `j` on. Each sum runs over k in order, as in the blocks of several rows.
template <int P>
inline void multiply_row(const PackedProduct& product, std::int64_t j) {
  constexpr int kVectors = P * gemm::kVectorsOfPanel;
  const float* const weights = product.weights + j / kPanelFloats * product.panel;
  simd::V::F sums[kVectors];
  for (int v = 0; v < kVectors; ++v)
    sums[v] = product.bias ? simd::V::load(product.bias + j + v * static_cast<int>(simd::V::kWidth)) : simd::V::set1(0.0f);
  for (std::int64_t k = 0; k < product.depth; ++k) {
    const simd::V::F one = simd::V::set1(product.x[k]);
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const float* const panel = weights + v / gemm::kVectorsOfPanel * product.panel + k * product.step;
      sums[v] =
          simd::V::accumulate(one, simd::V::load(panel + v % gemm::kVectorsOfPanel * static_cast<int>(simd::V::kWidth)), sums[v]);
    }
  }
  for (int v = 0; v < kVectors; ++v) simd::V::store(product.y + j + v * static_cast<int>(simd::V::kWidth), sums[v]);
}

/// `count` (0: all) elements of some vectors of the sum of a row's numbers times rows of a matrix.
template <int N>
inline void combine_rows(const float* x, std::int64_t depth, const float* matrix, std::int64_t distance, std::size_t count,
                         float* y) {
  constexpr auto kWidth = static_cast<int>(simd::V::kWidth);
  simd::V::F sums[N];
  for (auto& one : sums) one = simd::V::set1(0.0f);
  for (std::int64_t k = 0; k < depth; ++k, matrix += distance) {
    const simd::V::F one = simd::V::set1(x[k]);
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v)
      sums[v] = simd::V::accumulate(one, count ? simd::V::load_first(matrix, count) : simd::V::load(matrix + v * kWidth), sums[v]);
  }
  for (int v = 0; v < N; ++v) count ? simd::V::store_first(y, sums[v], count) : simd::V::store(y + v * kWidth, sums[v]);
}

/// The sum of products of two rows' elements.
inline float multiply_rows(const float* a, const float* b, std::int64_t count) {
  constexpr auto kWidth = static_cast<std::int64_t>(simd::V::kWidth);
  simd::V::F sums[4];
  for (auto& one : sums) one = simd::V::set1(0.0f);
  std::int64_t k = 0;
  for (; k + 4 * kWidth <= count; k += 4 * kWidth)
    for (int v = 0; v < 4; ++v)
      sums[v] = simd::V::accumulate(simd::V::load(a + k + v * kWidth), simd::V::load(b + k + v * kWidth), sums[v]);
  for (; k + kWidth <= count; k += kWidth) sums[0] = simd::V::accumulate(simd::V::load(a + k), simd::V::load(b + k), sums[0]);
  if (k < count) {
    const auto rest = static_cast<std::size_t>(count - k);
    sums[1] = simd::V::accumulate(simd::V::load_first(a + k, rest), simd::V::load_first(b + k, rest), sums[1]);
  }
  return simd::V::sum(simd::V::add(simd::V::add(sums[0], sums[1]), simd::V::add(sums[2], sums[3])));
}

/// Elements of a row that go through a gated update together: as many as sums, which hide the latency of an addition.
constexpr int kUpdated = 4;

template <int N>
inline simd::Pack<N> fetch(const Factor& factor, std::int64_t block, std::int64_t element) {
  using F = simd::Pack<N>;
  const float* const data = factor.data + block * factor.distance;
  switch (factor.kind) {
    case Factor::kOne: return simd::splat<F>(*data);
    case Factor::kRows: return simd::load<F>(data, 0);
    case Factor::kAll: return simd::load<F>(data + element * static_cast<std::int64_t>(simd::W), simd::W);
    default: break;
  }
  F numbers;
  for (int v = 0; v < N; ++v) numbers.v[v] = simd::V::set1(data[element + v]);
  return numbers;
}

template <int N>
inline simd::Pack<N> product(const Factors& factors, std::int64_t block, std::int64_t element) {
  simd::Pack<N> all = fetch<N>(factors.list[0], block, element);
  for (int i = 1; i < factors.count; ++i) all = all * fetch<N>(factors.list[i], block, element);
  return all;
}

/// Updates some elements of a block's rows; what they add to the sums.
template <int N>
inline simd::Pack<N> update_elements(const GatedUpdate& all, std::int64_t block, std::int64_t element) {
  using F = simd::Pack<N>;
  const std::int64_t at = (block * all.width + element) * static_cast<std::int64_t>(simd::W);
  F gate = product<N>(all.gate, block, element);
  if (all.exponential) gate = simd::exp(gate);
  F made = gate * simd::load<F>(all.state + at, simd::W) + product<N>(all.update, block, element);
  simd::store(all.next + at, made);
  for (int i = 0; i < all.read.count; ++i) made = made * fetch<N>(all.read.list[i], block, element);
  return made;
}

}  // namespace

namespace ONNXOPT_VARIANT {

void multiply_plain(const float* x, std::int64_t rows, std::int64_t depth, const float* matrix, std::int64_t distance,
                    std::int64_t columns, float* y) {
  constexpr auto kWidth = static_cast<std::int64_t>(simd::V::kWidth);
  for (std::int64_t i = 0; i < rows; ++i, x += depth, y += distance) {
    if (distance == 1) {
      *y = multiply_rows(x, matrix, depth);
      continue;
    }
    std::int64_t j = 0;
    for (; j + 4 * kWidth <= columns; j += 4 * kWidth) combine_rows<4>(x, depth, matrix + j, distance, 0, y + j);
    for (; j + kWidth <= columns; j += kWidth) combine_rows<1>(x, depth, matrix + j, distance, 0, y + j);
    if (j < columns) combine_rows<1>(x, depth, matrix + j, distance, static_cast<std::size_t>(columns - j), y + j);
  }
}

void multiply(const PackedProduct& product) {
  std::int64_t j = 0;
  if (product.rows == 1) {
    // Another core may have written the row: its lines are asked for together, not one after the other.
    for (std::int64_t k = 0; k < product.depth; k += kPanelFloats) __builtin_prefetch(product.x + k);
    for (; j + kTogether * kPanelFloats <= product.columns; j += kTogether * kPanelFloats) multiply_row<kTogether>(product, j);
    for (; j + kPanelFloats <= product.columns; j += kPanelFloats) multiply_row<1>(product, j);
  }
  constexpr auto kBlock = static_cast<std::int64_t>(gemm::kColumns);
  const std::int64_t depth = product.depth;
  for (; j < product.columns; j += kBlock)
    for (std::int64_t i = 0; i < product.rows; i += gemm::kRows) {
      const std::int64_t some_rows = product.rows - i < gemm::kRows ? product.rows - i : gemm::kRows;
      const std::int64_t some_columns = product.columns - j < kBlock ? product.columns - j : kBlock;
      const gemm::Columns b{product.weights + j / kPanelFloats * product.panel, product.step, product.panel};
      const gemm::Target target{product.y + i * product.y_step + j, product.y_step, static_cast<std::size_t>(some_columns),
                                product.bias ? product.bias + j : nullptr};
      gemm::multiply(static_cast<int>(some_rows), gemm::Strided{product.x + i * depth, depth}, 1, static_cast<std::size_t>(depth),
                     b, target);
    }
}

void powers(const float* x, const float* less, bool only, std::int64_t count, float* y) {
  using Vector = simd::Pack<1>;
  constexpr auto kWidth = static_cast<std::int64_t>(simd::V::kWidth);
  const Vector same = simd::splat<Vector>(only ? *less : 0.0f);
  std::int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    const Vector other = only ? same : Vector{simd::V::load(less + i)};
    simd::V::store(y + i, simd::short_exp(Vector{simd::V::load(x + i)} - other).v[0]);
  }
  if (i == count) return;
  const auto rest = static_cast<std::size_t>(count - i);
  const Vector other = only ? same : Vector{simd::V::load_first(less + i, rest)};
  simd::V::store_first(y + i, simd::short_exp(Vector{simd::V::load_first(x + i, rest)} - other).v[0], rest);
}

void spread(const float* from, std::int64_t count, float* to) {
  for (std::int64_t i = 0; i < count; ++i, to += simd::V::kWidth) simd::V::store(to, simd::V::set1(from[i]));
}

void sum(const float* vectors, std::int64_t distance, std::int64_t count, bool more, float* to) {
  // Four sums hide the latency of an addition.
  simd::V::F sums[4];
  for (auto& one : sums) one = simd::V::set1(0.0f);
  if (more) sums[0] = simd::V::load(to);
  std::int64_t i = 0;
  for (; i + 4 <= count; i += 4, vectors += 4 * distance)
    for (int k = 0; k < 4; ++k) sums[k] = simd::V::add(sums[k], simd::V::load(vectors + k * distance));
  for (; i < count; ++i, vectors += distance) sums[0] = simd::V::add(sums[0], simd::V::load(vectors));
  simd::V::store(to, simd::V::add(simd::V::add(sums[0], sums[1]), simd::V::add(sums[2], sums[3])));
}

void update_gated(const GatedUpdate& all) {
  for (std::int64_t block = 0; block < all.blocks; ++block) {
    auto sums = simd::splat<simd::Pack<kUpdated>>(0.0f);
    std::int64_t element = 0;
    for (; element + kUpdated <= all.width; element += kUpdated) sums = sums + update_elements<kUpdated>(all, block, element);
    for (; element < all.width; ++element) sums.v[0] = simd::V::add(sums.v[0], update_elements<1>(all, block, element).v[0]);
    simd::V::store(all.sums + block * static_cast<std::int64_t>(simd::W),
                   simd::V::add(simd::V::add(sums.v[0], sums.v[1]), simd::V::add(sums.v[2], sums.v[3])));
  }
}

}  // namespace ONNXOPT_VARIANT
}  // namespace onnxopt::recurrence
