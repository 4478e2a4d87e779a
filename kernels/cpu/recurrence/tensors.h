// What statements of a loop do to whole tensors, whose elements lie one after the other: views and copies, reductions along axes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/common.h"
#include "kernels/cpu/elementwise/elementwise.h"
#include "kernels/cpu/recurrence/recurrence.h"

namespace onnxopt::recurrence {

enum class Reduction : std::uint8_t { max, min, sum, mean, l1, l2, squares, prod, logsumexp };

enum class Move : std::uint8_t { kReshape, kSqueeze, kUnsqueeze, kTranspose, kSlice, kExpand };

/// Elements of a tensor in another order: the first one, and the step along each dim.
struct View {
  elementwise::Shape shape;
  std::vector<std::int64_t> steps;
  std::int64_t first = 0;

  /// Whether they lie one after the other.
  bool is_dense() const;
};

/// What a move makes of a tensor, or what is wrong with its numbers: dims, axes, a permutation, or axis, start, end and step.
Result<View> view_of(Move move, const elementwise::Shape& shape, std::span<const std::int64_t> numbers);

/// Copies the elements of a view, of `size` bytes each.
void copy_view(const char* from, const View& view, std::size_t size, char* to);

/// A tensor as [outer, middle, inner], the middle being neighbouring axes.
struct Along {
  std::int64_t outer = 1, middle = 1, inner = 1;
};

/// Axes [begin, end) in the middle.
Along along(const elementwise::Shape& shape, std::size_t begin, std::size_t end);

/// Axes as indices, all where there are none: the first and the one behind the last; false where they are no neighbours of the
/// shape.
bool find_axes(std::span<const std::int64_t> axes, std::size_t rank, std::size_t& begin, std::size_t& end);

/// Sums are taken in double precision: as exact as a float can tell.
void reduce(Reduction kind, const float* x, const Along& along, const Variant& variant, float* y);

/// The same of integers of 4 or 8 bytes: sums and products wrap around. The largest and least of nothing are the type's limits.
void reduce_integers(Reduction kind, bool wide, const char* x, const Along& along, char* y);

/// The `count` largest, or least, elements along the middle, the first of equal ones first: themselves, or where they are; either
/// target may be null.
void find_sorted(bool largest, std::int64_t count, const float* x, const Along& along, float* values, std::int64_t* places);

/// The first of the largest, or least, elements along the middle; NaN counts as the largest, or least.
void find_extreme(bool largest, const float* x, const Along& along, std::int64_t* y);

/// Elements [outer, indices, inner] of a tensor [outer, middle, inner], whose inner parts have `bytes`. False where an index lies
/// outside.
bool gather(const char* from, const Along& along, std::span<const std::int64_t> indices, std::size_t bytes, char* to);

/// Writes updates, of `bytes` each, where tuples of `depth` indices into the leading dims of a tensor say. False where one lies
/// outside.
bool scatter(const elementwise::Shape& shape, std::span<const std::int64_t> indices, std::size_t depth, const char* updates,
             std::size_t bytes, char* to);

}  // namespace onnxopt::recurrence
