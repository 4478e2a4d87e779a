// Matrix instructions spelled out over the fibers of a warp: who holds what is what PTX says of `mma.sync` and `ldmatrix`. The
// products of one instruction are summed exactly and rounded once, where a device rounds in a way of its own.
#pragma once

#include <cmath>

#include "kernels/cuda/simt/simt.h"

namespace onnxopt::simt {

/// What a lane gives of its warp's tiles: words of A, of 16 rows of 32 bytes, and of B, of 8 columns of 32 bytes.
struct Operands {
  std::uint32_t a[4], b[2];
};

/// Where in the tiles a lane's numbers are: rows or columns `group` (and `group` + 8), the bytes of word `place`.
struct Seat {
  unsigned group = lane() / 4, place = lane() % 4;
};

/// The word of A in a row of the tile, and that of B in a column.
inline std::uint32_t word_of_a(const Given<Operands>& given, unsigned row, unsigned word) {
  return given[row % 8 * 4 + word % 4].a[row / 8 + word / 4 * 2];
}
inline std::uint32_t word_of_b(const Given<Operands>& given, unsigned column, unsigned word) {
  return given[column * 4 + word % 4].b[word / 4];
}

/// Adds to a lane's four sums the products of its rows and columns, whose elements `first` and `second` take from words:
/// `count` of each.
template <class Total, class First, class Second>
void add_products(Total (&sums)[4], const Operands& own, unsigned count, First first, Second second, const Where& where) {
  const Given<Operands> given(0xffffffffu, own, where);
  const Seat seat;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = seat.group + i / 2 * 8, column = seat.place * 2 + i % 2;
    for (unsigned word = 0; word < 8; ++word) {
      const std::uint32_t a = word_of_a(given, row, word), b = word_of_b(given, column, word);
      for (unsigned e = 0; e < count; ++e) sums[i] += first(a, e) * second(b, e);
    }
  }
}

/// One word of each of four matrices of 8 rows of 16 bytes, whose rows the lanes give, eight lanes to a matrix. Transposed, the
/// matrices are of elements of two bytes.
inline void load_matrices(const void* row, bool transposed, std::uint32_t (&words)[4], const Where& where) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) fail("gives a row of a matrix that is not aligned to 16 bytes", where);
  const Given<const void*> rows(0xffffffffu, row, where);
  const Seat seat;
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    std::uint16_t halves[2];
    for (unsigned i = 0; i < 2; ++i) {
      const unsigned at_row = transposed ? seat.place * 2 + i : seat.group, column = transposed ? seat.group : seat.place * 2 + i;
      std::memcpy(halves + i, static_cast<const std::byte*>(rows[matrix * 8 + at_row]) + column * 2, sizeof *halves);
    }
    std::memcpy(words + matrix, halves, sizeof *words);
  }
}

}  // namespace onnxopt::simt
