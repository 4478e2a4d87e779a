// Rows in the first-level cache: one template, instantiated once per instruction set. The including file defines `struct V` in an
// unnamed namespace, so that no code is shared between files that are compiled with different flags.
#include <cmath>
#include <limits>

#include "kernels/cpu/norm/norm.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd/functions.h"

namespace onnxopt::norm {
namespace {

using namespace simd;

using Wide = Pack<4>;
using Narrow = Pack<1>;
constexpr std::int64_t kWidth = static_cast<std::int64_t>(W), kSpan = 4 * kWidth;
/// Elements of a few rows that go through all steps together: they and what is read beside them stay in the first-level cache.
constexpr std::int64_t kBlock = 4096;

inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

/// The first elements of a vector; the others are zero.
inline Narrow keep_first(Narrow x, std::size_t count) {
  float held[W];
  store(held, x);
  return {V::load_first(held, count)};
}

/// Calls `wide(i)` for every whole span of `n` elements, `narrow(i, k)` for every whole vector after them, the k-th, and
/// `last(i, k, count)` for the rest.
template <class WideBody, class NarrowBody, class LastBody>
inline void for_vectors(std::int64_t n, WideBody wide, NarrowBody narrow, LastBody last) {
  std::int64_t i = 0;
  for (; i + kSpan <= n; i += kSpan) wide(i);
  int k = 0;
  for (; i + kWidth <= n; i += kWidth) narrow(i, k++);
  if (i < n) last(i, k, static_cast<std::size_t>(n - i));
}

/// The sum of the elements of a pack: its vectors, then their halves, in pairs.
inline float total_of(Wide x) {
  float held[W];
  V::store(held, V::add(V::add(x.v[0], x.v[1]), V::add(x.v[2], x.v[3])));
  for (std::size_t half = W / 2; half > 0; half /= 2)
    for (std::size_t i = 0; i < half; ++i) held[i] += held[i + half];
  return held[0];
}

inline float largest_of(Wide x) {
  float held[W];
  V::store(held, V::max(V::max(x.v[0], x.v[1]), V::max(x.v[2], x.v[3])));
  for (std::size_t half = W / 2; half > 0; half /= 2)
    for (std::size_t i = 0; i < half; ++i) held[i] = held[i + half] > held[i] ? held[i + half] : held[i];
  return held[0];
}

/// Adds up packs that a body makes of the elements from an index on; `Each` is called for a pack of a type and an index.
struct Sum {
  Wide total = splat<Wide>(0.0f);

  void add(Wide x) { total = total + x; }
  void add(Narrow x, int k) { total.v[k] = V::add(total.v[k], x.v[0]); }
};

/// The sum of what `term` makes of the elements of a row.
template <class Term>
inline double sum_of(const float* x, std::int64_t n, Term term) {
  double total = 0.0;
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const float* const chunk = x + begin;
    Sum sum;
    for_vectors(
        least(kChunk, n - begin), [&](std::int64_t i) { sum.add(term(load<Wide>(chunk + i, W))); },
        [&](std::int64_t i, int k) { sum.add(term(load<Narrow>(chunk + i, W)), k); },
        [&](std::int64_t i, int k, std::size_t count) {
          sum.add(keep_first(term(Narrow{V::load_first(chunk + i, count)}), count), k);
        });
    total += static_cast<double>(total_of(sum.total));
  }
  return total;
}

/// A row becomes factor (x - mean) + shift.
struct Moments {
  float mean, factor, shift;
};

/// The mean is corrected by that of the differences to it, which rounding leaves.
Moments moments_of(const float* x, std::int64_t n, float epsilon) {
  const auto size = static_cast<double>(n);
  const auto mean = static_cast<float>(sum_of(x, n, [](auto v) { return v; }) / size);
  double squares = 0.0, rest = 0.0;
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const float* const chunk = x + begin;
    Sum square, difference;
    for_vectors(
        least(kChunk, n - begin),
        [&](std::int64_t i) {
          const Wide d = load<Wide>(chunk + i, W) - splat<Wide>(mean);
          difference.add(d);
          square.total = fma(d, d, square.total);
        },
        [&](std::int64_t i, int k) {
          const Narrow d = load<Narrow>(chunk + i, W) - splat<Narrow>(mean);
          difference.add(d, k);
          square.add(d * d, k);
        },
        [&](std::int64_t i, int k, std::size_t count) {
          const Narrow d = keep_first(Narrow{V::load_first(chunk + i, count)} - splat<Narrow>(mean), count);
          difference.add(d, k);
          square.add(d * d, k);
        });
    squares += static_cast<double>(total_of(square.total));
    rest += static_cast<double>(total_of(difference.total));
  }
  const double correction = rest / size;
  double variance = squares / size - correction * correction;
  if (variance < 0.0) variance = 0.0;
  const double factor = 1.0 / __builtin_sqrt(variance + static_cast<double>(epsilon));
  return {mean, static_cast<float>(factor), static_cast<float>(-correction * factor)};
}

Moments root_of(const float* x, std::int64_t n, float epsilon) {
  const double squares = sum_of(x, n, [](auto v) { return v * v; });
  const double factor = 1.0 / __builtin_sqrt(squares / static_cast<double>(n) + static_cast<double>(epsilon));
  return {0.0f, static_cast<float>(factor), 0.0f};
}

/// Writes what `body` makes of the packs of a row; it is given the elements' index, and how to load a pack of another row there.
template <class Body>
inline void transform(const float* x, float* y, std::int64_t n, Body body) {
  for_vectors(
      n,
      [&](std::int64_t i) {
        store(y + i, body(load<Wide>(x + i, W), [i](const float* p) { return load<Wide>(p + i, W); }));
      },
      [&](std::int64_t i, int) {
        store(y + i, body(load<Narrow>(x + i, W), [i](const float* p) { return load<Narrow>(p + i, W); }));
      },
      [&](std::int64_t i, int, std::size_t count) {
        const Narrow r = body(Narrow{V::load_first(x + i, count)},
                              [i, count](const float* p) { return Narrow{V::load_first(p + i, count)}; });
        V::store_first(y + i, r.v[0], count);
      });
}

/// factor (x - mean) + shift, times scale, plus bias.
template <bool scaled, bool biased>
void apply_moments(const float* x, float* y, std::int64_t n, Moments m, const float* scale, const float* bias) {
  transform(x, y, n, [=](auto v, auto load_at) {
    using F = decltype(v);
    F r = fma(v - splat<F>(m.mean), splat<F>(m.factor), splat<F>(m.shift));
    if constexpr (scaled) r = r * load_at(scale);
    if constexpr (biased) r = r + load_at(bias);
    return r;
  });
}

void normalize(const Problem& p, std::int64_t row, const float* x, float* y) {
  const Moments m = p.kind == Kind::kLayer ? moments_of(x, p.width, p.epsilon) : root_of(x, p.width, p.epsilon);
  const Affine& a = p.affine;
  if (a.run == 1 && a.period == 1) {
    if (a.scale && a.bias) return apply_moments<true, true>(x, y, p.width, m, a.scale, a.bias);
    if (a.scale) return apply_moments<true, false>(x, y, p.width, m, a.scale, a.bias);
    if (a.bias) return apply_moments<false, true>(x, y, p.width, m, a.scale, a.bias);
    return apply_moments<false, false>(x, y, p.width, m, a.scale, a.bias);
  }
  std::int64_t channel = row % a.period * (p.width / a.run);
  for (std::int64_t begin = 0; begin < p.width; begin += a.run, ++channel) {
    const float scale = a.scale ? a.scale[channel] : 1.0f, bias = a.bias ? a.bias[channel] : 0.0f;
    transform(x + begin, y + begin, a.run, [=](auto v, auto) {
      using F = decltype(v);
      const F r = fma(v - splat<F>(m.mean), splat<F>(m.factor), splat<F>(m.shift));
      return r * splat<F>(scale) + splat<F>(bias);
    });
  }
}

/// The largest element; a NaN may be left out, since the sum of powers then shows it.
float largest_in(const float* x, std::int64_t n) {
  Wide largest = splat<Wide>(-std::numeric_limits<float>::infinity());
  for_vectors(
      n, [&](std::int64_t i) { largest = max(largest, load<Wide>(x + i, W)); },
      [&](std::int64_t i, int k) { largest.v[k] = V::max(largest.v[k], V::load(x + i)); },
      [&](std::int64_t i, int k, std::size_t count) {
        float held[W];
        V::store(held, V::set1(x[i]));
        for (std::size_t j = 1; j < count; ++j) held[j] = x[i + static_cast<std::int64_t>(j)];
        largest.v[k] = V::max(largest.v[k], V::load(held));
      });
  return largest_of(largest);
}

/// e^x for x <= 0.
template <class F>
inline F power_of(F x) {
  return exp_in_range(max(splat<F>(-104.0f), x));
}

/// Writes e^(x - largest) and returns the sum.
double powers(const float* x, float* y, std::int64_t n, float largest) {
  double total = 0.0;
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const float* const from = x + begin;
    float* const to = y + begin;
    Sum sum;
    for_vectors(
        least(kChunk, n - begin),
        [&](std::int64_t i) {
          const Wide e = power_of(load<Wide>(from + i, W) - splat<Wide>(largest));
          store(to + i, e);
          sum.add(e);
        },
        [&](std::int64_t i, int k) {
          const Narrow e = power_of(load<Narrow>(from + i, W) - splat<Narrow>(largest));
          store(to + i, e);
          sum.add(e, k);
        },
        [&](std::int64_t i, int k, std::size_t count) {
          const Narrow e = power_of(Narrow{V::load_first(from + i, count)} - splat<Narrow>(largest));
          V::store_first(to + i, e.v[0], count);
          sum.add(keep_first(e, count), k);
        });
    total += static_cast<double>(total_of(sum.total));
  }
  return total;
}

void softmax(const float* x, float* y, std::int64_t n) {
  const double total = powers(x, y, n, largest_in(x, n));
  const auto factor = static_cast<float>(1.0 / total);
  transform(y, y, n, [=](auto v, auto) { return v * splat<decltype(v)>(factor); });
}

void log_softmax(const float* x, float* y, std::int64_t n) {
  const float largest = largest_in(x, n);
  const double total = sum_of(x, n, [=](auto v) { return power_of(v - splat<decltype(v)>(largest)); });
  const auto rest = static_cast<float>(__builtin_log(total));
  transform(x, y, n, [=](auto v, auto) {
    using F = decltype(v);
    return (v - splat<F>(largest)) - splat<F>(rest);
  });
}

void run_row(const Problem& p, std::int64_t row, const float* x, float* y) {
  switch (p.kind) {
    case Kind::kLayer:
    case Kind::kRms: return normalize(p, row, x, y);
    case Kind::kSoftmax: return softmax(x, y, p.width);
    case Kind::kLogSoftmax: return log_softmax(x, y, p.width);
  }
}

void clip(float* y, std::int64_t n, gemm::Bounds bounds) {
  transform(y, y, n, [=](auto v, auto) { return clamp_keep_nan(v, bounds.low, bounds.high); });
}

/// Applies a program to lines, so many at a time as it takes together.
void apply(const elementwise::Epilogue& program, std::int64_t begin, std::int64_t end, std::int64_t width, const float* raw,
           float* into) {
  const std::int64_t together = program.rows_together();
  for (std::int64_t line = begin, stop; line < end; line = stop) {
    stop = least(end, (line / together + 1) * together);
    const std::int64_t offset = (line - begin) * width;
    const elementwise::RawBlock block{raw + offset, width};
    program.apply(line, stop - line, 0, width, {&block, raw ? std::size_t{1} : std::size_t{0}}, into ? into + offset : nullptr);
  }
}

}  // namespace

namespace ONNXOPT_VARIANT {

void run(const Problem& p, std::int64_t begin, std::int64_t end) {
  const std::int64_t together = kBlock > p.width ? kBlock / p.width : 1;
  const bool held = (p.prologue && p.kept == nullptr) || p.y == nullptr;
  const std::int64_t most = least(together, end - begin) * p.width;
  auto* const block =
      held ? reinterpret_cast<float*>(scratch(static_cast<std::size_t>(most) * sizeof(float), ScratchOwner::kNorm)) : nullptr;
  const std::int64_t line = p.width / p.lines;
  for (std::int64_t row = begin; row < end; row += together) {
    const std::int64_t rows = least(together, end - row), offset = row * p.width;
    const float* const x = p.x ? p.x + offset : p.kept ? p.kept + offset : block;
    float* const y = p.y ? p.y + offset : block;
    if (p.prologue) apply(*p.prologue, row * p.lines, (row + rows) * p.lines, line, nullptr, p.kept ? nullptr : block);
    for (std::int64_t i = 0; i < rows; ++i) run_row(p, row + i, x + i * p.width, y + i * p.width);
    if (p.clip) clip(y, rows * p.width, *p.clip);
    if (p.epilogue) apply(*p.epilogue, row * p.lines, (row + rows) * p.lines, line, y, nullptr);
  }
}

}  // namespace ONNXOPT_VARIANT
}  // namespace onnxopt::norm
