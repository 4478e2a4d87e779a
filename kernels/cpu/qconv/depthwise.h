// Depthwise convolutions of bytes: for each column of a window, up to four of its rows are multiplied and summed at once.
#pragma once

#include "kernels/cpu/qconv/finish.h"

namespace onnxopt::qconv {
namespace {

/// Pixels of a line that are computed together and share the columns that they read.
constexpr std::int64_t kPixels = 4;

/// The lines of an output, some channels at a time. The last channels are computed with those before them, some twice.
class Lines {
 public:
  /// Memory that the constructor takes: for each strip weights and their sums, the rows of a window, and a pixel of the padding.
  static std::size_t bytes(const conv::Geometry& g) {
    return static_cast<std::size_t>(strips(g)) * strip_bytes(g) + static_cast<std::size_t>(quads(g)) * sizeof(Rows) +
           padding_bytes(g);
  }

  Lines(const Plan& plan, const Finisher& finisher, const Results& results, char* memory)
      : plan_(plan),
        c_(*plan.convolution),
        g_(c_.geometry),
        finisher_(finisher),
        results_(results),
        memory_(memory),
        count_(least(Quads::kChannels, g_.channels)),
        quads_(quads(g_)),
        rows_(reinterpret_cast<Rows*>(memory + static_cast<std::size_t>(strips(g_)) * strip_bytes(g_))),
        padding_(reinterpret_cast<std::uint8_t*>(rows_ + quads_)) {
    std::memset(padding_, plan.x.zero, padding_bytes(g_));
    for (std::int64_t strip = 0; strip < strips(g_); ++strip) {
      choose(strip);
      for (std::int64_t quad = 0; quad < g_.kernel[1] * quads_; ++quad) {
        std::int8_t own[kQuadBytes] = {};
        std::memcpy(own, c_.weights + (quad * g_.channels + channel_) * 4, static_cast<std::size_t>(count_) * 4);
        Quads::arrange(own, weights_ + quad * static_cast<std::int64_t>(kQuadBytes));
      }
    }
  }

  void line(std::int64_t number) {
    number_ = number;
    image_ = number / g_.output[0];
    top_ = number % g_.output[0] * g_.strides[0] - g_.pads[0];
    find_rows();
    const bool whole = g_.dilations[1] == 1 && g_.output[1] >= kPixels;
    const std::int64_t step = whole ? kPixels : 1;
    // The last pixels are computed with those before them, some twice.
    for (std::int64_t ox = 0; ox < g_.output[1]; ox += step)
      for (std::int64_t strip = 0; strip < strips(g_); ++strip) {
        choose(strip);
        some_pixels(least(ox, most(g_.output[1] - step, 0)), whole, step);
      }
  }

 private:
  /// Of the weights of a strip's channels for four rows of a column, and of their sums.
  static constexpr std::size_t kQuadBytes = 4 * Quads::kChannels;

  /// Four rows of a window: where they begin, and how far their pixels are apart. Rows of the padding are one pixel, again and
  /// again.
  struct Rows {
    const std::uint8_t* at[4];
    std::int64_t steps[4];
  };

  static std::int64_t quads(const conv::Geometry& g) { return (g.kernel[0] + 3) / 4; }
  static std::int64_t strips(const conv::Geometry& g) { return (g.channels + Quads::kChannels - 1) / Quads::kChannels; }
  static std::size_t strip_bytes(const conv::Geometry& g) {
    return static_cast<std::size_t>(g.kernel[1] * quads(g) + 1) * kQuadBytes;
  }
  static std::size_t padding_bytes(const conv::Geometry& g) {
    return static_cast<std::size_t>(strips(g)) * static_cast<std::size_t>(Quads::kChannels);
  }

  void choose(std::int64_t strip) {
    channel_ = least(strip * Quads::kChannels, most(g_.channels - Quads::kChannels, 0));
    char* const own = memory_ + static_cast<std::size_t>(strip) * strip_bytes(g_);
    sums_ = reinterpret_cast<std::int32_t*>(own);
    weights_ = reinterpret_cast<std::int8_t*>(own + kQuadBytes);
  }

  void some_pixels(std::int64_t at, bool whole, std::int64_t step) {
    if (whole && g_.strides[1] == 1 && g_.kernel[1] == 3)
      whole_pixels<3, 1>(at);
    else if (whole && g_.strides[1] == 1 && g_.kernel[1] == 5)
      whole_pixels<5, 1>(at);
    else if (whole && g_.strides[1] == 2 && g_.kernel[1] == 3)
      whole_pixels<3, 2>(at);
    else if (whole && g_.strides[1] == 2 && g_.kernel[1] == 5)
      whole_pixels<5, 2>(at);
    else
      for (std::int64_t one = at; one < at + step; ++one) pixels<1, 0, 1, false>(one);
  }

  /// Where the rows of the line's windows are, and which quads have any in the image. The others are left out, in the sums of the
  /// weights as well.
  void find_rows() {
    const std::int64_t before_first = first_, before_last = last_;
    first_ = quads_;
    last_ = 0;
    for (std::int64_t ky = 0; ky < 4 * quads_; ++ky) {
      const std::int64_t y = top_ + ky * g_.dilations[0], quad = ky / 4;
      const bool inside = ky < g_.kernel[0] && y >= 0 && y < g_.input[0];
      rows_[quad].at[ky % 4] = inside ? plan_.x.data + (image_ * g_.input[0] + y) * plan_.x.line_step : padding_;
      rows_[quad].steps[ky % 4] = inside ? plan_.x.pixel_step : 0;
      if (!inside) continue;
      first_ = least(first_, quad);
      last_ = quad + 1;
    }
    if (first_ != before_first || last_ != before_last) sum_weights();
  }

  /// The sums of the weights of those quads, for every strip.
  void sum_weights() {
    const bool all = first_ == 0 && last_ == quads_;
    for (std::int64_t strip = 0; strip < strips(g_); ++strip) {
      choose(strip);
      std::memset(sums_, 0, kQuadBytes);
      if (all) std::memcpy(sums_, c_.sums + channel_, static_cast<std::size_t>(count_) * sizeof(std::int32_t));
      for (std::int64_t kx = 0; kx < g_.kernel[1] && !all; ++kx)
        for (std::int64_t quad = first_; quad < last_; ++quad) {
          const std::int8_t* const own = c_.weights + ((kx * quads_ + quad) * g_.channels + channel_) * 4;
          for (std::int64_t i = 0; i < count_; ++i) sums_[i] += own[4 * i] + own[4 * i + 1] + own[4 * i + 2] + own[4 * i + 3];
        }
    }
  }

  Rows rows_of(std::int64_t quad) const {
    Rows rows = rows_[quad];
    for (int r = 0; r < 4; ++r) rows.at[r] += channel_;
    return rows;
  }

  Quads::Column column(const Rows& rows, std::int64_t x) const {
    const std::uint8_t* at[4];
    const bool inside = x >= 0 && x < g_.input[1];
    for (int r = 0; r < 4; ++r) at[r] = inside ? rows.at[r] + x * rows.steps[r] : padding_;
    return Quads::load(at);
  }

  const std::int8_t* weights(std::int64_t quad, std::int64_t kx, int v) const {
    return weights_ + (kx * quads_ + quad) * 4 * Quads::kChannels + v * Quads::kWeightBytes;
  }

  /// kPixels pixels.
  template <int K, int S>
  void whole_pixels(std::int64_t ox) {
    const std::int64_t left = ox * S - g_.pads[1];
    left >= 0 && left + (kPixels - 1) * S + K <= g_.input[1] ? pixels<kPixels, K, S, true>(ox) : pixels<kPixels, K, S, false>(ox);
  }

  /// P pixels whose windows are K columns (any number if 0) and S apart; all columns lie in the image where it says so.
  template <int P, int K, int S, bool Inside>
  void pixels(std::int64_t ox) {
    Quads::Sums sums[P][Quads::kVectors];
    for (int p = 0; p < P; ++p)
      for (int v = 0; v < Quads::kVectors; ++v) sums[p][v] = Quads::start(sums_, plan_.x.zero, v);
    const std::int64_t left = ox * g_.strides[1] - g_.pads[1];
    for (std::int64_t quad = first_; quad < last_; ++quad) {
      Rows rows = rows_of(quad);
      if constexpr (K == 0) {
        for (std::int64_t kx = 0; kx < g_.kernel[1]; ++kx) {
          const Quads::Column x = column(rows, left + kx * g_.dilations[1]);
          for (int v = 0; v < Quads::kVectors; ++v) sums[0][v] = Quads::add(sums[0][v], x.of[v], weights(quad, kx, v));
        }
      } else {
        if constexpr (Inside)
          for (int r = 0; r < 4; ++r) rows.at[r] += left * rows.steps[r];
#pragma GCC unroll 16
        for (int i = 0; i < (P - 1) * S + K; ++i) {
          Quads::Column x;
          if constexpr (Inside) {
            x = Quads::load(rows.at);
            for (int r = 0; r < 4; ++r) rows.at[r] += rows.steps[r];
          } else {
            x = column(rows, left + i);
          }
#pragma GCC unroll 8
          for (int p = 0; p < P; ++p)
            if (i >= p * S && i < p * S + K)
#pragma GCC unroll 4
              for (int v = 0; v < Quads::kVectors; ++v) sums[p][v] = Quads::add(sums[p][v], x.of[v], weights(quad, i - p * S, v));
        }
      }
    }
    finish_pixels(sums, number_ * g_.output[1] + ox);
  }

  template <int P>
  void finish_pixels(const Quads::Sums (&sums)[P][Quads::kVectors], std::int64_t row) const {
    constexpr int kVectors = static_cast<int>(Quads::kChannels / V::kWidth);
    F numbers[P][kVectors];
    for (int p = 0; p < P; ++p) Quads::floats(sums[p], numbers[p]);
    if (count_ == Quads::kChannels && finisher_.block(numbers, row, channel_)) return;
    float stored[P][Quads::kChannels];
    for (int p = 0; p < P; ++p)
      for (int v = 0; v < kVectors; ++v) V::store(stored[p] + v * kWidth, numbers[p][v]);
    finisher_.rows(stored[0], Quads::kChannels, P, row, channel_, count_, results_);
  }

  const Plan& plan_;
  const Convolution& c_;
  const conv::Geometry& g_;
  const Finisher& finisher_;
  const Results& results_;
  char* memory_;
  std::int64_t count_, quads_;
  Rows* rows_;
  std::uint8_t* padding_;
  std::int64_t first_ = 0, last_ = -1;  // the quads with rows in the image: none known yet
  std::int64_t channel_ = 0;            // where the strip begins
  std::int32_t* sums_ = nullptr;
  std::int8_t* weights_ = nullptr;
  std::int64_t number_ = 0, image_ = 0, top_ = 0;  // the line, its image, and where its windows begin there
};

inline void run_depthwise(const Plan& plan, std::int64_t task) {
  const Convolution& c = *plan.convolution;
  const conv::Geometry& g = c.geometry;
  const std::int64_t begin = task * plan.task_lines, end = least(begin + plan.task_lines, g.batch * g.output[0]);
  const Finisher finisher(plan);
  const Results results = results_of(c, begin * g.output[1], end * g.output[1], 0, g.channels);
  Lines lines(plan, finisher, results, scratch(Lines::bytes(g), ScratchOwner::kQconvWindows));
  for (std::int64_t line = begin; line < end; ++line) lines.line(line);
  finish(c, finisher, results);
}

}  // namespace
}  // namespace onnxopt::qconv
