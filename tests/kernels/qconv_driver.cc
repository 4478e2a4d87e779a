// Runs random convolutions of bytes in every variant that this machine has, for the sanitizers. All memory is as small as the
// interface allows. Sums are exact, so results must be equal to those of plain loops.
//
//     onnxopt_qconv_driver [problems] [seed]
#include <cstdio>
#include <cstring>

#include "csrc/dispatch/cpu.h"
#include "kernels/cpu/qconv/qconv.h"
#include "kernels/cuda/qconv/qconv.h"
#include "tests/kernels/driver.h"

namespace {

using namespace onnxopt;
using driver::ceil_div;
using driver::Memory;
using driver::Random;

conv::Geometry random_geometry(Random& random) {
  conv::Geometry g;
  const bool large = random.sometimes(8);
  g.batch = random.between(1, 2);
  if (random.sometimes(2)) {
    g.channels = g.filters = g.groups = random.between(2, large ? 200 : 50);
  } else {
    g.groups = random.sometimes(3) ? random.between(2, 4) : 1;
    g.channels = g.groups * random.between(1, large ? 90 : 20);
    g.filters = g.groups * random.between(1, large ? 90 : 40);
  }
  for (int axis = 0; axis < 2; ++axis) {
    g.kernel[axis] = random.between(1, 5);
    g.strides[axis] = random.between(1, 3);
    g.dilations[axis] = random.sometimes(4) ? 2 : 1;
    g.pads[axis] = random.between(0, g.kernel[axis] - 1);
    const std::int64_t window = (g.kernel[axis] - 1) * g.dilations[axis] + 1;
    g.input[axis] = random.between(1, large ? 30 : 12);
    const std::int64_t after = random.between(0, g.kernel[axis]);
    const std::int64_t room = g.input[axis] + g.pads[axis] + after - window;
    g.output[axis] = room < 0 ? 0 : room / g.strides[axis] + 1;
  }
  return g;
}

/// One convolution, its operands and what the sums should be.
class Problem {
 public:
  explicit Problem(Random& random)
      : g_(random_geometry(random)),
        depth_(g_.channels / g_.groups),
        x_(g_.batch * g_.input[0] * g_.input[1] * g_.channels),
        plain_(g_.filters * g_.taps() * depth_),
        packed_(packed_size()),
        scales_(g_.filters),
        bias_(g_.filters),
        sums_(g_.filters),
        y_(g_.pixels() * g_.filters),
        bytes_(g_.pixels() * g_.filters),
        added_(g_.pixels() * g_.filters) {
    is_signed_ = random.sometimes(3);
    zero_ = static_cast<std::int32_t>(is_signed_ ? random.between(-128, 127) : random.between(0, 255));
    for (std::int64_t i = 0; i < x_.count; ++i) x_[i] = static_cast<std::uint8_t>(random.between(0, 255));
    for (std::int64_t i = 0; i < added_.count; ++i) added_[i] = static_cast<std::uint8_t>(random.between(0, 255));
    for (std::int64_t f = 0; f < g_.filters; ++f) {
      scales_[f] = static_cast<float>(random.between(1, 9));
      bias_[f] = static_cast<float>(random.between(-9, 9));
      for (std::int64_t ky = 0; ky < g_.kernel[0]; ++ky)
        for (std::int64_t kx = 0; kx < g_.kernel[1]; ++kx)
          for (std::int64_t c = 0; c < depth_; ++c) {
            const auto weight = static_cast<std::int8_t>(random.between(-128, 127));
            plain_[weight_at(f, ky, kx, c)] = weight;
            packed_[packed_at(f, ky, kx, c)] = weight;
            sums_[f] += weight;
          }
    }
  }

  bool run() {
    qconv::Convolution convolution{};
    convolution.geometry = g_;
    convolution.x = {x_.data.get(), is_signed_ ? qconv::Type::kInt8 : qconv::Type::kUint8, 0.5f, zero_};
    convolution.weights = packed_.data.get();
    convolution.weight_scales = scales_.data.get();
    convolution.sums = sums_.data.get();
    convolution.bias = bias_.data.get();
    for (const qconv::Variant& variant : qconv::variants()) {
      if (!dispatch::supports(variant.isa)) continue;
      convolution.y = y_.data.get();
      convolution.result = {nullptr, qconv::Type::kFloat};
      convolution.added = {};
      qconv::run(convolution, variant, ParallelFor::inline_loop());
      if (!check(variant.name)) return false;
      // Of bytes only memory is watched.
      convolution.y = bytes_.data.get();
      convolution.result = {nullptr, qconv::Type::kUint8, 100.0f, 7};
      qconv::run(convolution, variant, ParallelFor::inline_loop());
      convolution.added = {added_.data.get(), qconv::Type::kInt8, 3.0f, -4};
      qconv::run(convolution, variant, ParallelFor::inline_loop());
    }
    return run_emulated(convolution);
  }

 private:
  static constexpr std::int64_t kMostMultiplied = 1 << 20;

  /// The kernel for CUDA devices, on fibers of the host. Matrix instructions exchange values between fibers, which takes its time.
  bool run_emulated(const qconv::Convolution& convolution) {
    if (g_.pixels() == 0 || g_.pixels() * g_.filters * g_.taps() * depth_ > kMostMultiplied) return true;
    const auto zero = static_cast<std::uint8_t>(zero_);
    qconv::cuda::Problem problem;
    problem.geometry = g_;
    problem.x = {x_.data.get(), convolution.x.type, &convolution.x.scale, &zero};
    problem.weights = packed_.data.get();
    problem.weight_scales = scales_.data.get();
    problem.sums = sums_.data.get();
    problem.bias = bias_.data.get();
    problem.y = y_.data.get();
    problem.result.type = qconv::Type::kFloat;
    return qconv::cuda::emulate(problem) && check("qconv__cuda_emulated");
  }

  static constexpr auto kPanel = static_cast<std::int64_t>(qgemm::kPanel), kGroup = static_cast<std::int64_t>(qgemm::kGroup);

  std::int64_t groups_of_four() const { return qconv::stretches(g_) * ceil_div(qconv::stretch(g_), kGroup); }
  std::int64_t packed_size() const {
    if (g_.is_depthwise()) return g_.kernel[1] * ceil_div(g_.kernel[0], kGroup) * g_.channels * kGroup;
    return g_.groups * ceil_div(g_.filters / g_.groups, kPanel) * groups_of_four() * kPanel * kGroup;
  }
  std::int64_t weight_at(std::int64_t f, std::int64_t ky, std::int64_t kx, std::int64_t c) const {
    return ((f * g_.kernel[0] + ky) * g_.kernel[1] + kx) * depth_ + c;
  }
  std::int64_t packed_at(std::int64_t f, std::int64_t ky, std::int64_t kx, std::int64_t c) const {
    if (g_.is_depthwise()) return ((kx * ceil_div(g_.kernel[0], kGroup) + ky / kGroup) * g_.channels + f) * kGroup + ky % kGroup;
    const bool lines = qconv::in_lines(g_);
    const std::int64_t filters = g_.filters / g_.groups, panels = ceil_div(filters, kPanel);
    const std::int64_t row = lines ? kx * depth_ + c : c, stretch = lines ? ky : ky * g_.kernel[1] + kx;
    const std::int64_t four = stretch * ceil_div(qconv::stretch(g_), kGroup) + row / kGroup;
    const std::int64_t own = f % filters, panel = f / filters * panels + own / kPanel;
    return ((panel * groups_of_four() + four) * kPanel + own % kPanel) * kGroup + row % kGroup;
  }
  std::int32_t value(std::int64_t image, std::int64_t y, std::int64_t x, std::int64_t channel) {
    if (y < 0 || y >= g_.input[0] || x < 0 || x >= g_.input[1]) return 0;
    const std::uint8_t byte = x_[((image * g_.input[0] + y) * g_.input[1] + x) * g_.channels + channel];
    return (is_signed_ ? static_cast<std::int8_t>(byte) : static_cast<std::int32_t>(byte)) - zero_;
  }

  bool check(const char* name) {
    for (std::int64_t pixel = 0; pixel < g_.pixels(); ++pixel)
      for (std::int64_t f = 0; f < g_.filters; ++f) {
        const std::int64_t line = pixel / g_.output[1], image = line / g_.output[0];
        const std::int64_t top = line % g_.output[0] * g_.strides[0] - g_.pads[0],
                           left = pixel % g_.output[1] * g_.strides[1] - g_.pads[1];
        const std::int64_t first = f / (g_.filters / g_.groups) * depth_;
        std::int64_t sum = 0;
        for (std::int64_t ky = 0; ky < g_.kernel[0]; ++ky)
          for (std::int64_t kx = 0; kx < g_.kernel[1]; ++kx)
            for (std::int64_t c = 0; c < depth_; ++c)
              sum += value(image, top + ky * g_.dilations[0], left + kx * g_.dilations[1], first + c) *
                     plain_[weight_at(f, ky, kx, c)];
        const float wanted = static_cast<float>(sum) * (0.5f * scales_[f]) + bias_[f], found = y_[pixel * g_.filters + f];
        if (found == wanted) continue;
        std::printf("%s: pixel %lld, filter %lld is %g and should be %g\n", name, static_cast<long long>(pixel),
                    static_cast<long long>(f), static_cast<double>(found), static_cast<double>(wanted));
        return false;
      }
    return true;
  }

  conv::Geometry g_;
  std::int64_t depth_;
  bool is_signed_ = false;
  std::int32_t zero_ = 0;
  Memory<std::uint8_t> x_;
  Memory<std::int8_t> plain_, packed_;
  Memory<float> scales_, bias_;
  Memory<std::int32_t> sums_;
  Memory<float> y_;
  Memory<std::uint8_t> bytes_, added_;
};

}  // namespace

int main(int argc, char** argv) {
  return driver::run_problems(argc, argv, "convolutions of bytes", [](Random& random, int) { return Problem(random).run(); });
}
