// Depthwise convolutions, those whose groups are lanes of a vector, and pooling: vectors of channels, a few neighbouring pixels of
// the output at a time.
#pragma once

#include <limits>
#include <type_traits>

#include "kernels/cpu/conv/dense.h"

namespace onnxopt::conv {
namespace {

/// Pixels of a line that are computed together: as many independent sums as hide the latency of one, and fit into registers beside
/// the weights of a row of the window.
constexpr int kPixels = V::kWidth == 16 ? 8 : 4;
/// Vectors of channels that a pixel at the border computes together.
constexpr int kBorderVectors = 4;
/// The part of a window that lies in the image, along one axis.
struct Range {
  std::int64_t begin, end;
};

inline Range inside(const Geometry& g, int axis, std::int64_t at) {
  const std::int64_t start = at * g.strides[axis] - g.pads[axis], step = g.dilations[axis];
  const std::int64_t begin = start < 0 ? least(ceil_div(-start, step), g.kernel[axis]) : 0;
  const std::int64_t left = g.input[axis] - start;
  return {begin, most(begin, least(g.kernel[axis], left > 0 ? ceil_div(left, step) : 0))};
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
  Range ky, kx, channels;
  std::int64_t line_step, tap_step, pixel_step, weight_line, weight_tap, weight_channel, result_step, new_lines;
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

/// Each channel reads itself alone.
struct OwnChannel {
  static constexpr std::int64_t depth() { return 1; }
  static constexpr std::int64_t offset(std::int64_t, std::int64_t) { return 0; }

  template <bool Whole>
  static F read(const float* p, std::int64_t, std::size_t count) {
    return load_channels<Whole>(p, count);
  }
};

/// Multiplies and adds; what pooling does instead is below.
struct Products : OwnChannel {
  Products(const float* biases, const gemm::Bounds* bounds, const gemm::Gate* gating) : bias(biases), clip(bounds), gate(gating) {}

  const float* bias;
  const gemm::Bounds* clip;
  const gemm::Gate* gate;

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
    if (gate) return gated(*gate, sum);
    return clip ? V::min(V::set1(clip->high), V::max(V::set1(clip->low), sum)) : sum;
  }
};

/// Where lane i of a lane's group lies, for all lanes of a vector: a table for groups of 2, 4 and 8 lanes each, where a vector has
/// more.
struct LaneTables {
  static constexpr int kCount = V::kWidth == 4 ? 2 : 3;

  constexpr LaneTables() : lanes() {
    for (int table = 0; table < kCount; ++table)
      for (int i = 0; i < static_cast<int>(V::kWidth); ++i)
        for (int lane = 0; lane < static_cast<int>(V::kWidth); ++lane) {
          const int group = 2 << table;
          lanes[table][i][lane] = lane / group * group + i % group;
        }
  }

  std::int32_t lanes[kCount][V::kWidth][V::kWidth];
};
constexpr LaneTables kLaneTables;

/// The same where a channel reads all `channels` of its group, a power of two.
struct LaneProducts : Products {
  LaneProducts(const Products& products, std::int64_t channels) : Products(products), channels_(channels) {
    int table = 0;
    while (table + 1 < LaneTables::kCount && (2 << table) < channels) ++table;
    lanes_ = kLaneTables.lanes[table];
  }

  std::int64_t depth() const { return channels_; }
  /// From a vector to the one that has channel i of its group.
  std::int64_t offset(std::int64_t channel, std::int64_t i) const {
    return channels_ > kWidth ? i / kWidth * kWidth - channel % channels_ : 0;
  }
  template <bool Whole>
  F read(const float* p, std::int64_t i, std::size_t count) const {
    return V::permute(load_channels<Whole>(p, count), lanes_[i % kWidth]);
  }

 private:
  std::int64_t channels_;
  const std::int32_t (*lanes_)[V::kWidth];
};

struct Maxima : OwnChannel {
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

struct Sums : OwnChannel {
  explicit Sums(F one) : scale(one) {}
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

/// Keeps a loaded vector in a register: the compiler would read it from memory again for each use. By value: an element of an array
/// would have to be written back.
inline F held(F x) {
#if defined(__AVX__)
  asm("" : "+v"(x));
#endif
  return x;
}

/// The same pixels of the next line are computed soon, and the processor does not foresee a jump from line to line.
template <int P>
inline void fetch_next_line(const Window& w, std::int64_t channel) {
  const float* x = w.first + (w.ky.end - w.ky.begin) * w.line_step + channel;
  for (std::int64_t line = 0; line < w.new_lines; ++line, x += w.line_step)
#pragma GCC unroll 8
    for (std::int64_t p = 0; p < P; ++p) __builtin_prefetch(x + p * w.pixel_step);
}

/// P pixels, N vectors of channels from `channel` on.
template <int P, int N, bool Whole, class Body>
inline void run_vectors(const Window& w, const Body& body, std::int64_t channel, std::size_t count, float* y) {
  F sums[P][N];
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) {
    const F start = body.template start<Whole>(channel + v * kWidth, count);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sums[p][v] = start;
  }
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) fetch_next_line<P>(w, channel + v * kWidth);
  const float* line = w.first + channel;
  const float* weight_line = w.weights + channel;
  for (std::int64_t ky = w.ky.begin; ky < w.ky.end; ++ky, line += w.line_step, weight_line += w.weight_line) {
    const float* tap = line;
    const float* weights = weight_line;
    for (std::int64_t kx = w.kx.begin; kx < w.kx.end; ++kx, tap += w.tap_step, weights += w.weight_tap)
      for (std::int64_t i = 0; i < body.depth(); ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) {
          const F weight = body.template weight<Whole>(weights + i * w.weight_channel + v * kWidth, count);
          const float* x = tap + v * kWidth + body.offset(channel + v * kWidth, i);
#pragma GCC unroll 8
          for (int p = 0; p < P; ++p, x += w.pixel_step)
            sums[p][v] = Body::join(sums[p][v], body.template read<Whole>(x, i, count), weight);
        }
      }
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) store_channels<Whole>(y + p * w.result_step + channel + v * kWidth, body.end(sums[p][v]), count);
}

alignas(64) constexpr float kZeros[kPanel] = {};

/// The same for windows of K columns, S columns apart, that share what they read. Where they cross the border, columns that are not
/// `inside` are zero.
template <int P, int K, int S, bool Border, bool Whole, class Body>
inline void run_shared(const Window& w, Range inside, const Body& body, std::int64_t channel, std::size_t count, float* y) {
  F sums[P];
  const F start = body.template start<Whole>(channel, count);
#pragma GCC unroll 8
  for (F& sum : sums) sum = start;
  fetch_next_line<P>(w, channel);
  const float* line = w.first + channel;
  const float* weights = w.weights + channel;
  for (std::int64_t ky = w.ky.begin; ky < w.ky.end; ++ky, line += w.line_step, weights += w.weight_line) {
    for (std::int64_t i = 0; i < body.depth(); ++i) {
      F taps[K];
#pragma GCC unroll 8
      for (int kx = 0; kx < K; ++kx) {
        taps[kx] = held(body.template weight<Whole>(weights + kx * w.weight_tap + i * w.weight_channel, count));
      }
      const float* column = line + body.offset(channel, i);
#pragma GCC unroll 32
      for (int c = 0; c < (P - 1) * S + K; ++c, column += w.tap_step) {
        const F x = held(body.template read<Whole>(!Border || (c >= inside.begin && c < inside.end) ? column : kZeros, i, count));
#pragma GCC unroll 8
        for (int kx = 0; kx < K; ++kx)
          if (c >= kx && (c - kx) % S == 0 && c - kx < P * S) sums[(c - kx) / S] = Body::join(sums[(c - kx) / S], x, taps[kx]);
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) store_channels<Whole>(y + p * w.result_step + channel, body.end(sums[p]), count);
}

/// A range of channels, so many vectors at a time: `run.operator()<N, Whole>(channel, count)`.
template <int N, class Run>
inline void over_channels(Range channels, Run run) {
  std::int64_t channel = channels.begin;
  if constexpr (N > 1)
    for (; channel + N * kWidth <= channels.end; channel += N * kWidth) run.template operator()<N, true>(channel, V::kWidth);
  for (; channel + kWidth <= channels.end; channel += kWidth) run.template operator()<1, true>(channel, V::kWidth);
  if (channel < channels.end) run.template operator()<1, false>(channel, static_cast<std::size_t>(channels.end - channel));
}

/// P pixels whose windows lie in the image alike.
template <class Body, int P = kPixels>
inline void run_alike(std::int64_t pixels, const Window& w, const Body& body, float* y) {
  if constexpr (P > 1)
    if (pixels < P) return run_alike<Body, P - 1>(pixels, w, body, y);
  constexpr int kVectors = P == 1 ? kBorderVectors : P == 2 ? 2 : 1;
  over_channels<kVectors>(w.channels, [&]<int N, bool Whole>(std::int64_t channel, std::size_t count) {
    run_vectors<P, N, Whole>(w, body, channel, count, y);
  });
}

/// P pixels whose windows are K columns, S columns apart, that share what they read.
template <int K, int S, class Body, int P = kPixels>
inline void run_neighbours(std::int64_t pixels, const Window& w, Range inside, const Body& body, float* y) {
  if constexpr (P > 1)
    if (pixels < P) return run_neighbours<K, S, Body, P - 1>(pixels, w, inside, body, y);
  const auto run = [&]<bool Border>() {
    over_channels<1>(w.channels, [&]<int, bool Whole>(std::int64_t channel, std::size_t count) {
      run_shared<P, K, S, Border, Whole>(w, inside, body, channel, count, y);
    });
  };
  if (inside.begin <= 0 && inside.end >= (P - 1) * S + K) return run.template operator()<false>();
  run.template operator()<true>();
}

/// Weights of such windows: those of a tap lie `tap` floats before the next one's, those of a channel of a group `channel` floats.
/// Pooling has none.
struct Taps {
  const float* data;
  std::int64_t tap, channel = 0;
};

/// One line of windows over an image.
class Line {
 public:
  /// With `fetches`, what the next line reads besides is fetched.
  Line(const Geometry& g, const float* x, Taps weights, std::int64_t line, Range channels, bool fetches = true)
      : g_(g),
        weights_(weights),
        channels_(channels),
        ky_(inside(g, 0, line % g.output[0])),
        new_lines_(fetches ? least(g.strides[0], g.kernel[0]) : 0) {
    const std::int64_t image = line / g.output[0], oy = line % g.output[0];
    row_ = g.input[1] * g.channels;
    top_ = x + image * g.input[0] * row_ + (oy * g.strides[0] - g.pads[0] + ky_.begin * g.dilations[0]) * row_;
  }

  /// Windows whose sizes matter: `make` gives the body for the parts of a window that lie in the image.
  template <class Make>
  void run(Range pixels, float* y, Make make) const {
    const Range whole = whole_windows(g_);
    for (std::int64_t ox = pixels.begin; ox < pixels.end;) {
      float* const target = y + ox * g_.channels;
      const std::int64_t left = least(whole.end, pixels.end) - ox;
      if (ox < whole.begin || left <= 0) {
        const Range kx = inside(g_, 1, ox);
        run_alike(1, window(ox, kx), make(ky_, kx), target);
        ++ox;
        continue;
      }
      const Range kx{0, g_.kernel[1]};
      const auto body = make(ky_, kx);
      in_even_parts(left, kPixels, [&](std::int64_t begin, std::int64_t count) {
        run_alike(count, window(ox + begin, kx), body, target + begin * g_.channels);
      });
      ox += left;
    }
  }

  /// Windows of products, where what lies outside of the image adds nothing.
  template <class Body>
  void multiply(Range pixels, float* y, const Body& products) const {
    const std::int64_t kernel = g_.kernel[1], step = g_.dilations[1] == 1 ? g_.strides[1] : 0;
    if (step == 1 && kernel == 3) return run_shared_columns<3, 1>(pixels, y, products);
    if (step == 2 && kernel == 3) return run_shared_columns<3, 2>(pixels, y, products);
    if constexpr (std::is_same_v<Body, Products>) {
      if (step == 1 && kernel == 5) return run_shared_columns<5, 1>(pixels, y, products);
      if (step == 2 && kernel == 5) return run_shared_columns<5, 2>(pixels, y, products);
      if (step == 1 && kernel == 7) return run_shared_columns<7, 1>(pixels, y, products);
    }
    run(pixels, y, [&](Range, Range) { return products; });
  }

 private:
  /// Such windows, if they share columns.
  template <int K, int S, class Body>
  void run_shared_columns(Range pixels, float* y, const Body& body) const {
    in_even_parts(pixels.end - pixels.begin, kPixels, [&](std::int64_t begin, std::int64_t count) {
      const std::int64_t ox = pixels.begin + begin, left = ox * S - g_.pads[1];
      run_neighbours<K, S>(count, window(ox, {0, K}), Range{-left, g_.input[1] - left}, body, y + ox * g_.channels);
    });
  }

  Window window(std::int64_t ox, Range kx) const {
    const std::int64_t column = ox * g_.strides[1] - g_.pads[1] + kx.begin * g_.dilations[1];
    return {top_ + column * g_.channels,
            weights_.data + (ky_.begin * g_.kernel[1] + kx.begin) * weights_.tap,
            ky_,
            kx,
            channels_,
            g_.dilations[0] * row_,
            g_.dilations[1] * g_.channels,
            g_.strides[1] * g_.channels,
            g_.kernel[1] * weights_.tap,
            weights_.tap,
            weights_.channel,
            g_.channels,
            new_lines_};
  }

  const Geometry& g_;
  Taps weights_;
  Range channels_, ky_;
  std::int64_t new_lines_, row_;
  const float* top_;
};

/// Some channels of lines of results, the first of which goes to `y`, strip by strip.
template <class Body>
inline void lines_of_strips(const Plan& plan, Range lines, Range channels, float* y, const Body& products) {
  const Convolution& convolution = *plan.convolution;
  const Geometry& g = convolution.geometry;
  const Taps weights{convolution.weights, products.depth() * g.channels, g.channels};
  in_even_parts(g.output[1], plan.strip_pixels, [&](std::int64_t begin, std::int64_t count) {
    const Range pixels{begin, begin + count};
    for (std::int64_t number = lines.begin; number < lines.end; ++number) {
      const Line line(g, convolution.x, weights, number, channels);
      line.multiply(pixels, y + (number - lines.begin) * g.output[1] * g.channels, products);
    }
  });
}

inline void depthwise_lines(const Plan& plan, Range lines, Range channels, float* y) {
  const Convolution& convolution = *plan.convolution;
  const Products products{convolution.bias, convolution.clip, convolution.gate};
  if (plan.group_channels == 1) return lines_of_strips(plan, lines, channels, y, products);
  lines_of_strips(plan, lines, channels, y, LaneProducts(products, plan.group_channels));
}

inline void run_depthwise(const Plan& plan, std::int64_t task) {
  const Geometry& g = plan.convolution->geometry;
  const std::int64_t channel_tasks = ceil_div(g.channels, plan.task_channels);
  const std::int64_t line = task / channel_tasks * plan.task_lines, first = task % channel_tasks * plan.task_channels;
  const Range lines{line, least(line + plan.task_lines, g.batch * g.output[0])};
  const Range channels{first, least(first + plan.task_channels, g.channels)};
  for (std::int64_t strip = channels.begin; strip < channels.end; strip += plan.strip_channels)
    depthwise_lines(plan, lines, {strip, least(strip + plan.strip_channels, channels.end)},
                    plan.convolution->y + line * g.output[1] * g.channels);
  finish(plan, {lines.begin * g.output[1], lines.end * g.output[1], channels.begin, channels.end});
}

/// The largest byte of each window of a line; where all of it lies in the padding, the lowest there is.
template <class Byte>
inline void run_byte_maxima(const Pooling& pooling, std::int64_t number) {
  const Geometry& g = pooling.geometry;
  const std::int64_t image = number / g.output[0], oy = number % g.output[0], channels = g.channels;
  const Range rows = inside(g, 0, oy);
  const auto* const x = static_cast<const Byte*>(pooling.x) + image * g.input[0] * g.input[1] * channels;
  auto* const y = static_cast<Byte*>(pooling.y) + number * g.output[1] * channels;
  for (std::int64_t ox = 0; ox < g.output[1]; ++ox) {
    Byte* __restrict const to = y + ox * channels;
    for (std::int64_t c = 0; c < channels; ++c) to[c] = std::numeric_limits<Byte>::lowest();
    const Range columns = inside(g, 1, ox);
    for (std::int64_t ky = rows.begin; ky < rows.end; ++ky)
      for (std::int64_t kx = columns.begin; kx < columns.end; ++kx) {
        const std::int64_t line = oy * g.strides[0] - g.pads[0] + ky * g.dilations[0];
        const std::int64_t pixel = ox * g.strides[1] - g.pads[1] + kx * g.dilations[1];
        const Byte* __restrict const from = x + (line * g.input[1] + pixel) * channels;
        for (std::int64_t c = 0; c < channels; ++c) to[c] = from[c] > to[c] ? from[c] : to[c];
      }
  }
}

inline void run_pool(const Pooling& pooling, std::int64_t number) {
  if (pooling.element == Element::kUint8) return run_byte_maxima<std::uint8_t>(pooling, number);
  if (pooling.element == Element::kInt8) return run_byte_maxima<std::int8_t>(pooling, number);
  const Geometry& g = pooling.geometry;
  float* const y = static_cast<float*>(pooling.y) + number * g.output[1] * g.channels;
  const Line line(g, static_cast<const float*>(pooling.x), {nullptr, 0}, number, {0, g.channels});
  const Range all{0, g.output[1]};
  const auto mean = [](std::int64_t count) { return Sums{V::set1(1.0f / static_cast<float>(count))}; };
  switch (pooling.kind) {
    case Pool::kMax: return line.run(all, y, [](Range, Range) { return Maxima{}; });
    case Pool::kAverage:
      return line.run(all, y, [&](Range ky, Range kx) { return mean((ky.end - ky.begin) * (kx.end - kx.begin)); });
    case Pool::kAverageWithPads: return line.run(all, y, [&](Range, Range) { return mean(g.taps()); });
  }
}

/// The sums over pixels, for each channel.
inline void sum_pixels(const float* x, std::int64_t pixels, std::int64_t channels, float* y) {
  std::int64_t channel = 0;
  // Vectors side by side share what the processor fetches ahead; two sums of each hide the latency of an addition.
  constexpr int kBeside = 4;
  for (; channel + kBeside * kWidth <= channels; channel += kBeside * kWidth) {
    F sums[2][kBeside];
    const auto add = [&](F* to, const float* at) {
#pragma GCC unroll 4
      for (int v = 0; v < kBeside; ++v) to[v] = V::add(to[v], V::load(at + v * kWidth));
    };
#pragma GCC unroll 4
    for (int v = 0; v < kBeside; ++v) sums[0][v] = sums[1][v] = V::set1(0.0f);
    const float* at = x + channel;
    std::int64_t pixel = 0;
    for (; pixel + 2 <= pixels; pixel += 2, at += 2 * channels) {
      add(sums[0], at);
      add(sums[1], at + channels);
    }
    if (pixel < pixels) add(sums[0], at);
#pragma GCC unroll 4
    for (int v = 0; v < kBeside; ++v) V::store(y + channel + v * kWidth, V::add(sums[0][v], sums[1][v]));
  }
  // Four sums of one vector do the same.
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
