// Runs random convolutions and poolings in every variant that this machine has, for the sanitizers. All memory is as small as the
// interface allows, and every run has a thread, and so scratch memory, of its own: what a larger problem left would hide an
// overrun. Results are compared with plain loops in double precision.
//
//     onnxopt_conv_driver [problems] [seed]
#include <cmath>
#include <thread>

#include "csrc/dispatch/cpu.h"
#include "kernels/cpu/conv/conv.h"
#include "tests/kernels/driver.h"

namespace {

using namespace onnxopt;
using driver::ceil_div;
using driver::Floats;
using driver::Random;

void fill(Floats& floats, Random& random) {
  for (std::int64_t i = 0; i < floats.count; ++i) floats[i] = std::uniform_real_distribution<float>(-1.0f, 1.0f)(random.engine);
}

/// Half of them as Winograd's filtering takes them, a quarter depthwise or with groups that are lanes of a vector or a panel.
conv::Geometry random_geometry(Random& random) {
  conv::Geometry g;
  const bool square = random.sometimes(2), sequence = square && random.sometimes(3), large = random.sometimes(6);
  const bool is_long = sequence && random.sometimes(2);              // threads share a line, and there are more weights than pixels
  const std::int64_t side = is_long || random.sometimes(3) ? 5 : 3;  // of a square kernel, or of a sequence's
  g.batch = is_long ? 1 : random.between(1, 2);
  if (!square && random.sometimes(2)) {
    g.groups = random.between(2, large ? 200 : 50);
    const std::int64_t depth = random.sometimes(2) ? std::int64_t{1} << random.between(1, 4) : 1;
    g.channels = g.filters = g.groups * depth;
  } else {
    g.groups = random.sometimes(4) ? random.between(2, 4) : 1;
    g.channels = g.groups * random.between(1, large ? 150 : 40);
    g.filters = g.groups * random.between(1, large ? 150 : 70);
    if (is_long) g.groups = 1, g.channels = random.between(40, 64), g.filters = random.between(200, 300);
  }
  for (int axis = 0; axis < 2; ++axis) {
    g.kernel[axis] = sequence && axis == 0 ? 1 : square ? side : random.between(1, 5);
    g.strides[axis] = square ? 1 : random.between(1, 3);
    g.dilations[axis] = !square && random.sometimes(4) ? 2 : 1;
    g.pads[axis] = random.between(0, random.sometimes(8) ? 2 * g.kernel[axis] : g.kernel[axis] - 1);
    const std::int64_t window = (g.kernel[axis] - 1) * g.dilations[axis] + 1;
    g.input[axis] = is_long ? (axis == 0 ? 1 : random.between(200, 400)) : random.between(1, large ? 30 : 14);
    if (is_long && axis == 0) g.pads[0] = 0;
    const std::int64_t after = is_long ? g.pads[axis] : random.between(0, g.kernel[axis]);
    const std::int64_t room = g.input[axis] + g.pads[axis] + after - window;
    g.output[axis] = room < 0 ? 0 : room / g.strides[axis] + 1;
  }
  return g;
}

/// Calls `visit(offset of the input pixel, tap)` for every tap of a window that lies inside of the image.
template <class Visit>
void for_each_tap(const conv::Geometry& g, std::int64_t pixel, const Visit& visit) {
  const std::int64_t line = pixel / g.output[1], image = line / g.output[0];
  const std::int64_t top = line % g.output[0] * g.strides[0] - g.pads[0];
  const std::int64_t left = pixel % g.output[1] * g.strides[1] - g.pads[1];
  for (std::int64_t tap = 0; tap < g.taps(); ++tap) {
    const std::int64_t y = top + tap / g.kernel[1] * g.dilations[0], x = left + tap % g.kernel[1] * g.dilations[1];
    if (y >= 0 && y < g.input[0] && x >= 0 && x < g.input[1]) visit((image * g.input[0] + y) * g.input[1] + x, tap);
  }
}

/// Filters [filters, taps, depth], as they are and packed.
struct Filters {
  Filters(const conv::Geometry& g, Random& random)
      : depth(g.channels / g.groups), taps(g.taps()), plain(g.filters * taps * depth), packed(packed_size(g)), bias(g.filters) {
    fill(plain, random);
    fill(bias, random);
    for (std::int64_t f = 0; f < g.filters; ++f)
      for (std::int64_t row = 0; row < taps * depth; ++row) packed[packed_at(g, f, row)] = plain[f * taps * depth + row];
  }

  static std::int64_t packed_size(const conv::Geometry& g) {
    if (g.is_lanewise()) return g.taps() * (g.channels / g.groups) * g.filters;
    return g.groups * ceil_div(g.filters / g.groups, kPanel) * g.taps() * (g.channels / g.groups) * kPanel;
  }
  std::int64_t packed_at(const conv::Geometry& g, std::int64_t f, std::int64_t row) const {
    if (g.is_lanewise()) return row * g.filters + f;
    const std::int64_t filters = g.filters / g.groups, own = f % filters;
    return ((f / filters * ceil_div(filters, kPanel) + own / kPanel) * taps * depth + row) * kPanel + own % kPanel;
  }

  static constexpr auto kPanel = static_cast<std::int64_t>(gemm::kPanel);
  std::int64_t depth, taps;
  Floats plain, packed, bias;
};

Floats expected(const conv::Geometry& g, Floats& x, Filters& filters) {
  Floats y(g.pixels() * g.filters);
  for (std::int64_t pixel = 0; pixel < g.pixels(); ++pixel)
    for (std::int64_t f = 0; f < g.filters; ++f) {
      double sum = static_cast<double>(filters.bias[f]);
      const std::int64_t first = f / (g.filters / g.groups) * filters.depth;
      for_each_tap(g, pixel, [&](std::int64_t from, std::int64_t tap) {
        for (std::int64_t c = 0; c < filters.depth; ++c)
          sum += static_cast<double>(x[from * g.channels + first + c]) *
                 static_cast<double>(filters.plain[(f * filters.taps + tap) * filters.depth + c]);
      });
      y[pixel * g.filters + f] = static_cast<float>(sum);
    }
  return y;
}

/// Winograd's filtering loses about two digits more than plain sums; numbers here are at most some tens.
constexpr float kTolerance = 2e-3f;

bool same(Floats& found, Floats& wanted, const char* variant, const char* what) {
  for (std::int64_t i = 0; i < wanted.count; ++i)
    if (!(std::fabs(found[i] - wanted[i]) <= kTolerance)) {
      std::printf("%s: %s: element %lld is %g and should be %g\n", variant, what, static_cast<long long>(i),
                  static_cast<double>(found[i]), static_cast<double>(wanted[i]));
      return false;
    }
  return true;
}

template <class Call>
void on_own_thread(const Call& call) {
  std::thread(call).join();
}

Floats planar(const conv::Geometry& g, Floats& x) {
  const std::int64_t pixels = g.input[0] * g.input[1];
  Floats made(x.count);
  for (std::int64_t i = 0; i < x.count; ++i) {
    const std::int64_t image = i / (pixels * g.channels), pixel = i / g.channels % pixels, c = i % g.channels;
    made[(image * g.channels + c) * pixels + pixel] = x[i];
  }
  return made;
}

bool run_convolution(const conv::Geometry& g, const conv::Variant& variant, Floats& x, Filters& filters, Floats& wanted) {
  Floats y(wanted.count);
  conv::Convolution one{.geometry = g, .x = x.get(), .weights = filters.packed.get(), .bias = filters.bias.get(), .y = y.get()};
  on_own_thread([&] { conv::run(one, variant, ParallelFor::inline_loop()); });
  if (!same(y, wanted, variant.name, "convolution")) return false;
  if (g.groups == 1 && g.dilations[1] == 1) {
    Floats moved = planar(g, x);
    one.planar = true, one.x = moved.get();
    on_own_thread([&] { conv::run(one, variant, ParallelFor::inline_loop()); });
    if (!same(y, wanted, variant.name, "planar convolution")) return false;
    one.planar = false, one.x = x.get();
  }
  const gemm::Bounds bounds{-1.0f, 2.0f};
  one.clip = &bounds;
  if (!g.is_lanewise()) one.added = wanted.get();
  on_own_thread([&] { conv::run(one, variant, ParallelFor::inline_loop()); });
  Floats finished(wanted.count);
  for (std::int64_t i = 0; i < wanted.count; ++i)
    finished[i] = std::clamp(wanted[i] * (one.added ? 2.0f : 1.0f), bounds.low, bounds.high);
  return same(y, finished, variant.name, "clipped convolution");
}

bool run_separable(const conv::Geometry& g, const conv::Variant& variant, Floats& x, Filters& filters, Floats& wanted,
                   Random& random) {
  conv::Geometry points;
  points.batch = g.batch, points.channels = g.filters, points.filters = random.between(1, 70);
  for (int axis = 0; axis < 2; ++axis) points.input[axis] = points.output[axis] = g.output[axis];
  Filters pointwise(points, random);
  Floats y(points.pixels() * points.filters), final_ones = expected(points, wanted, pointwise);
  conv::Separable both{
      {.geometry = g, .x = x.get(), .weights = filters.packed.get(), .bias = filters.bias.get(), .y = nullptr},
      {.geometry = points, .x = nullptr, .weights = pointwise.packed.get(), .bias = pointwise.bias.get(), .y = y.get()}};
  on_own_thread([&] { conv::run(both, variant, ParallelFor::inline_loop()); });
  return same(y, final_ones, variant.name, "separable convolution");
}

/// A product of the image's channels, a depthwise convolution `g` of what it gives, and a product of that.
bool run_inverted_residual(const conv::Geometry& g, const conv::Variant& variant, Filters& filters, Random& random) {
  const auto product = [&](const std::int64_t (&size)[2], std::int64_t channels, std::int64_t count) {
    conv::Geometry points;
    points.batch = g.batch, points.channels = channels, points.filters = count;
    for (int axis = 0; axis < 2; ++axis) points.input[axis] = points.output[axis] = size[axis];
    return points;
  };
  const conv::Geometry expanding = product(g.input, random.between(1, 40), g.channels);
  const conv::Geometry projecting = product(g.output, g.channels, random.between(1, 70));
  Filters first(expanding, random), last(projecting, random);
  Floats x(expanding.pixels() * expanding.channels), y(projecting.pixels() * projecting.filters);
  fill(x, random);
  for (Filters* one : {&first, &last})
    for (Floats* weights : {&one->plain, &one->packed})
      for (std::int64_t i = 0; i < weights->count; ++i) (*weights)[i] /= 8.0f;
  Floats inner = expected(expanding, x, first), middle = expected(g, inner, filters);
  Floats wanted = expected(projecting, middle, last);
  const auto convolution = [&](const conv::Geometry& geometry, Filters& weights) {
    return conv::Convolution{
        .geometry = geometry, .x = x.get(), .weights = weights.packed.get(), .bias = weights.bias.get(), .y = nullptr};
  };
  conv::InvertedResidual block{convolution(expanding, first), convolution(g, filters), convolution(projecting, last)};
  block.project.y = y.get();
  on_own_thread([&] { conv::run(block, variant, ParallelFor::inline_loop()); });
  if (!same(y, wanted, variant.name, "inverted residual")) return false;
  const gemm::Bounds bounds{-1.0f, 2.0f};
  block.project.clip = &bounds, block.project.added = wanted.get();
  on_own_thread([&] { conv::run(block, variant, ParallelFor::inline_loop()); });
  Floats finished(wanted.count);
  for (std::int64_t i = 0; i < wanted.count; ++i) finished[i] = std::clamp(2.0f * wanted[i], bounds.low, bounds.high);
  return same(y, finished, variant.name, "inverted residual with a residual");
}

/// Every channel of an image times a gate, which two products make of the channels' means.
bool run_squeeze_excite(const conv::Geometry& image, const conv::Variant& variant, Floats& x, Random& random) {
  const std::int64_t batch = image.batch, pixels = image.input[0] * image.input[1], channels = image.channels;
  conv::Geometry inner, outer, scaled;
  inner.batch = outer.batch = scaled.batch = batch;
  inner.channels = outer.filters = scaled.channels = scaled.filters = channels;
  inner.filters = outer.channels = random.between(1, 40);
  scaled.input[0] = scaled.output[0] = pixels;
  Filters squeeze(inner, random), excite(outer, random);
  Floats means(batch * channels), y(x.count), wanted(x.count);
  for (std::int64_t i = 0; i < x.count; ++i)
    means[i / (pixels * channels) * channels + i % channels] += x[i] / static_cast<float>(pixels);
  Floats hidden = expected(inner, means, squeeze), gates = expected(outer, hidden, excite);
  for (std::int64_t i = 0; i < x.count; ++i) wanted[i] = x[i] * gates[i / (pixels * channels) * channels + i % channels];
  const auto product = [](const conv::Geometry& g, Filters& filters) {
    return conv::Convolution{
        .geometry = g, .x = nullptr, .weights = filters.packed.get(), .bias = filters.bias.get(), .y = nullptr};
  };
  conv::SqueezeExcite block{product(inner, squeeze),
                            product(outer, excite),
                            {.geometry = scaled, .x = x.get(), .weights = nullptr, .bias = nullptr, .y = y.get()}};
  on_own_thread([&] { conv::run(block, variant, ParallelFor::inline_loop()); });
  if (!same(y, wanted, variant.name, "squeeze-and-excitation")) return false;
  block.scaled.added = x.get();
  on_own_thread([&] { conv::run(block, variant, ParallelFor::inline_loop()); });
  for (std::int64_t i = 0; i < x.count; ++i) wanted[i] += x[i];
  return same(y, wanted, variant.name, "squeeze-and-excitation with a residual");
}

bool run_pooling(conv::Geometry g, const conv::Variant& variant, Floats& x) {
  g.filters = g.channels;
  Floats y(g.pixels() * g.channels), wanted(y.count);
  conv::Pooling pooling{g, conv::Pool::kMax, x.get(), y.get()};
  on_own_thread([&] { conv::run(pooling, variant, ParallelFor::inline_loop()); });
  for (std::int64_t i = 0; i < wanted.count; ++i) {
    float most = -HUGE_VALF;
    for_each_tap(g, i / g.channels,
                 [&](std::int64_t from, std::int64_t) { most = std::max(most, x[from * g.channels + i % g.channels]); });
    wanted[i] = most, y[i] = std::isinf(most) ? most = wanted[i] = 0.0f : y[i];  // a window of nothing but padding
  }
  return same(y, wanted, variant.name, "pooling");
}

bool run_one(Random& random, int) {
  const conv::Geometry g = random_geometry(random);
  Floats x(g.batch * g.input[0] * g.input[1] * g.channels);
  fill(x, random);
  Filters filters(g, random);
  Floats wanted = expected(g, x, filters);
  for (const conv::Variant& variant : conv::variants()) {
    if (!dispatch::supports(variant.isa)) continue;
    if (!run_convolution(g, variant, x, filters, wanted) || !run_pooling(g, variant, x) ||
        !run_squeeze_excite(g, variant, x, random))
      return false;
    if (g.is_depthwise() && !run_separable(g, variant, x, filters, wanted, random)) return false;
    if (g.is_depthwise() && !run_inverted_residual(g, variant, filters, random)) return false;
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) { return driver::run_problems(argc, argv, "convolutions", run_one); }
