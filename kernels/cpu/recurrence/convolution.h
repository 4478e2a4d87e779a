// Small convolutions of a step: channels first, of images of one or two dims.
#pragma once

#include <cstdint>

#include "kernels/cpu/common.h"
#include "kernels/cpu/recurrence/recurrence.h"

namespace onnxopt::recurrence {

/// How a kernel goes along one dim of an image.
struct Window {
  std::int64_t size = 1, kernel = 1, places = 1, stride = 1, dilation = 1, padding = 0;

  /// Where the image is read at a place of the result; beside it is the padding.
  std::int64_t at(std::int64_t place, std::int64_t tap) const { return place * stride + tap * dilation - padding; }
};

/// x [batch, groups x channels, lines, columns] with weights [groups x filters, channels, kernel, kernel].
struct Convolution {
  std::int64_t batch = 1, groups = 1, channels = 1, filters = 1;  // those of a group
  Window windows[2];                                              // down and along a line

  std::int64_t places() const { return windows[0].places * windows[1].places; }
  std::int64_t depth() const { return channels * windows[0].kernel * windows[1].kernel; }
  /// Multiplications.
  std::int64_t work() const { return batch * groups * filters * places() * depth(); }
};

struct ConvolutionData {
  const float *x, *weights, *bias;  // the bias may be null
  float* y;
};

/// Sums run over channels and the kernel's places in order, so results do not depend on how `parallel_for` spreads the work.
void convolve(const Convolution& convolution, const ConvolutionData& data, const Variant& variant, const ParallelFor& parallel_for);

}  // namespace onnxopt::recurrence
