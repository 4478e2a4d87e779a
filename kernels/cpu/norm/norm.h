// Rows that are scaled by what is computed of the whole row: normalizations and Softmax, with element-wise programs before and
// after them that run while a few rows are in the cache.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/common.h"
#include "kernels/cpu/elementwise/epilogue.h"
#include "kernels/cpu/gemm/panel.h"

namespace onnxopt::norm {

/// What becomes of a row x: (x - mean) / sqrt(variance + epsilon); x / sqrt(mean of squares + epsilon); e^x / sum of e^x; its
/// logarithm.
enum class Kind : std::uint8_t { kLayer, kRms, kSoftmax, kLogSoftmax };

/// Factors and terms of a normalized row; either may be null.
struct Affine {
  const float* scale = nullptr;
  const float* bias = nullptr;
  /// They change along a row after so many elements, and rows begin where they ended before, over again after `period` of them.
  std::int64_t run = 1, period = 1;
};

/// A sum of tensors, the first of which may be multiplied with a number: what most prologues are. Each term is read from its own
/// memory, by a step of 1 or 0 along a row, and by steps over dims that rows are counted in.
struct Terms {
  static constexpr std::size_t kMost = 4, kMostDims = 6;

  struct Term {
    const float* data = nullptr;
    bool scalar = false;  // one number for a whole row
    bool half = false;    // `data` are float16; the kernels of the CPU read float32 alone
    std::int64_t steps[kMostDims];
  };

  Term terms[kMost];
  std::size_t count = 0;
  float factor = 1.0f;
  std::int64_t dims[kMostDims];
  std::size_t rank = 0;  // how many dims
};

/// Rows one after the other, or columns: neighbours in a row lie `inner` elements apart, and `inner` rows lie side by side.
///
/// A sum over a row is taken of every (4 x the vector's width)-th element, then of these partial sums in pairs, and over chunks of
/// `kChunk` elements in double precision; one over a column is taken of `kShortChunk` neighbours, then of these partial sums.
struct Problem {
  Kind kind = Kind::kLayer;
  std::int64_t rows = 0, width = 0, inner = 1;
  /// Where it is not 0, rows are images whose channels, `line` of them, lie last and are normalized in so many groups: a row has
  /// the moments of a group, and factors and terms are of the channels. There is no prologue.
  std::int64_t groups = 0;
  float epsilon = 0.0f;
  Affine affine;
  const float* x = nullptr;            // null where the prologue or the terms make it
  const Terms* terms = nullptr;        // a prologue that is a sum
  float* kept = nullptr;               // where the prologue's result goes; null where it is not wanted
  float* y = nullptr;                  // null where only the epilogue reads the result
  const gemm::Bounds* clip = nullptr;  // of the result
  /// Programs over tensors of the same elements, whose last dim is this.
  std::int64_t line = 1;
  const elementwise::Epilogue* prologue = nullptr;
  const elementwise::Epilogue* epilogue = nullptr;
};

/// Elements whose sum is taken in single precision.
constexpr std::int64_t kChunk = 4096;

constexpr std::int64_t kShortChunk = 64;

/// Columns that are computed together.
constexpr std::int64_t kColumns = 64;

/// Places [begin, end) of an image, each of which has all channels.
struct Places {
  std::int64_t image, begin, end;
};

/// Mean and sum of squared differences to it, of each channel. Means are those of the differences to a number close by, which a
/// float tells more of.
struct Moment {
  float* middle;
  float* mean;
  float* squares;
};

/// What becomes of each channel: (x - mean) factor + term.
struct Line {
  const float* mean;
  const float* factor;
  const float* term;
};

/// One implementation, for one instruction set. `run` computes rows [begin, end), or blocks of columns; `measure` and `scale` are
/// for groups of channels that lie last.
struct Variant {
  const char* name;
  const char* isa;
  void (*run)(const Problem&, std::int64_t begin, std::int64_t end);
  void (*measure)(const Problem&, const Places&, const Moment&);
  void (*scale)(const Problem&, const Places&, const Line&);
};

/// The variants that were built, best first; the portable one is last.
std::span<const Variant> variants();

/// Computes a problem. The results do not depend on how `parallel_for` spreads the work.
void run(const Problem& problem, const Variant& variant, const ParallelFor& parallel_for);

}  // namespace onnxopt::norm
