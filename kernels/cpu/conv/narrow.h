// Convolutions of few channels, such as the first one of an image: lines of the image are copied with their padding, so that a row
// of a window is one tap, and neighbouring windows lie at a constant distance.
#pragma once

#include "kernels/cpu/conv/dense.h"

namespace onnxopt::conv {
namespace {

/// Rows of A at a constant distance, one beginning per tap.
struct Lines {
  const float* const* lines;
  std::ptrdiff_t offset, ld;

  template <int R>
  gemm::Strided::Rows<R> rows(std::size_t tap) const {
    return gemm::Strided{lines[tap] + offset, ld}.rows<R>(0);
  }
};

/// Puts the planes of a line side by side, pixel by pixel. The compiler moves whole vectors where it knows how many there are.
template <std::int64_t Channels>
inline void interleave(const float* __restrict planes, std::int64_t plane, std::int64_t pixels, float* __restrict target) {
  for (std::int64_t pixel = 0; pixel < pixels; ++pixel)
    for (std::int64_t channel = 0; channel < Channels; ++channel)
      target[pixel * Channels + channel] = planes[channel * plane + pixel];
}

class Narrow {
 public:
  explicit Narrow(const Plan& plan) : plan_(plan), c_(*plan.convolution), g_(c_.geometry) {
    pixels_ = (g_.output[1] - 1) * g_.strides[1] + g_.kernel[1];
    width_ = pixels_ * g_.channels;
    const auto taps = static_cast<std::size_t>(g_.kernel[0]);
    const std::size_t floats = (taps + 1) * static_cast<std::size_t>(width_);
    char* const memory = scratch(taps * (sizeof(float*) + sizeof(std::int64_t)) + floats * sizeof(float), ScratchOwner::kConv);
    lines_ = reinterpret_cast<const float**>(memory);
    held_ = reinterpret_cast<std::int64_t*>(memory + taps * sizeof(float*));
    zeros_ = reinterpret_cast<float*>(held_ + taps);
    buffers_ = zeros_ + width_;
    std::memset(zeros_, 0, floats * sizeof(float));
    for (std::size_t tap = 0; tap < taps; ++tap) held_[tap] = -1;
  }

  /// The lines of one task.
  void run(std::int64_t task) {
    const std::int64_t end = least((task + 1) * plan_.task_lines, g_.batch * g_.output[0]);
    for (std::int64_t line = task * plan_.task_lines; line < end; ++line) {
      place(line / g_.output[0], line % g_.output[0]);
      multiply(line * g_.output[1]);
      finish(plan_, {line * g_.output[1], (line + 1) * g_.output[1], 0, g_.filters});
    }
  }

 private:
  /// Finds the lines that a line of windows reads.
  void place(std::int64_t image, std::int64_t oy) {
    for (std::int64_t ky = 0; ky < g_.kernel[0]; ++ky) {
      const std::int64_t y = oy * g_.strides[0] - g_.pads[0] + ky * g_.dilations[0];
      lines_[ky] = y < 0 || y >= g_.input[0] ? zeros_ : line(image, y, ky);
    }
  }

  /// A line of the image with its padding. Lines that follow each other are kept in turn.
  const float* line(std::int64_t image, std::int64_t y, std::int64_t ky) {
    const std::int64_t slot = g_.dilations[0] == 1 ? y % g_.kernel[0] : ky;
    float* const buffer = buffers_ + slot * width_;
    const std::int64_t number = image * g_.input[0] + y;
    if (held_[slot] != number) copy(image, y, buffer);
    held_[slot] = number;
    return buffer;
  }

  /// Copies a line; the padding around it is zero from the beginning.
  void copy(std::int64_t image, std::int64_t y, float* buffer) const {
    const std::int64_t pixels = least(g_.input[1], pixels_ - g_.pads[1]);
    float* const target = buffer + g_.pads[1] * g_.channels;
    if (!c_.planar) {
      const float* const source = c_.x + (image * g_.input[0] + y) * g_.input[1] * g_.channels;
      if (pixels > 0) std::memcpy(target, source, static_cast<std::size_t>(pixels * g_.channels) * sizeof(float));
      return;
    }
    const std::int64_t plane = g_.input[0] * g_.input[1];
    if (g_.channels == 3) return interleave<3>(c_.x + image * 3 * plane + y * g_.input[1], plane, pixels, target);
    for (std::int64_t channel = 0; channel < g_.channels; ++channel) {
      const float* const source = c_.x + ((image * g_.channels + channel) * g_.input[0] + y) * g_.input[1];
      for (std::int64_t pixel = 0; pixel < pixels; ++pixel) target[pixel * g_.channels + channel] = source[pixel];
    }
  }

  /// The results of a line, whose first is number `row` of all.
  void multiply(std::int64_t row) const {
    const std::int64_t taps = g_.kernel[0], depth = g_.kernel[1] * g_.channels, step = g_.strides[1] * g_.channels;
    for (std::int64_t column = 0; column < g_.filters; column += kColumns) {
      const std::int64_t columns = least(static_cast<std::int64_t>(kColumns), g_.filters - column);
      const gemm::Columns b{c_.weights + column * taps * depth, kPanel, static_cast<std::ptrdiff_t>(kPanel) * taps * depth};
      in_even_parts(g_.output[1], kRows, [&](std::int64_t pixel, std::int64_t pixels) {
        const std::int64_t first = (row + pixel) * g_.filters + column;
        const gemm::Target target{.c = c_.y + first,
                                  .ld = g_.filters,
                                  .columns = static_cast<std::size_t>(columns),
                                  .bias = c_.bias ? c_.bias + column : nullptr,
                                  .clip = c_.clip,
                                  .gate = c_.gate,
                                  .added = c_.added ? c_.added + first : nullptr,
                                  .added_ld = g_.filters};
        gemm::multiply(static_cast<int>(pixels), Lines{lines_, pixel * step, step}, static_cast<std::size_t>(taps),
                       static_cast<std::size_t>(depth), b, target);
      });
    }
  }

  const Plan& plan_;
  const Convolution& c_;
  const Geometry& g_;
  std::int64_t pixels_, width_;  // of a line with its padding
  const float** lines_;
  std::int64_t* held_;  // which line of which image each buffer has
  float *zeros_, *buffers_;
};

}  // namespace
}  // namespace onnxopt::conv
