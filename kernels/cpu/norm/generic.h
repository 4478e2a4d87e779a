// Rows in the first-level cache: one template, instantiated once per instruction set. The including file defines `struct V` in an
// unnamed namespace, so that no code is shared between files that are compiled with different flags.
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
/// Rows of a block. A step is taken for all of them before the next one, so that no row waits for another's chain of operations.
constexpr std::int64_t kBlockRows = 64;

inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// --- parts of a row: four vectors; one of the up to three after them; the elements after those ---
struct Span {
  std::int64_t i;

  Wide load(const float* p, float = 0.0f) const { return simd::load<Wide>(p + i, W); }
  void store(float* p, Wide x) const { simd::store(p + i, x); }
  template <class Operation>
  static void fold(Wide& total, Wide x, Operation operation) {
    total = operation(total, x);
  }
};

template <int K>
struct Single {
  std::int64_t i;

  Narrow load(const float* p, float = 0.0f) const { return {V::load(p + i)}; }
  void store(float* p, Narrow x) const { V::store(p + i, x.v[0]); }
  template <class Operation>
  static void fold(Wide& total, Narrow x, Operation operation) {
    total.v[K] = operation(Narrow{total.v[K]}, x).v[0];
  }
};

struct Rest {
  std::int64_t i;
  std::size_t count;

  /// `missing` is what the other elements of the vector are.
  Narrow load(const float* p, float missing = 0.0f) const { return {V::load_first(p + i, count, V::set1(missing))}; }
  void store(float* p, Narrow x) const { V::store_first(p + i, x.v[0], count); }
  template <class Operation>
  static void fold(Wide& total, Narrow x, Operation operation) {
    Single<3>::fold(total, x, operation);
  }
};

/// Calls `body` for every part of a row of `n` elements.
template <class Body>
[[gnu::always_inline]] inline void for_parts(std::int64_t n, Body body) {
  std::int64_t i = 0;
  for (; i + kSpan <= n; i += kSpan) body(Span{i});
  if (i + kWidth <= n) {
    body(Single<0>{i});
    i += kWidth;
  }
  if (i + kWidth <= n) {
    body(Single<1>{i});
    i += kWidth;
  }
  if (i + kWidth <= n) {
    body(Single<2>{i});
    i += kWidth;
  }
  if (i < n) body(Rest{i, static_cast<std::size_t>(n - i)});
}

constexpr auto kAdd = [](auto a, auto b) { return a + b; };
constexpr auto kMax = [](auto a, auto b) { return max(a, b); };

inline double sum(Wide x) { return static_cast<double>(V::sum(V::add(V::add(x.v[0], x.v[1]), V::add(x.v[2], x.v[3])))); }

/// The sum over a row of what `term` makes of each part, given where the part's chunk begins.
template <class Term>
[[gnu::always_inline]] inline double sum_of(std::int64_t n, Term term) {
  double total = 0.0;
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    Wide of_chunk = splat<Wide>(0.0f);
    for_parts(least(kChunk, n - begin), [&](auto part) { part.fold(of_chunk, term(part, begin), kAdd); });
    total += sum(of_chunk);
  }
  return total;
}

/// Writes what `body` makes of the parts of a row.
template <class Body>
[[gnu::always_inline]] inline void transform(const float* x, float* y, std::int64_t n, Body body) {
  for_parts(n, [&](auto part) { part.store(y, body(part.load(x), part)); });
}

/// Rows of a block, one after the other.
struct Block {
  std::int64_t first, rows, width;
  const float* x;
  float* y;

  const float* source(std::int64_t i) const { return x + i * width; }
  float* target(std::int64_t i) const { return y + i * width; }
};

/// A number for each row of a block.
struct alignas(64) PerRow {
  float values[kBlockRows];

  float& operator[](std::int64_t i) { return values[i]; }
  float operator[](std::int64_t i) const { return values[i]; }
};
static_assert(kBlockRows % kWidth == 0);

/// Replaces the numbers of all rows.
template <class Body>
inline void update(PerRow& numbers, std::int64_t rows, Body body) {
  for (std::int64_t i = 0; i < rows; i += kWidth) store(numbers.values + i, body(load<Narrow>(numbers.values + i, W), i));
}

/// A row x becomes factor (x - mean) + shift.
struct Moments {
  PerRow mean, factor, shift;
};

/// The mean is corrected by that of the differences to it, which rounding leaves.
void find_moments(const Block& block, float epsilon, Moments& m) {
  const std::int64_t n = block.width;
  const double inverse = 1.0 / static_cast<double>(n);
  for (std::int64_t r = 0; r < block.rows; ++r) {
    const float* const x = block.source(r);
    m.mean[r] = static_cast<float>(sum_of(n, [x](auto part, std::int64_t begin) { return part.load(x + begin); }) * inverse);
  }
  for (std::int64_t r = 0; r < block.rows; ++r) {
    const float mean = m.mean[r];
    double squares = 0.0, rest = 0.0;
    for (std::int64_t begin = 0; begin < n; begin += kChunk) {
      const float* const x = block.source(r) + begin;
      Wide square = splat<Wide>(0.0f), difference = square;
      for_parts(least(kChunk, n - begin), [&](auto part) {
        auto d = part.load(x, mean);
        d = d - splat<decltype(d)>(mean);
        part.fold(difference, d, kAdd);
        part.fold(square, d, [](auto total, auto one) { return fma(one, one, total); });
      });
      squares += sum(square);
      rest += sum(difference);
    }
    rest *= inverse;
    const double variance = squares * inverse - rest * rest;
    m.factor[r] = static_cast<float>(variance < 0.0 ? 0.0 : variance);
    m.shift[r] = static_cast<float>(-rest);
  }
  update(m.factor, block.rows,
         [epsilon](Narrow v, std::int64_t) { return splat<Narrow>(1.0f) / sqrt(v + splat<Narrow>(epsilon)); });
  update(m.shift, block.rows, [&m](Narrow v, std::int64_t i) { return v * load<Narrow>(m.factor.values + i, W); });
}

void find_roots(const Block& block, float epsilon, Moments& m) {
  const double inverse = 1.0 / static_cast<double>(block.width);
  for (std::int64_t r = 0; r < block.rows; ++r) {
    const float* const x = block.source(r);
    const auto square = [x](auto part, std::int64_t begin) {
      const auto v = part.load(x + begin);
      return v * v;
    };
    m.factor[r] = static_cast<float>(sum_of(block.width, square) * inverse);
    m.mean[r] = m.shift[r] = 0.0f;
  }
  update(m.factor, block.rows,
         [epsilon](Narrow v, std::int64_t) { return splat<Narrow>(1.0f) / sqrt(v + splat<Narrow>(epsilon)); });
}

/// factor (x - mean) + shift, times scale, plus bias.
template <bool scaled, bool biased>
void apply_moments(const Block& block, const Moments& m, const Affine& affine) {
  for (std::int64_t r = 0; r < block.rows; ++r)
    transform(block.source(r), block.target(r), block.width,
              [mean = m.mean[r], factor = m.factor[r], shift = m.shift[r], affine](auto v, auto part) {
                using F = decltype(v);
                F y = fma(v - splat<F>(mean), splat<F>(factor), splat<F>(shift));
                if constexpr (scaled) y = y * part.load(affine.scale);
                if constexpr (biased) y = y + part.load(affine.bias);
                return y;
              });
}

/// Factors and terms that stay the same for some elements.
void apply_by_channel(const Block& block, const Moments& m, const Affine& affine) {
  for (std::int64_t r = 0; r < block.rows; ++r) {
    std::int64_t channel = (block.first + r) % affine.period * (block.width / affine.run);
    for (std::int64_t begin = 0; begin < block.width; begin += affine.run, ++channel) {
      const float scale = affine.scale ? affine.scale[channel] : 1.0f, bias = affine.bias ? affine.bias[channel] : 0.0f;
      const float mean = m.mean[r], factor = m.factor[r], shift = m.shift[r];
      transform(block.source(r) + begin, block.target(r) + begin, affine.run, [=](auto v, auto) {
        using F = decltype(v);
        return fma(v - splat<F>(mean), splat<F>(factor), splat<F>(shift)) * splat<F>(scale) + splat<F>(bias);
      });
    }
  }
}

void normalize(const Problem& p, const Block& block) {
  Moments m;
  if (p.kind == Kind::kLayer)
    find_moments(block, p.epsilon, m);
  else
    find_roots(block, p.epsilon, m);
  const Affine& a = p.affine;
  if (a.run != 1 || a.period != 1) return apply_by_channel(block, m, a);
  if (a.scale && a.bias) return apply_moments<true, true>(block, m, a);
  if (a.scale) return apply_moments<true, false>(block, m, a);
  if (a.bias) return apply_moments<false, true>(block, m, a);
  apply_moments<false, false>(block, m, a);
}

constexpr float kLowest = -std::numeric_limits<float>::infinity();

/// The largest element of each row; a NaN may be left out, since the sum of powers then shows it.
void find_largest(const Block& block, PerRow& largest) {
  for (std::int64_t r = 0; r < block.rows; ++r) {
    Wide found = splat<Wide>(kLowest);
    for_parts(block.width, [&](auto part) { part.fold(found, part.load(block.source(r), kLowest), kMax); });
    largest[r] = V::largest(V::max(V::max(found.v[0], found.v[1]), V::max(found.v[2], found.v[3])));
  }
}

[[gnu::flatten]] void softmax(const Block& block) {
  PerRow largest, factor;
  find_largest(block, largest);
  for (std::int64_t r = 0; r < block.rows; ++r) {
    const float top = largest[r];
    const float* const x = block.source(r);
    float* const y = block.target(r);
    factor[r] = static_cast<float>(sum_of(block.width, [=](auto part, std::int64_t begin) {
      auto v = part.load(x + begin, kLowest);
      const auto power = short_exp(v - splat<decltype(v)>(top));
      part.store(y + begin, power);
      return power;
    }));
  }
  update(factor, block.rows, [](Narrow v, std::int64_t) { return splat<Narrow>(1.0f) / v; });
  for (std::int64_t r = 0; r < block.rows; ++r)
    transform(block.target(r), block.target(r), block.width, [f = factor[r]](auto v, auto) { return v * splat<decltype(v)>(f); });
}

[[gnu::flatten]] void log_softmax(const Block& block) {
  PerRow largest, rest;
  find_largest(block, largest);
  for (std::int64_t r = 0; r < block.rows; ++r) {
    const float* const x = block.source(r);
    rest[r] = static_cast<float>(sum_of(block.width, [x, top = largest[r]](auto part, std::int64_t begin) {
      auto v = part.load(x + begin, kLowest);
      return short_exp(v - splat<decltype(v)>(top));
    }));
  }
  update(rest, block.rows, [](Narrow v, std::int64_t) { return log(v); });
  for (std::int64_t r = 0; r < block.rows; ++r)
    transform(block.source(r), block.target(r), block.width, [top = largest[r], power = rest[r]](auto v, auto) {
      using F = decltype(v);
      return (v - splat<F>(top)) - splat<F>(power);
    });
}

void run_block(const Problem& p, const Block& block) {
  switch (p.kind) {
    case Kind::kLayer:
    case Kind::kRms: normalize(p, block); break;
    case Kind::kSoftmax: softmax(block); break;
    case Kind::kLogSoftmax: log_softmax(block); break;
  }
  if (!p.clip) return;
  transform(block.y, block.y, block.rows * block.width,
            [bounds = *p.clip](auto v, auto) { return clamp_keep_nan(v, bounds.low, bounds.high); });
}

// --- terms ---
/// Where a row of each term begins.
struct Starts {
  const float* data[Terms::kMost];
};

Starts starts_of(const Terms& terms, std::int64_t row) {
  Starts starts;
  for (std::size_t i = 0; i < terms.count; ++i) starts.data[i] = terms.terms[i].data;
  for (std::size_t axis = terms.rank; axis-- > 0; row /= terms.dims[axis]) {
    const std::int64_t at = row % terms.dims[axis];
    for (std::size_t i = 0; i < terms.count; ++i) starts.data[i] += at * terms.terms[i].steps[axis];
  }
  return starts;
}

/// Adds up the terms of a row, in their order. `scalars` says that some are one number.
template <std::size_t count, bool scalars>
void add_row(const Terms& terms, const Starts& starts, std::int64_t width, float* y) {
  for_parts(width, [&, factor = terms.factor](auto part) {
    const auto load_term = [&](std::size_t i) {
      using F = decltype(part.load(y));
      return scalars && terms.terms[i].scalar ? splat<F>(*starts.data[i]) : part.load(starts.data[i]);
    };
    auto sum = load_term(0);
    sum = sum * splat<decltype(sum)>(factor);
#pragma GCC unroll 4
    for (std::size_t i = 1; i < count; ++i) sum = sum + load_term(i);
    part.store(y, sum);
  });
}

template <std::size_t count>
void add_rows(const Terms& terms, std::int64_t first, std::int64_t rows, std::int64_t width, float* y) {
  bool scalars = false;
  for (std::size_t i = 0; i < count; ++i) scalars = scalars || terms.terms[i].scalar;
  for (std::int64_t r = 0; r < rows; ++r) {
    const Starts starts = starts_of(terms, first + r);
    if (scalars)
      add_row<count, true>(terms, starts, width, y + r * width);
    else
      add_row<count, false>(terms, starts, width, y + r * width);
  }
}

void add_terms(const Terms& terms, std::int64_t first, std::int64_t rows, std::int64_t width, float* y) {
  switch (terms.count) {
    case 1: return add_rows<1>(terms, first, rows, width, y);
    case 2: return add_rows<2>(terms, first, rows, width, y);
    case 3: return add_rows<3>(terms, first, rows, width, y);
    default: return add_rows<4>(terms, first, rows, width, y);
  }
}
static_assert(Terms::kMost == 4);

// --- columns ---
/// A block of columns side by side: element k of a column is `step` elements after element k - 1.
struct Columns {
  std::int64_t width;
  const float* x;
  std::int64_t x_step;
  float* y;
  std::int64_t y_step;

  const float* source(std::int64_t k) const { return x + k * x_step; }
  float* target(std::int64_t k) const { return y + k * y_step; }
};

/// The sums over columns of what `term` makes of their k-th elements.
template <class F, class Term>
[[gnu::always_inline]] inline F sum_columns(std::int64_t width, Term term) {
  F total = splat<F>(0.0f);
  for (std::int64_t begin = 0; begin < width; begin += kShortChunk) {
    F of_chunk = splat<F>(0.0f);
    for (std::int64_t k = begin; k < least(begin + kShortChunk, width); ++k) of_chunk = of_chunk + term(k);
    total = total + of_chunk;
  }
  return total;
}

template <class Part>
void normalize_columns(const Problem& p, const Columns& c, Part part) {
  using F = decltype(part.load(c.x));
  const F share = splat<F>(1.0f / static_cast<float>(c.width));
  F mean = splat<F>(0.0f), correction = mean;
  if (p.kind == Kind::kLayer) mean = sum_columns<F>(c.width, [&](std::int64_t k) { return part.load(c.source(k)); }) * share;
  F variance = sum_columns<F>(c.width,
                              [&](std::int64_t k) {
                                const F d = part.load(c.source(k)) - mean;
                                correction = correction + d;
                                return d * d;
                              }) *
               share;
  correction = p.kind == Kind::kLayer ? correction * share : splat<F>(0.0f);
  variance = max(splat<F>(0.0f), fnma(correction, correction, variance));
  const F factor = splat<F>(1.0f) / sqrt(variance + splat<F>(p.epsilon));
  const F shift = -(correction * factor);
  for (std::int64_t k = 0; k < c.width; ++k) {
    F y = fma(part.load(c.source(k)) - mean, factor, shift);
    if (p.affine.scale) y = y * splat<F>(p.affine.scale[k]);
    if (p.affine.bias) y = y + splat<F>(p.affine.bias[k]);
    part.store(c.target(k), y);
  }
}

template <class Part>
[[gnu::flatten]] void softmax_columns(const Problem& p, const Columns& c, Part part) {
  using F = decltype(part.load(c.x));
  F largest = splat<F>(kLowest);
  for (std::int64_t k = 0; k < c.width; ++k) largest = max(largest, part.load(c.source(k)));
  const bool log_wanted = p.kind == Kind::kLogSoftmax;
  const F total = sum_columns<F>(c.width, [&](std::int64_t k) {
    const F power = short_exp(part.load(c.source(k)) - largest);
    if (!log_wanted) part.store(c.target(k), power);
    return power;
  });
  const F rest = log_wanted ? log(total) : splat<F>(1.0f) / total;
  for (std::int64_t k = 0; k < c.width; ++k)
    part.store(c.target(k), log_wanted ? (part.load(c.source(k)) - largest) - rest : part.load(c.target(k)) * rest);
}

void run_columns(const Problem& p, const Columns& c, std::int64_t columns) {
  for_parts(columns, [&](auto part) {
    if (p.kind == Kind::kLayer || p.kind == Kind::kRms)
      normalize_columns(p, c, part);
    else
      softmax_columns(p, c, part);
  });
  if (!p.clip) return;
  for (std::int64_t k = 0; k < c.width; ++k)
    transform(c.target(k), c.target(k), columns,
              [bounds = *p.clip](auto v, auto) { return clamp_keep_nan(v, bounds.low, bounds.high); });
}

// --- programs ---
/// Elements of a tensor that a program reads or makes: rows of `columns` elements, `step` apart, the first of which is element
/// `first` of the whole tensor.
struct Window {
  std::int64_t first, rows, columns, step;
};

/// Applies a program to a window; `raw` are the results that it reads, if any, `into` is where its first output goes, if not into
/// a tensor. Both have the window's rows, `held_step` apart, which for `into` is the window's width.
void apply(const elementwise::Epilogue& program, std::int64_t line, const Window& window, const float* raw, std::int64_t held_step,
           float* into) {
  const std::int64_t together = program.rows_together();
  const auto call = [&](std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns, std::int64_t offset) {
    const elementwise::RawBlock block{raw + offset, held_step};
    program.apply(row, rows, column, columns, {&block, raw ? std::size_t{1} : std::size_t{0}}, into ? into + offset : nullptr);
  };
  if (window.step == line) {
    // One after the other in the program's tensors, too: so many at a time as it takes together.
    const std::int64_t begin = window.first / line, end = begin + window.rows, column = window.first % line;
    for (std::int64_t row = begin, stop; row < end; row = stop) {
      stop = least(end, (row / together + 1) * together);
      call(row, stop - row, column, window.columns, (row - begin) * held_step);
    }
    return;
  }
  for (std::int64_t k = 0; k < window.rows; ++k)
    for (std::int64_t done = 0, part; done < window.columns; done += part) {
      const std::int64_t at = window.first + k * window.step + done;
      part = least(window.columns - done, line - at % line);
      call(at / line, 1, at % line, part, k * held_step + done);
    }
}

/// Memory for a block of so many elements, where the prologue's or the op's result has no place in a tensor.
float* held_block(const Problem& p, std::int64_t elements) {
  if ((p.x || p.kept) && p.y) return nullptr;
  return reinterpret_cast<float*>(scratch(static_cast<std::size_t>(elements) * sizeof(float), ScratchOwner::kNorm));
}

void run_rows(const Problem& p, std::int64_t begin, std::int64_t end) {
  const std::int64_t together = least(least(kBlock > p.width ? kBlock / p.width : 1, kBlockRows), end - begin);
  float* const block = held_block(p, together * p.width);
  for (std::int64_t row = begin; row < end; row += together) {
    const std::int64_t rows = least(together, end - row), offset = row * p.width;
    const Window window{offset, rows * p.width / p.line, p.line, p.line};
    const float* const x = p.x ? p.x + offset : p.kept ? p.kept + offset : block;
    float* const y = p.y ? p.y + offset : block;
    if (p.terms) add_terms(*p.terms, row, rows, p.width, p.kept ? p.kept + offset : block);
    if (p.prologue) apply(*p.prologue, p.line, window, nullptr, p.line, p.kept ? nullptr : block);
    run_block(p, {row, rows, p.width, x, y});
    if (p.epilogue) apply(*p.epilogue, p.line, window, y, p.line, nullptr);
  }
}

void run_column_blocks(const Problem& p, std::int64_t begin, std::int64_t end) {
  const std::int64_t blocks = (p.inner + kColumns - 1) / kColumns;
  float* const block = held_block(p, least(kColumns, p.inner) * p.width);
  for (std::int64_t unit = begin; unit < end; ++unit) {
    const std::int64_t column = unit % blocks * kColumns, columns = least(kColumns, p.inner - column);
    const std::int64_t first = unit / blocks * p.width * p.inner + column;
    const Window window{first, p.width, columns, p.inner};
    const float* const x = p.x ? p.x + first : p.kept ? p.kept + first : block;
    float* const y = p.y ? p.y + first : block;
    const std::int64_t x_step = x == block ? columns : p.inner, y_step = y == block ? columns : p.inner;
    if (p.prologue) apply(*p.prologue, p.line, window, nullptr, columns, p.kept ? nullptr : block);
    run_columns(p, {p.width, x, x_step, y, y_step}, columns);
    if (p.epilogue) apply(*p.epilogue, p.line, window, y, y_step, nullptr);
  }
}

}  // namespace
}  // namespace onnxopt::norm

// What it needs comes first.
#include "kernels/cpu/norm/groups.h"

namespace onnxopt::norm {
namespace ONNXOPT_VARIANT {

void run(const Problem& p, std::int64_t begin, std::int64_t end) {
  if (p.inner == 1)
    run_rows(p, begin, end);
  else
    run_column_blocks(p, begin, end);
}

void measure(const Problem& p, const Places& places, const Moment& moment) { measure_channels(p, places, moment); }

void scale(const Problem& p, const Places& places, const Line& line) { scale_channels(p, places, line); }

}  // namespace ONNXOPT_VARIANT
}  // namespace onnxopt::norm
