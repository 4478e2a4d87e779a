// Convolution of quantized channels-last tensors [batch, height, width, channels] with weights of int8, summed in int32.
//
//     y = scale of x * scale of the filter * (sum of (x - zero point) * weight) + bias
//
// which may be rounded as if it were quantized, to which another tensor may be added, which an expression may be computed of, and
// which may be quantized at last. The sums are exact, so they are the same for every instruction set; the rest is computed element
// by element in one order.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/common.h"
#include "kernels/cpu/conv/conv.h"
#include "kernels/cpu/qgemm/panel.h"

namespace onnxopt::qconv {

enum class Type : std::uint8_t { kNone, kUint8, kInt8, kFloat };

/// Numbers, or bytes with a scale and a zero point.
struct Tensor {
  const void* data = nullptr;
  Type type = Type::kNone;
  float scale = 1.0f;
  std::int32_t zero = 0;
};

struct Convolution {
  conv::Geometry geometry;
  Tensor x;  // bytes
  /// [groups, ceil(filters / groups / 16), rows / 4, 16, 4], where the rows are those of the window, line by line, or tap by tap,
  /// the bytes of each filled up to a multiple of four (see `in_lines`); depthwise [kernel width, ceil(kernel height / 4),
  /// channels, 4].
  const std::int8_t* weights;
  const float* weight_scales;  // [filters]
  const std::int32_t* sums;    // [filters], of the weights
  const float* bias;           // [filters], or null
  void* y;
  Tensor result;                                    // the type of y, and how it is quantized
  Tensor rounded;                                   // what results are quantized to before something is added
  Tensor added;                                     // of the shape of y
  const gemm::Bounds* clip = nullptr;               // of the sum
  const gemm::Gate* gate = nullptr;                 // where it is not clipped
  const elementwise::Epilogue* epilogue = nullptr;  // where neither is done
};

/// Whether the weights of a line of the window lie together: its bytes do as well.
inline bool in_lines(const conv::Geometry& g) { return g.groups == 1 && g.dilations[1] == 1; }
/// Stretches of bytes that a window has, and how long they are.
inline std::int64_t stretches(const conv::Geometry& g) { return in_lines(g) ? g.kernel[0] : g.taps(); }
inline std::int64_t stretch(const conv::Geometry& g) { return g.channels / g.groups * (in_lines(g) ? g.kernel[1] : 1); }

/// The bytes of x as the kernels read them, as uint8: as they are, or a copy that is filled up.
struct Operand {
  const std::uint8_t* data;
  std::int64_t group_step, pixel_step, line_step;
  bool lines;  // windows are read line by line; what lies left and right of the image is there
  std::int32_t zero;
};

/// What sums become where only bytes are added and made: sum * multiplier + offset; where that passes through another quantization,
/// it is rounded in its range and multiplied by `ratio`; then what is added. All this is in steps of the last quantization, unless
/// there is a gate, whose results are multiplied by `last`.
struct Direct {
  const float *multipliers = nullptr, *offsets = nullptr;  // of the filters; null where it is not that simple
  float first_low, first_high, ratio;
  float added_step, last;
  float low, high;
};

/// How the work is cut into tasks. It depends on the sizes alone, not on the number of threads.
struct Plan {
  const Convolution* convolution;
  Operand x;
  Direct direct;
  std::int64_t taps, depth;                                       // stretches of a window as they are read, bytes of each
  std::int64_t task_rows, row_tasks, task_columns, column_tasks;  // of products
  bool rows_first;                                                // all filters of some rows are computed before the next rows
  std::int64_t task_lines;                                        // of depthwise convolutions
};

/// Results [row, row_end) x [column, column_end) as floats, one row right after the other.
struct Results {
  std::int64_t row, row_end, column, column_end;
  float* data;
};

/// One implementation, for one instruction set: each function computes one task of a plan.
struct Variant {
  const char* name;
  const char* isa;
  void (*dense)(const Plan&, std::int64_t task);
  void (*depthwise)(const Plan&, std::int64_t task);
};

/// The variants that were built, best first; the portable one is last.
std::span<const Variant> variants();

/// Results do not depend on how `parallel_for` spreads the work.
void run(const Convolution& convolution, const Variant& variant, const ParallelFor& parallel_for);

/// Runs the epilogue on results, in place where they are quantized afterwards, else into y.
void apply_epilogue(const Convolution& convolution, const Results& results);

}  // namespace onnxopt::qconv
