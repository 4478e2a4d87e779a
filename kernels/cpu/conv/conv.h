// Convolution and pooling of channels-last tensors [batch, height, width, channels].
//
// No copy of all windows is made: a convolution is a matrix product whose rows are found by pointers; one of 3 x 3 with stride 1 is
// computed by Winograd's minimal filtering where that takes less time.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/common.h"
#include "kernels/cpu/elementwise/epilogue.h"
#include "kernels/cpu/gemm/panel.h"

namespace onnxopt::conv {

/// Windows over the two middle dims, height first.
struct Geometry {
  std::int64_t batch = 1, channels = 1;  // of the input
  std::int64_t input[2] = {1, 1};
  std::int64_t output[2] = {1, 1};
  std::int64_t filters = 1;  // channels of the output
  std::int64_t kernel[2] = {1, 1};
  std::int64_t strides[2] = {1, 1};
  std::int64_t dilations[2] = {1, 1};
  std::int64_t pads[2] = {0, 0};  // before the first row and column
  std::int64_t groups = 1;

  std::int64_t taps() const { return kernel[0] * kernel[1]; }
  std::int64_t pixels() const { return batch * output[0] * output[1]; }
  bool is_depthwise() const { return groups > 1 && groups == channels && filters == groups; }
  /// Whether groups have as many filters as channels, and several whole ones fill a vector of 16: depthwise, or nearly so.
  bool is_lanewise() const {
    const std::int64_t depth = channels / groups;
    return groups > 1 && filters == channels && (depth == 1 || depth == 2 || depth == 4 || depth == 8);
  }
};

/// One convolution over contiguous tensors.
struct Convolution {
  Geometry geometry;
  const float* x;
  /// [groups, ceil(filters / groups / 16), taps * channels / groups, 16], missing filters being 0; where groups are
  /// lanes of a vector [taps * channels / groups, filters].
  const float* weights;
  const float* bias;  // [filters], or null
  float* y;
  const float* added = nullptr;                     // of the shape of y, added to it; not where groups are lanes
  const gemm::Bounds* clip = nullptr;               // what the results are clipped to then
  bool planar = false;                              // x is [batch, channels, height, width]; one group, not dilated along lines
  const gemm::Gate* gate = nullptr;                 // where neither is clipped nor added
  const elementwise::Epilogue* epilogue = nullptr;  // computed of them at last, its one raw result
};

/// A depthwise convolution, whose results (`y` is not used) are those that a product of channels reads: `pointwise` has a kernel of
/// one tap, and its `x` is not used. The results between them never lie in memory as a whole.
struct Separable {
  Convolution depthwise, pointwise;
};

/// An inverted residual: `expand` and `project` have a kernel of one tap, and `depthwise` lies between them. `x` is only used of
/// the first, `y` and `added` of the last, and all have biases. No expanded tensor ever lies in memory as a whole.
struct InvertedResidual {
  Convolution expand, depthwise, project;
};

/// Squeeze-and-excitation: `squeeze` and then `excite`, products of the means of an image's channels (their geometries have one
/// pixel per image; `x` and `y` are not used), make a gate per channel, by which `scaled` multiplies all pixels of `x`. In
/// `scaled`, input and output have one geometry, of which weights and biases are no part.
struct SqueezeExcite {
  Convolution squeeze, excite, scaled;
};

enum class Pool : std::uint8_t { kMax, kAverage, kAverageWithPads };

/// What a pooling reads and makes: bytes have maxima alone.
enum class Element : std::uint8_t { kFloat, kUint8, kInt8 };

/// One pooling over contiguous tensors; `geometry` has as many filters as channels.
struct Pooling {
  Geometry geometry;
  Pool kind;
  const void* x;
  void* y;
  Element element = Element::kFloat;
};

/// The mean over all pixels: x [batch, pixels, channels], y [batch, channels].
struct GlobalAverage {
  std::int64_t batch, pixels, channels;
  const float* x;
  float* y;
};

struct Plan;
struct SeparablePlan;
struct InvertedResidualPlan;
struct ScalePlan;

/// One implementation, for one instruction set: each function computes one task of a plan.
struct Variant {
  const char* name;
  const char* isa;
  void (*dense)(const Plan&, std::int64_t task);
  void (*depthwise)(const Plan&, std::int64_t task);
  void (*narrow)(const Plan&, std::int64_t task);
  void (*linewise)(const Plan&, std::int64_t task);
  void (*separable)(const SeparablePlan&, std::int64_t task);
  void (*inverted_residual)(const InvertedResidualPlan&, std::int64_t task);
  void (*join_parts)(const InvertedResidualPlan&, std::int64_t task);
  void (*transposed)(const Plan&, std::int64_t task);
  void (*repeat)(const Plan&, std::int64_t task);
  void (*transform_weights)(const Plan&, std::int64_t task);
  void (*winograd)(const Plan&, std::int64_t task);
  void (*transform_inputs)(const Plan&, std::int64_t task);
  void (*winograd_columns)(const Plan&, std::int64_t task);
  void (*pool)(const Pooling&, std::int64_t row);
  void (*sum)(const float* x, std::int64_t pixels, std::int64_t channels, float* y);
  void (*scale)(const ScalePlan&, std::int64_t task);
};

/// The variants that were built, best first; the portable one is last.
std::span<const Variant> variants();

/// Results do not depend on how `parallel_for` spreads the work.
void run(const Convolution& convolution, const Variant& variant, const ParallelFor& parallel_for);
/// A transposed convolution whose windows do not overlap: strides are as large as the kernel, and nothing is padded. Its weights
/// are [kernel height, ceil(kernel width * filters / 16), channels, 16], its biases [kernel width * filters].
void run_transposed(const Convolution& convolution, const Variant& variant, const ParallelFor& parallel_for);
/// Repeats every pixel as often as the kernel is large. Weights and biases are not used.
void run_repeat(const Convolution& convolution, const Variant& variant, const ParallelFor& parallel_for);
void run(const Separable& separable, const Variant& variant, const ParallelFor& parallel_for);
void run(const InvertedResidual& block, const Variant& variant, const ParallelFor& parallel_for);
void run(const SqueezeExcite& block, const Variant& variant, const ParallelFor& parallel_for);
void run(const Pooling& pooling, const Variant& variant, const ParallelFor& parallel_for);
void run(const GlobalAverage& average, const Variant& variant, const ParallelFor& parallel_for);

}  // namespace onnxopt::conv
