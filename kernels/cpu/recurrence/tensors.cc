#include "kernels/cpu/recurrence/tensors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

namespace onnxopt::recurrence {

namespace {

using elementwise::Shape;

/// Partial sums of a reduction, the same whatever the vectors.
constexpr std::size_t kSums = 8;
/// Powers of a row that are computed together.
constexpr std::size_t kPowers = 256;
/// Columns that are reduced together.
constexpr std::int64_t kColumns = 64;

std::int64_t elements_of(const Shape& shape) {
  std::int64_t elements = 1;
  for (const std::int64_t dim : shape) elements *= dim;
  return elements;
}

View dense(Shape shape) {
  View view{std::move(shape), {}, 0};
  view.steps.resize(view.shape.size());
  std::int64_t step = 1;
  for (std::size_t axis = view.shape.size(); axis-- > 0; step *= view.shape[axis]) view.steps[axis] = step;
  return view;
}

bool read_axis(std::int64_t number, std::size_t rank, std::size_t& axis) {
  const auto dims = static_cast<std::int64_t>(rank);
  if (number < -dims || number >= dims) return false;
  axis = static_cast<std::size_t>(number < 0 ? number + dims : number);
  return true;
}

/// Which of `rank` axes are named; false where one is named twice or is none.
bool mark_axes(std::span<const std::int64_t> axes, std::size_t rank, std::vector<bool>& marked) {
  marked.assign(rank, false);
  for (const std::int64_t number : axes) {
    std::size_t axis = 0;
    if (!read_axis(number, rank, axis) || marked[axis]) return false;
    marked[axis] = true;
  }
  return true;
}

/// 0 copies a dim, and one -1 stands for what is left.
bool reshape(const Shape& from, std::span<const std::int64_t> dims, Shape& to) {
  std::int64_t known = 1;
  std::size_t open = dims.size();
  for (std::size_t i = 0; i < dims.size(); ++i) {
    if (dims[i] == -1 && open == dims.size()) open = i;
    if (dims[i] < -1 || (dims[i] == 0 && i >= from.size()) || (dims[i] == -1 && open != i)) return false;
    to.push_back(dims[i] == 0 ? from[i] : dims[i]);
    known *= i == open ? 1 : to.back();
  }
  if (open < dims.size()) to[open] = known == 0 ? 0 : elements_of(from) / known;
  return elements_of(to) == elements_of(from);
}

bool squeeze(const Shape& from, std::span<const std::int64_t> axes, Shape& to) {
  std::vector<bool> gone;
  if (!mark_axes(axes, from.size(), gone)) return false;
  for (std::size_t axis = 0; axis < from.size(); ++axis) {
    if (gone[axis] && from[axis] != 1) return false;
    if (!gone[axis]) to.push_back(from[axis]);
  }
  return true;
}

bool unsqueeze(const Shape& from, std::span<const std::int64_t> axes, Shape& to) {
  std::vector<bool> added;
  if (!mark_axes(axes, from.size() + axes.size(), added)) return false;
  std::size_t next = 0;
  for (const bool one : added) to.push_back(one ? 1 : from[next++]);
  return true;
}

bool transpose(const Shape& from, std::span<const std::int64_t> order, View& view) {
  const View before = dense(from);
  std::vector<bool> used;
  if (order.size() != from.size() || !mark_axes(order, from.size(), used)) return false;
  for (const std::int64_t number : order) {
    std::size_t axis = 0;
    read_axis(number, from.size(), axis);
    view.shape.push_back(from[axis]);
    view.steps.push_back(before.steps[axis]);
  }
  return true;
}

bool slice(const Shape& from, std::span<const std::int64_t> numbers, View& view) {
  std::size_t axis = 0;
  if (numbers.size() != 4 || numbers[3] == 0 || !read_axis(numbers[0], from.size(), axis)) return false;
  view = dense(from);
  const std::int64_t size = from[axis], step = numbers[3], low = step < 0 ? -1 : 0;
  const auto bound = [&](std::int64_t number) {
    return std::clamp<std::int64_t>(number < 0 ? number + size : number, low, size + low);
  };
  const std::int64_t start = bound(numbers[1]), end = bound(numbers[2]);
  const std::int64_t distance = step > 0 ? end - start : start - end, stride = step > 0 ? step : -step;
  view.shape[axis] = distance <= 0 ? 0 : (distance - 1) / stride + 1;
  view.first = view.shape[axis] == 0 ? 0 : start * view.steps[axis];
  view.steps[axis] *= step;
  return true;
}

bool expand(const Shape& from, std::span<const std::int64_t> dims, View& view) {
  const std::size_t rank = std::max(from.size(), dims.size());
  const View before = dense(from);
  for (std::size_t axis = 0; axis < rank; ++axis) {
    const std::int64_t own = axis + from.size() < rank ? 1 : from[axis + from.size() - rank];
    const std::int64_t asked = axis + dims.size() < rank ? 1 : dims[axis + dims.size() - rank];
    if (asked < 0 || (own != asked && own != 1 && asked != 1)) return false;
    view.shape.push_back(own == 1 ? asked : own);
    view.steps.push_back(own == 1 ? 0 : before.steps[axis + from.size() - rank]);
  }
  return true;
}

template <class Of>
double sum_of(const float* x, std::size_t count, Of of) {
  if (count < kSums) {
    double total = 0;
    for (std::size_t i = 0; i < count; ++i) total += of(static_cast<double>(x[i]));
    return total;
  }
  double sums[kSums] = {};
  std::size_t i = 0;
  for (; i + kSums <= count; i += kSums)
    for (std::size_t k = 0; k < kSums; ++k) sums[k] += of(static_cast<double>(x[i + k]));
  for (; i < count; ++i) sums[0] += of(static_cast<double>(x[i]));
  double total = 0;
  for (const double one : sums) total += one;
  return total;
}

/// The largest element of x, or with `sign` -1 the largest of -x; NaN where one is NaN.
float largest_of(const float* x, std::size_t count, float sign) {
  if (count < kSums) {
    float found = -std::numeric_limits<float>::infinity();
    for (std::size_t i = 0; i < count; ++i) {
      const float one = sign * x[i];
      found = found < one || one != one ? one : found;  // a NaN stays: nothing is larger
    }
    return found;
  }
  float best[kSums];
  std::int32_t odd[kSums] = {};
  std::fill(best, best + kSums, -std::numeric_limits<float>::infinity());
  const auto take = [&](std::size_t k, float one) {
    odd[k] |= one != one;
    best[k] = best[k] < one ? one : best[k];
  };
  std::size_t i = 0;
  for (; i + kSums <= count; i += kSums)
    for (std::size_t k = 0; k < kSums; ++k) take(k, sign * x[i + k]);
  for (; i < count; ++i) take(0, sign * x[i]);
  for (std::size_t k = 0; k < kSums; ++k)
    if (odd[k]) return std::numeric_limits<float>::quiet_NaN();
  return *std::max_element(best, best + kSums);
}

/// An infinite largest element is the result: the differences from it would be no numbers.
float log_of_sum(float largest, double sum) {
  return std::isfinite(largest) ? static_cast<float>(static_cast<double>(largest) + std::log(sum)) : largest;
}

float log_of_powers(const float* x, std::size_t count, const Variant& variant) {
  const float largest = largest_of(x, count, 1.0f);
  double sum = 0;
  float powers[kPowers];
  for (std::size_t i = 0; i < count; i += kPowers) {
    const std::size_t some = std::min(kPowers, count - i);
    variant.powers(x + i, &largest, true, static_cast<std::int64_t>(some), powers);
    sum += sum_of(powers, some, [](double v) { return v; });
  }
  return log_of_sum(largest, sum);
}

/// Rows one after the other. The kind is asked for once: rows may be shorter than that takes.
void reduce_rows(Reduction kind, const float* x, std::int64_t rows, std::size_t count, const Variant& variant, float* y) {
  const auto each = [&](auto reduced) {
    for (std::int64_t i = 0; i < rows; ++i, x += count) y[i] = static_cast<float>(reduced(x));
  };
  const auto sums = [&](auto of, auto write) { each([&](const float* row) { return write(sum_of(row, count, of)); }); };
  const auto same = [](double v) { return v; };
  const auto squares = [](double v) { return v * v; };
  switch (kind) {
    case Reduction::max: return each([&](const float* row) { return largest_of(row, count, 1.0f); });
    case Reduction::min: return each([&](const float* row) { return -largest_of(row, count, -1.0f); });
    case Reduction::mean: return sums(same, [&](double v) { return v / static_cast<double>(count); });
    case Reduction::l1: return sums([](double v) { return std::fabs(v); }, same);
    case Reduction::l2: return sums(squares, [](double v) { return std::sqrt(v); });
    case Reduction::squares: return sums(squares, same);
    case Reduction::prod:
      return each([&](const float* row) {
        double product = 1;
        for (std::size_t k = 0; k < count; ++k) product *= static_cast<double>(row[k]);
        return product;
      });
    case Reduction::logsumexp: return each([&](const float* row) { return log_of_powers(row, count, variant); });
    default: return sums(same, same);
  }
}

/// Columns one beside the other, `step` elements from row to row.
template <class Of>
void sum_columns(const float* x, std::int64_t rows, std::int64_t step, std::int64_t columns, double* sums, Of of) {
  std::fill(sums, sums + columns, 0.0);
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < columns; ++j) sums[j] += of(x[i * step + j], j);
}

void largest_columns(const float* x, std::int64_t rows, std::int64_t step, std::int64_t columns, float sign, float* y) {
  std::fill(y, y + columns, -std::numeric_limits<float>::infinity());
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < columns; ++j) {
      const float one = sign * x[i * step + j];
      y[j] = y[j] < one || one != one ? one : y[j];  // a NaN stays: nothing is larger
    }
}

void reduce_columns(Reduction kind, const float* x, std::int64_t rows, std::int64_t step, std::int64_t columns,
                    const Variant& variant, float* y) {
  double sums[kColumns];
  const auto add = [&](auto of) { sum_columns(x, rows, step, columns, sums, of); };
  const auto write = [&](auto of) {
    for (std::int64_t j = 0; j < columns; ++j) y[j] = static_cast<float>(of(sums[j]));
  };
  const auto plain = [](float v, std::int64_t) { return static_cast<double>(v); };
  const auto squares = [](float v, std::int64_t) { return static_cast<double>(v) * static_cast<double>(v); };
  const auto same = [](double v) { return v; };
  switch (kind) {
    case Reduction::max: return largest_columns(x, rows, step, columns, 1.0f, y);
    case Reduction::min:
      largest_columns(x, rows, step, columns, -1.0f, y);
      for (std::int64_t j = 0; j < columns; ++j) y[j] = -y[j];
      return;
    case Reduction::mean: return add(plain), write([&](double v) { return v / static_cast<double>(rows); });
    case Reduction::l1: return add([](float v, std::int64_t) { return std::fabs(static_cast<double>(v)); }), write(same);
    case Reduction::l2: return add(squares), write([](double v) { return std::sqrt(v); });
    case Reduction::squares: return add(squares), write(same);
    case Reduction::prod:
      std::fill(sums, sums + columns, 1.0);
      for (std::int64_t i = 0; i < rows; ++i)
        for (std::int64_t j = 0; j < columns; ++j) sums[j] *= static_cast<double>(x[i * step + j]);
      return write(same);
    case Reduction::logsumexp:
      largest_columns(x, rows, step, columns, 1.0f, y);
      std::fill(sums, sums + columns, 0.0);
      for (std::int64_t i = 0; i < rows; ++i) {
        float powers[kColumns];
        variant.powers(x + i * step, y, false, columns, powers);
        for (std::int64_t j = 0; j < columns; ++j) sums[j] += static_cast<double>(powers[j]);
      }
      for (std::int64_t j = 0; j < columns; ++j) y[j] = log_of_sum(y[j], sums[j]);
      return;
    default: return add(plain), write(same);
  }
}

template <std::size_t kSize>
void copy_row(const char* from, std::int64_t count, std::int64_t step, char* to) {
  for (std::int64_t i = 0; i < count; ++i, from += step * static_cast<std::int64_t>(kSize), to += kSize)
    std::memcpy(to, from, kSize);
}

}  // namespace

bool View::is_dense() const {
  std::int64_t step = 1;
  for (std::size_t axis = shape.size(); axis-- > 0; step *= shape[axis])
    if (shape[axis] != 1 && steps[axis] != step) return false;
  return true;
}

Result<View> view_of(Move move, const Shape& shape, std::span<const std::int64_t> numbers) {
  View view;
  Shape made;
  bool fits = false;
  switch (move) {
    case Move::kReshape: fits = reshape(shape, numbers, made); break;
    case Move::kSqueeze: fits = squeeze(shape, numbers, made); break;
    case Move::kUnsqueeze: fits = unsqueeze(shape, numbers, made); break;
    case Move::kTranspose: fits = transpose(shape, numbers, view); break;
    case Move::kSlice: fits = slice(shape, numbers, view); break;
    case Move::kExpand: fits = expand(shape, numbers, view);
  }
  if (!fits)
    return Result<View>::failure("A tensor of the shape " + elementwise::text_of(shape) + " cannot be moved as its step says.");
  return move < Move::kTranspose ? dense(std::move(made)) : view;
}

void copy_view(const char* from, const View& view, std::size_t size, char* to) {
  const auto bytes = static_cast<std::int64_t>(size);
  from += view.first * bytes;
  if (view.shape.empty()) {
    std::memcpy(to, from, size);
    return;
  }
  const std::size_t last = view.shape.size() - 1;
  const std::int64_t count = view.shape[last], step = view.steps[last], all = elements_of(view.shape);
  if (all == 0) return;
  std::vector<std::int64_t> at(last, 0);
  for (std::int64_t done = 0; done < all; done += count, to += count * bytes) {
    std::int64_t place = 0;
    for (std::size_t axis = 0; axis < last; ++axis) place += at[axis] * view.steps[axis];
    const char* const row = from + place * bytes;
    if (step == 1)
      std::memcpy(to, row, static_cast<std::size_t>(count * bytes));
    else if (size == 1)
      copy_row<1>(row, count, step, to);
    else if (size == 2)
      copy_row<2>(row, count, step, to);
    else if (size == 4)
      copy_row<4>(row, count, step, to);
    else
      copy_row<8>(row, count, step, to);
    for (std::size_t axis = last; axis-- > 0;) {
      if (++at[axis] < view.shape[axis]) break;
      at[axis] = 0;
    }
  }
}

Along along(const Shape& shape, std::size_t begin, std::size_t end) {
  Along made;
  for (std::size_t axis = 0; axis < shape.size(); ++axis)
    (axis < begin ? made.outer : axis < end ? made.middle : made.inner) *= shape[axis];
  return made;
}

bool find_axes(std::span<const std::int64_t> axes, std::size_t rank, std::size_t& begin, std::size_t& end) {
  std::vector<bool> marked;
  if (!mark_axes(axes, rank, marked)) return false;
  if (axes.empty()) marked.assign(rank, true);
  begin = static_cast<std::size_t>(std::find(marked.begin(), marked.end(), true) - marked.begin());
  end = static_cast<std::size_t>(std::find(marked.begin() + static_cast<std::ptrdiff_t>(begin), marked.end(), false) -
                                 marked.begin());
  return std::find(marked.begin() + static_cast<std::ptrdiff_t>(end), marked.end(), true) == marked.end();
}

void reduce(Reduction kind, const float* x, const Along& along, const Variant& variant, float* y) {
  if (along.inner == 1) {
    reduce_rows(kind, x, along.outer, static_cast<std::size_t>(along.middle), variant, y);
    return;
  }
  for (std::int64_t i = 0; i < along.outer; ++i, x += along.middle * along.inner, y += along.inner)
    for (std::int64_t j = 0; j < along.inner; j += kColumns)
      reduce_columns(kind, x + j, along.middle, along.inner, std::min(kColumns, along.inner - j), variant, y + j);
}

namespace {

template <class T>
void reduce_integers_of(Reduction kind, const T* x, const Along& along, T* y) {
  using Wide = std::make_unsigned_t<T>;
  const T start = kind == Reduction::max    ? std::numeric_limits<T>::lowest()
                  : kind == Reduction::min  ? std::numeric_limits<T>::max()
                  : kind == Reduction::prod ? T{1}
                                            : T{0};
  for (std::int64_t i = 0; i < along.outer; ++i, x += along.middle * along.inner)
    for (std::int64_t j = 0; j < along.inner; ++j) {
      T found = start;
      for (std::int64_t k = 0; k < along.middle; ++k) {
        const T one = x[k * along.inner + j];
        if (kind == Reduction::max)
          found = std::max(found, one);
        else if (kind == Reduction::min)
          found = std::min(found, one);
        else if (kind == Reduction::prod)
          found = static_cast<T>(static_cast<Wide>(found) * static_cast<Wide>(one));
        else
          found = static_cast<T>(static_cast<Wide>(found) + static_cast<Wide>(one));
      }
      *y++ = found;
    }
}

}  // namespace

void reduce_integers(Reduction kind, bool wide, const char* x, const Along& along, char* y) {
  if (wide)
    reduce_integers_of(kind, reinterpret_cast<const std::int64_t*>(x), along, reinterpret_cast<std::int64_t*>(y));
  else
    reduce_integers_of(kind, reinterpret_cast<const std::int32_t*>(x), along, reinterpret_cast<std::int32_t*>(y));
}

void find_sorted(bool largest, std::int64_t count, const float* x, const Along& along, float* values, std::int64_t* places) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(along.middle));
  for (std::int64_t i = 0; i < along.outer; ++i)
    for (std::int64_t j = 0; j < along.inner; ++j) {
      const auto at = [&](std::int64_t k) { return x[(i * along.middle + k) * along.inner + j]; };
      for (std::int64_t k = 0; k < along.middle; ++k) order[static_cast<std::size_t>(k)] = k;
      // NaN counts as the largest, or least.
      const auto before = [&](std::int64_t a, std::int64_t b) {
        const float one = at(a), other = at(b);
        const bool odd = one != one, other_odd = other != other;
        if (odd != other_odd) return odd;
        if (odd || one == other) return a < b;
        return largest ? one > other : one < other;
      };
      std::partial_sort(order.begin(), order.begin() + count, order.end(), before);
      for (std::int64_t k = 0; k < count; ++k) {
        const std::int64_t place = order[static_cast<std::size_t>(k)], target = (i * count + k) * along.inner + j;
        if (values) values[target] = at(place);
        if (places) places[target] = place;
      }
    }
}

bool scatter(const Shape& shape, std::span<const std::int64_t> indices, std::size_t depth, const char* updates, std::size_t bytes,
             char* to) {
  for (std::size_t first = 0; first + depth <= indices.size(); first += depth, updates += bytes) {
    std::int64_t place = 0;
    for (std::size_t axis = 0; axis < depth; ++axis) {
      const std::int64_t index = indices[first + axis] + (indices[first + axis] < 0 ? shape[axis] : 0);
      if (index < 0 || index >= shape[axis]) return false;
      place = place * shape[axis] + index;
    }
    if (bytes > 0) std::memcpy(to + static_cast<std::size_t>(place) * bytes, updates, bytes);
  }
  return true;
}

void find_extreme(bool largest, const float* x, const Along& along, std::int64_t* y) {
  for (std::int64_t i = 0; i < along.outer; ++i, x += along.middle * along.inner)
    for (std::int64_t j = 0; j < along.inner; ++j) {
      std::int64_t best = 0;
      float found = x[j];
      for (std::int64_t k = 1; k < along.middle; ++k) {
        const float one = x[k * along.inner + j];
        if (found == found && (one != one || (largest ? one > found : one < found))) {
          best = k;
          found = one;
        }
      }
      *y++ = best;
    }
}

bool gather(const char* from, const Along& along, std::span<const std::int64_t> indices, std::size_t bytes, char* to) {
  for (std::int64_t i = 0; i < along.outer; ++i)
    for (const std::int64_t index : indices) {
      const std::int64_t place = index < 0 ? index + along.middle : index;
      if (place < 0 || place >= along.middle) return false;
      std::memcpy(to, from + static_cast<std::size_t>(i * along.middle + place) * bytes, bytes);
      to += bytes;
    }
  return true;
}

}  // namespace onnxopt::recurrence
