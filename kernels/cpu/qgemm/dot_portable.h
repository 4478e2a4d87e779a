// Sums of products of bytes, for any architecture.
#pragma once

#include "kernels/cpu/simd/portable.h"

namespace onnxopt::qgemm {
namespace {

/// A vector of columns, as wide as one of floats.
struct Dot {
  using Sums = std::int32_t __attribute__((vector_size(16)));
  using Numbers = Sums;
  struct A {
    std::int32_t of[4];
  };
  /// Of each of four rows, the columns.
  struct B {
    Sums row[4];
  };
  static constexpr int kRows = 4, kPanels = 1;

  static Sums zero() { return Sums{}; }
  /// Sums that begin with -zero * column_sums.
  static Sums start(std::int32_t zero, Numbers column_sums) { return -zero * column_sums; }
  /// Four bytes of a row, for every column.
  static A broadcast(const std::uint8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static B load(const std::int8_t* p) {
    B b;
    for (int k = 0; k < 4; ++k) b.row[k] = Sums{p[k], p[4 + k], p[8 + k], p[12 + k]};
    return b;
  }
  static Sums add(Sums sums, const A& a, const B& b) {
    for (int k = 0; k < 4; ++k) sums += a.of[k] * b.row[k];
    return sums;
  }
  /// A product takes several instructions here, so their rate has no one loop.
  static std::int64_t occupy(std::int64_t) { return 0; }
  /// The first `count` (1 to V::kWidth) of the columns' numbers.
  static Numbers load_numbers(const std::int32_t* p, std::size_t count) {
    Numbers numbers{};
    std::memcpy(&numbers, p, count * sizeof(std::int32_t));
    return numbers;
  }
  static simd::V::F floats(Sums sums) { return __builtin_convertvector(sums, simd::V::F); }
  static void store_sums(std::int32_t* p, Sums sums) { std::memcpy(p, &sums, sizeof sums); }
  /// sums - zero * column_sums, as floats.
  static simd::V::F shifted(Sums sums, std::int32_t zero, Numbers column_sums) {
    return __builtin_convertvector(sums - zero * column_sums, simd::V::F);
  }
  /// The integers nearest to numbers between 0 - zero and 255 - zero, and zero added; NaN gives zero.
  static void store_bytes(std::uint8_t* p, simd::V::F x, std::int32_t zero) {
    const simd::V::F whole = simd::V::round(x);
    for (int i = 0; i < 4; ++i)
      p[i] = static_cast<std::uint8_t>((whole[i] == whole[i] ? static_cast<std::int32_t>(whole[i]) : 0) + zero);
  }
  /// The integers nearest to numbers between 0 and 65535: their high and their low bytes. NaN gives zero.
  static void store_words(std::uint8_t* high, std::uint8_t* low, simd::V::F x) {
    const simd::V::F whole = simd::V::round(x);
    for (int i = 0; i < 4; ++i) {
      const std::int32_t number = whole[i] == whole[i] ? static_cast<std::int32_t>(whole[i]) : 0;
      high[i] = static_cast<std::uint8_t>(number >> 8);
      low[i] = static_cast<std::uint8_t>(number);
    }
  }
  /// The integers nearest to numbers between -128 and 127; of each column the four side by side.
  static void store_fours(std::int8_t* p, simd::V::F a, simd::V::F b, simd::V::F c, simd::V::F d) {
    const simd::V::F whole[] = {simd::V::round(a), simd::V::round(b), simd::V::round(c), simd::V::round(d)};
    for (int column = 0; column < 4; ++column)
      for (int k = 0; k < 4; ++k)
        p[4 * column + k] = static_cast<std::int8_t>(whole[k][column] == whole[k][column] ? whole[k][column] : 0.0f);
  }
  /// Bytes as floats, the highest bit of each inverted where `flip` says so.
  static simd::V::F load_bytes(const std::uint8_t* p, std::int32_t flip) {
    simd::V::F numbers;
    for (int i = 0; i < 4; ++i) numbers[i] = static_cast<float>(p[i] ^ flip);
    return numbers;
  }
};

}  // namespace
}  // namespace onnxopt::qgemm
