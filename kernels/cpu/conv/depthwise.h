// Depthwise convolutions and pooling: vectors of channels, a few neighbouring pixels of the output at a time.
#pragma once

#include <limits>

#include "kernels/cpu/conv/dense.h"

namespace onnxopt::conv {
namespace {

/// Pixels of a line that are computed together: as many independent sums as hide the latency of one.
constexpr int kPixels = 8;
/// Floats of results after which the epilogue runs on them: half of a first-level cache.
constexpr std::int64_t kSegmentFloats = 4096;

/// The part of a window that lies in the image, along one axis.
struct Range {
  std::int64_t begin, end;
};

inline Range inside(const Geometry& g, int axis, std::int64_t at) {
  const std::int64_t start = at * g.strides[axis] - g.pads[axis], step = g.dilations[axis];
  const std::int64_t begin = start < 0 ? ceil_div(-start, step) : 0;
  const std::int64_t left = g.input[axis] - start;
  return {least(begin, g.kernel[axis]), most(begin, least(g.kernel[axis], left > 0 ? ceil_div(left, step) : 0))};
}

/// The pixels of a line whose whole windows lie between the left and the right border.
inline Range whole_windows(const Geometry& g) {
  const std::int64_t begin = least(ceil_div(g.pads[1], g.strides[1]), g.output[1]);
  const std::int64_t last = g.input[1] + g.pads[1] - (g.kernel[1] - 1) * g.dilations[1] - 1;  // where such a window may start
  return {begin, last < 0 ? begin : most(begin, least(last / g.strides[1] + 1, g.output[1]))};
}

/// What is done with the window of one line of the output: `first` is the tap (ky.begin, kx.begin) of the first pixel.
struct Window {
  const float* first;
  const float* weights;  // of that tap
  Range ky, kx;
  std::int64_t line_step, tap_step, pixel_step, weight_line, channels;
};

template <bool Whole>
inline F load_channels(const float* p, std::size_t count) {
  if constexpr (Whole) return V::load(p);
  return V::load_first(p, count);
}

template <bool Whole>
inline void store_channels(float* p, F x, std::size_t count) {
  if constexpr (Whole) return V::store(p, x);
  V::store_first(p, x, count);
}

/// Multiplies and adds; what pooling does instead is below.
struct Products {
  const float* bias;
  const gemm::Bounds* clip;

  template <bool Whole>
  F start(std::int64_t channel, std::size_t count) const {
    return bias ? load_channels<Whole>(bias + channel, count) : V::set1(0.0f);
  }
  template <bool Whole>
  F weight(const float* p, std::size_t count) const {
    return load_channels<Whole>(p, count);
  }
  static F join(F sum, F x, F weight) { return V::accumulate(x, weight, sum); }
  F end(F sum) const {
    return clip ? V::min(V::set1(clip->high), V::max(V::set1(clip->low), sum)) : sum;
  }
};

struct Maxima {
  template <bool Whole>
  static F start(std::int64_t, std::size_t) {
    return V::set1(-std::numeric_limits<float>::infinity());
  }
  template <bool Whole>
  static F weight(const float*, std::size_t) {
    return V::set1(0.0f);
  }
  /// NaN stays.
  static F join(F most, F x, F) { return V::select(V::unordered(most), most, V::max(most, x)); }
  static F end(F most) { return most; }
};

struct Sums {
  F scale;

  template <bool Whole>
  static F start(std::int64_t, std::size_t) {
    return V::set1(0.0f);
  }
  template <bool Whole>
  static F weight(const float*, std::size_t) {
    return V::set1(0.0f);
  }
  static F join(F sum, F x, F) { return V::add(sum, x); }
  F end(F sum) const { return V::mul(sum, scale); }
};

/// P pixels, one vector of channels from `channel` on.
template <int P, bool Whole, class Body>
inline void run_vector(const Window& w, const Body& body, std::int64_t channel, std::size_t count, float* y) {
  F sums[P];
  const F start = body.template start<Whole>(channel, count);
#pragma GCC unroll 8
  for (F& sum : sums) sum = start;
  const float* line = w.first + channel;
  const float* weight_line = w.weights + channel;
  for (std::int64_t ky = w.ky.begin; ky < w.ky.end; ++ky, line += w.line_step, weight_line += w.weight_line) {
    const float* tap = line;
    const float* weights = weight_line;
    for (std::int64_t kx = w.kx.begin; kx < w.kx.end; ++kx, tap += w.tap_step, weights += w.channels) {
      const F weight = body.template weight<Whole>(weights, count);
      const float* x = tap;
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p, x += w.pixel_step) sums[p] = Body::join(sums[p], load_channels<Whole>(x, count), weight);
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) store_channels<Whole>(y + p * w.channels + channel, body.end(sums[p]), count);
}

/// P pixels, all channels.
template <int P, class Body>
inline void run_channels(const Window& w, const Body& body, float* y) {
  std::int64_t channel = 0;
  for (; channel + kWidth <= w.channels; channel += kWidth) run_vector<P, true>(w, body, channel, V::kWidth, y);
  if (channel < w.channels) run_vector<P, false>(w, body, channel, static_cast<std::size_t>(w.channels - channel), y);
}

/// Pixels [begin, end) of the output's line (image, oy); `make` gives the body for a window, of which `y` has the results.
template <class Make>
inline void run_line(const Geometry& g, const float* x, const float* weights, std::int64_t line, Range pixels, float* y, Make make) {
  const std::int64_t image = line / g.output[0], oy = line % g.output[0];
  const Range ky = inside(g, 0, oy), whole = whole_windows(g);
  const std::int64_t row = g.input[1] * g.channels;
  const float* const top = x + image * g.input[0] * row + (oy * g.strides[0] - g.pads[0] + ky.begin * g.dilations[0]) * row;
  const auto window = [&](std::int64_t ox, Range kx) {
    const std::int64_t column = ox * g.strides[1] - g.pads[1] + kx.begin * g.dilations[1];
    return Window{top + column * g.channels,
                  weights ? weights + (ky.begin * g.kernel[1] + kx.begin) * g.channels : nullptr,
                  ky,
                  kx,
                  g.dilations[0] * row,
                  g.dilations[1] * g.channels,
                  g.strides[1] * g.channels,
                  weights ? g.kernel[1] * g.channels : 0,
                  g.channels};
  };
  for (std::int64_t ox = pixels.begin; ox < pixels.end;) {
    float* const target = y + ox * g.channels;
    const std::int64_t left = least(whole.end, pixels.end) - ox;
    if (ox < whole.begin || left <= 0) {
      const Range kx = inside(g, 1, ox);
      run_channels<1>(window(ox, kx), make(ky, kx), target);
      ++ox;
    } else if (left >= kPixels) {
      const Range kx{0, g.kernel[1]};
      run_channels<kPixels>(window(ox, kx), make(ky, kx), target);
      ox += kPixels;
    } else if (left >= 4) {
      const Range kx{0, g.kernel[1]};
      run_channels<4>(window(ox, kx), make(ky, kx), target);
      ox += 4;
    } else {
      const Range kx{0, g.kernel[1]};
      run_channels<1>(window(ox, kx), make(ky, kx), target);
      ++ox;
    }
  }
}

inline void run_depthwise(const Plan& plan, std::int64_t task) {
  const Convolution& convolution = *plan.convolution;
  const Geometry& g = convolution.geometry;
  const std::int64_t end = least((task + 1) * plan.task_lines, g.batch * g.output[0]);
  const std::int64_t segment = most(kSegmentFloats / g.channels / kPixels * kPixels, kPixels);
  const Products products{convolution.bias, convolution.clip};
  for (std::int64_t line = task * plan.task_lines; line < end; ++line)
    for (std::int64_t begin = 0; begin < g.output[1]; begin += segment) {
      const Range pixels{begin, least(begin + segment, g.output[1])};
      const std::int64_t row = line * g.output[1];
      run_line(g, convolution.x, convolution.weights, line, pixels, convolution.y + row * g.channels,
               [&](Range, Range) { return products; });
      finish(plan, {row + pixels.begin, row + pixels.end, 0, g.channels});
    }
}

inline void run_pool(const Pooling& pooling, std::int64_t line) {
  const Geometry& g = pooling.geometry;
  float* const y = pooling.y + line * g.output[1] * g.channels;
  const Range all{0, g.output[1]};
  if (pooling.kind == Pool::kMax) return run_line(g, pooling.x, nullptr, line, all, y, [](Range, Range) { return Maxima{}; });
  if (pooling.kind == Pool::kAverage)
    return run_line(g, pooling.x, nullptr, line, all, y, [](Range ky, Range kx) {
      return Sums{V::set1(1.0f / static_cast<float>((ky.end - ky.begin) * (kx.end - kx.begin)))};
    });
  const float taps = 1.0f / static_cast<float>(g.taps());
  run_line(g, pooling.x, nullptr, line, all, y, [taps](Range, Range) { return Sums{V::set1(taps)}; });
}

/// The sums over pixels, for each channel.
inline void sum_pixels(const float* x, std::int64_t pixels, std::int64_t channels, float* y) {
  std::int64_t channel = 0;
  // Four sums hide the latency of an addition.
  const auto vector = [&](auto whole, std::size_t count) {
    constexpr bool kWhole = decltype(whole)::value;
    F sums[4] = {V::set1(0.0f), V::set1(0.0f), V::set1(0.0f), V::set1(0.0f)};
    const float* at = x + channel;
    std::int64_t pixel = 0;
    for (; pixel + 4 <= pixels; pixel += 4)
      for (F& sum : sums) {
        sum = V::add(sum, load_channels<kWhole>(at, count));
        at += channels;
      }
    for (; pixel < pixels; ++pixel, at += channels) sums[0] = V::add(sums[0], load_channels<kWhole>(at, count));
    store_channels<kWhole>(y + channel, V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3])), count);
  };
  for (; channel + kWidth <= channels; channel += kWidth) vector(std::true_type{}, V::kWidth);
  if (channel < channels) vector(std::false_type{}, static_cast<std::size_t>(channels - channel));
}

}  // namespace
}  // namespace onnxopt::conv
