// Depthwise convolutions of bytes: for each column of a window, up to four of its rows are multiplied and summed at once.
#pragma once

#include "kernels/cpu/qconv/finish.h"

namespace onnxopt::qconv {
namespace {

/// Pixels of a line that are computed together and share the columns that they read.
constexpr std::int64_t kPixels = 4;

/// Some channels of the lines of an output.
class Strip {
 public:
  static std::size_t weight_bytes(const conv::Geometry& g) {
    return static_cast<std::size_t>(g.kernel[1] * ((g.kernel[0] + 3) / 4) * 4 * Quads::kChannels);
  }

  /// `arranged` is memory for the weights.
  Strip(const Plan& plan, const Finisher& finisher, const Results& results, std::int64_t channel, std::int8_t* arranged)
      : plan_(plan),
        c_(*plan.convolution),
        g_(c_.geometry),
        finisher_(finisher),
        results_(results),
        channel_(channel),
        count_(least(Quads::kChannels, g_.channels)),
        quads_((g_.kernel[0] + 3) / 4),
        weights_(arranged) {
    std::memset(padding_, plan.x.zero, sizeof padding_);
    std::memcpy(sums_, c_.sums + channel, static_cast<std::size_t>(count_) * sizeof(std::int32_t));
    for (std::int64_t quad = 0; quad < g_.kernel[1] * quads_; ++quad) {
      std::int8_t own[4 * Quads::kChannels] = {};
      std::memcpy(own, c_.weights + (quad * g_.channels + channel) * 4, static_cast<std::size_t>(count_) * 4);
      Quads::arrange(own, arranged + quad * 4 * Quads::kChannels);
    }
  }

  void line(std::int64_t number) {
    const bool whole = g_.dilations[1] == 1 && g_.output[1] >= kPixels;
    const std::int64_t step = whole ? kPixels : 1;
    // The last pixels are computed with those before them, some twice.
    for (std::int64_t ox = 0; ox < g_.output[1]; ox += step) {
      const std::int64_t at = least(ox, most(g_.output[1] - step, 0));
      if (whole && g_.strides[1] == 1 && g_.kernel[1] == 3)
        pixels<kPixels, 3, 1>(number, at);
      else if (whole && g_.strides[1] == 1 && g_.kernel[1] == 5)
        pixels<kPixels, 5, 1>(number, at);
      else if (whole && g_.strides[1] == 2 && g_.kernel[1] == 3)
        pixels<kPixels, 3, 2>(number, at);
      else if (whole && g_.strides[1] == 2 && g_.kernel[1] == 5)
        pixels<kPixels, 5, 2>(number, at);
      else
        for (std::int64_t one = at; one < at + step; ++one) pixels<1, 0, 1>(number, one);
    }
  }

 private:
  /// P pixels whose windows are K columns (any number if 0) and S apart.
  template <int P, int K, int S>
  void pixels(std::int64_t number, std::int64_t ox) {
    const std::int64_t image = number / g_.output[0], oy = number % g_.output[0];
    Quads::Sums sums[P][Quads::kVectors];
    for (int p = 0; p < P; ++p)
      for (int v = 0; v < Quads::kVectors; ++v) sums[p][v] = Quads::start(sums_, plan_.x.zero, v);
    for (std::int64_t quad = 0; quad < quads_; ++quad) {
      const std::uint8_t* rows[4];
      std::int64_t steps[4];
      for (int r = 0; r < 4; ++r) {
        const std::int64_t ky = 4 * quad + r, y = oy * g_.strides[0] - g_.pads[0] + ky * g_.dilations[0];
        const bool inside = ky < g_.kernel[0] && y >= 0 && y < g_.input[0];
        rows[r] = inside ? plan_.x.data + (image * g_.input[0] + y) * plan_.x.line_step + channel_ : padding_;
        steps[r] = inside ? plan_.x.pixel_step : 0;
      }
      const auto column = [&](std::int64_t x) {
        const std::uint8_t* at[4];
        const bool inside = x >= 0 && x < g_.input[1];
        for (int r = 0; r < 4; ++r) at[r] = inside ? rows[r] + x * steps[r] : padding_;
        return Quads::load(at);
      };
      const auto weights = [&](std::int64_t kx, int v) {
        return weights_ + (kx * quads_ + quad) * 4 * Quads::kChannels + v * Quads::kWeightBytes;
      };
      const std::int64_t left = ox * g_.strides[1] - g_.pads[1];
      if constexpr (K == 0) {
        for (std::int64_t kx = 0; kx < g_.kernel[1]; ++kx) {
          const Quads::Column x = column(left + kx * g_.dilations[1]);
          for (int v = 0; v < Quads::kVectors; ++v) sums[0][v] = Quads::add(sums[0][v], x.of[v], weights(kx, v));
        }
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < (P - 1) * S + K; ++i) {
          const Quads::Column x = column(left + i);
#pragma GCC unroll 8
          for (int p = 0; p < P; ++p)
            if (i >= p * S && i < p * S + K)
#pragma GCC unroll 4
              for (int v = 0; v < Quads::kVectors; ++v) sums[p][v] = Quads::add(sums[p][v], x.of[v], weights(i - p * S, v));
        }
      }
    }
    float numbers[P][Quads::kChannels];
    for (int p = 0; p < P; ++p) Quads::store(numbers[p], sums[p]);
    finisher_.rows(numbers[0], Quads::kChannels, P, number * g_.output[1] + ox, channel_, count_, results_);
  }

  const Plan& plan_;
  const Convolution& c_;
  const conv::Geometry& g_;
  const Finisher& finisher_;
  const Results& results_;
  std::int64_t channel_, count_, quads_;
  const std::int8_t* weights_;
  std::uint8_t padding_[Quads::kChannels];
  std::int32_t sums_[Quads::kChannels] = {};
};

inline void run_depthwise(const Plan& plan, std::int64_t task) {
  const Convolution& c = *plan.convolution;
  const conv::Geometry& g = c.geometry;
  const std::int64_t begin = task * plan.task_lines, end = least(begin + plan.task_lines, g.batch * g.output[0]);
  const Finisher finisher(plan);
  const Results results = results_of(c, begin * g.output[1], end * g.output[1], 0, g.channels);
  auto* const arranged = reinterpret_cast<std::int8_t*>(scratch(Strip::weight_bytes(g), ScratchOwner::kQconvWindows));
  // The last channels are computed with those before them, some twice.
  for (std::int64_t channel = 0; channel < g.channels; channel += Quads::kChannels) {
    Strip strip(plan, finisher, results, least(channel, most(g.channels - Quads::kChannels, 0)), arranged);
    for (std::int64_t line = begin; line < end; ++line) strip.line(line);
  }
  finish(c, finisher, results);
}

}  // namespace
}  // namespace onnxopt::qconv
