#include "kernels/cpu/recurrence/convolution.h"

#include <algorithm>

#include "kernels/cpu/gemm/panel.h"
#include "kernels/cpu/scratch.h"

namespace onnxopt::recurrence {

namespace {

constexpr auto kPanel = static_cast<std::int64_t>(gemm::kPanel);
/// Panels of places whose windows are gathered together: they stay in the second-level cache.
constexpr std::int64_t kPanels = 8;

struct Job {
  const Convolution& convolution;
  const ConvolutionData& data;
  const Variant& variant;
  std::int64_t blocks, places;  // blocks of so many places, the last one of what is left

  const Window& down() const { return convolution.windows[0]; }
  const Window& along() const { return convolution.windows[1]; }
  std::int64_t image() const { return down().size * along().size; }
};

/// The places whose windows have a tap inside of the image.
struct Inside {
  std::int64_t begin, end;

  Inside(const Window& window, std::int64_t tap) {
    // A division takes longer than a short window.
    const auto strides = [&](std::int64_t distance) { return window.stride == 1 ? distance : distance / window.stride; };
    const std::int64_t before = window.padding - tap * window.dilation, last = window.size - 1 + before;
    begin = std::min(before <= 0 ? 0 : strides(before + window.stride - 1), window.places);
    end = last < 0 ? begin : std::clamp(strides(last) + 1, begin, window.places);
  }
};

/// One filter of a channel of its own: tap after tap is added to all places.
void filter_channel(void* user, std::size_t index) {
  const Job& job = *static_cast<const Job*>(user);
  const Convolution& all = job.convolution;
  const Window &down = job.down(), &along = job.along();
  const auto number = static_cast<std::int64_t>(index), filter = number % (all.groups * all.filters);
  const std::int64_t channel = number / all.filters;
  const float* const x = job.data.x + channel * job.image();
  const float* weight = job.data.weights + filter * all.depth();
  float* const y = job.data.y + number * all.places();
  std::fill_n(y, all.places(), job.data.bias ? job.data.bias[filter] : 0.0f);
  for (std::int64_t i = 0; i < down.kernel; ++i) {
    const Inside lines(down, i);
    for (std::int64_t j = 0; j < along.kernel; ++j, ++weight) {
      const Inside columns(along, j);
      for (std::int64_t line = lines.begin; line < lines.end; ++line) {
        const float* const from = x + down.at(line, i) * along.size + along.at(0, j);
        float* const to = y + line * along.places;
        for (std::int64_t column = columns.begin; column < columns.end; ++column)
          to[column] += *weight * from[column * along.stride];
      }
    }
  }
}

/// Whether lines of the result are as long as those of the image: a tap sees a whole image at a distance.
bool sees_images(const Job& job) {
  return job.down().stride == 1 && job.along().stride == 1 && job.along().places == job.along().size;
}

/// Writes what a tap sees of a channel from a place on, where it sees images: one piece, beside whose lines zeros are the padding.
void gather_image(const Job& job, const float* channel, std::int64_t i, std::int64_t j, std::int64_t place, std::int64_t count,
                  float* to) {
  const Window &down = job.down(), &along = job.along();
  const std::int64_t width = along.size, behind = place + count, distance = down.at(0, i) * width + along.at(0, j);
  const Inside lines(down, i), columns(along, j);
  const std::int64_t begin = std::clamp(std::max(lines.begin * width, -distance), place, behind);
  const std::int64_t end = std::clamp(std::min(lines.end * width, job.image() - distance), begin, behind);
  std::fill(to, to + begin - place, 0.0f);
  std::copy(channel + begin + distance, channel + end + distance, to + begin - place);
  std::fill(to + end - place, to + count, 0.0f);
  if (columns.begin == 0 && columns.end == width) return;
  for (std::int64_t line = place / width * width; line < behind; line += width) {
    for (std::int64_t k = std::max(line, place); k < std::min(line + columns.begin, behind); ++k) to[k - place] = 0.0f;
    for (std::int64_t k = std::max(line + columns.end, place); k < std::min(line + width, behind); ++k) to[k - place] = 0.0f;
  }
}

/// Writes what a tap sees of a channel from a place on; zeros are the padding.
void gather_tap(const Job& job, const float* channel, std::int64_t i, std::int64_t j, std::int64_t place, std::int64_t count,
                float* to) {
  const Window &down = job.down(), &along = job.along();
  const Inside columns(along, j);
  std::int64_t line = place / along.places, first = place % along.places;
  for (float* const behind = to + count; to < behind; ++line, first = 0) {
    const std::int64_t some = std::min<std::int64_t>(behind - to, along.places - first), at = down.at(line, i);
    const bool inside = at >= 0 && at < down.size;
    const std::int64_t begin = inside ? std::clamp(columns.begin - first, std::int64_t{0}, some) : some;
    const std::int64_t end = std::clamp(columns.end - first, begin, some);
    const float* const from = channel + at * along.size + along.at(first, j);
    for (std::int64_t k = 0; k < begin; ++k) to[k] = 0.0f;
    if (along.stride == 1)
      for (std::int64_t k = begin; k < end; ++k) to[k] = from[k];
    else
      for (std::int64_t k = begin; k < end; ++k) to[k] = from[k * along.stride];
    for (std::int64_t k = end; k < some; ++k) to[k] = 0.0f;
    to += some;
  }
}

/// A block of places of a group: its windows as a matrix, by which the weights are multiplied.
void multiply_windows(void* user, std::size_t index) {
  const Job& job = *static_cast<const Job*>(user);
  const Convolution& all = job.convolution;
  const Window &down = job.down(), &along = job.along();
  const auto number = static_cast<std::int64_t>(index), member = number / job.blocks, group = member % all.groups;
  const std::int64_t first = number % job.blocks * job.places, count = std::min(job.places, all.places() - first),
                     depth = all.depth();
  // A single window is a vector; panels are whole.
  const bool single = all.places() == 1;
  const std::int64_t wide = single ? 1 : (count + kPanel - 1) / kPanel * kPanel;
  auto* const windows =
      reinterpret_cast<float*>(scratch(static_cast<std::size_t>(depth * wide) * sizeof(float), ScratchOwner::kRecurrenceTiles));
  const auto gather = sees_images(job) ? gather_image : gather_tap;
  float* to = windows;
  for (std::int64_t channel = 0; channel < all.channels; ++channel)
    for (std::int64_t i = 0; i < down.kernel; ++i)
      for (std::int64_t j = 0; j < along.kernel; ++j, to += wide) {
        gather(job, job.data.x + (member * all.channels + channel) * job.image(), i, j, first, count, to);
        std::fill(to + count, to + wide, 0.0f);
      }
  const float* const weights = job.data.weights + group * all.filters * depth;
  float* const y = job.data.y + member * all.filters * all.places() + first;
  if (single)
    job.variant.multiply_plain(weights, all.filters, depth, windows, 1, 1, y);
  else
    job.variant.multiply({weights, all.filters, depth, windows, wide, kPanel, nullptr, count, y, all.places()});
  for (std::int64_t filter = 0; job.data.bias && filter < all.filters; ++filter)
    for (std::int64_t k = 0; k < count; ++k) y[filter * all.places() + k] += job.data.bias[group * all.filters + filter];
}

}  // namespace

void convolve(const Convolution& convolution, const ConvolutionData& data, const Variant& variant,
              const ParallelFor& parallel_for) {
  const std::int64_t members = convolution.batch * convolution.groups;
  if (members * convolution.filters * convolution.places() == 0) return;
  // An even number of blocks, so that two threads have as much to do.
  const std::int64_t panels = (convolution.places() + kPanel - 1) / kPanel;
  const std::int64_t some = panels == 1 ? 1 : 2 * ((panels + 2 * kPanels - 1) / (2 * kPanels));
  const std::int64_t places = (panels + some - 1) / some * kPanel;
  Job job{convolution, data, variant, (convolution.places() + places - 1) / places, places};
  if (convolution.channels == 1)
    parallel_for(static_cast<std::size_t>(members * convolution.filters), filter_channel, &job);
  else
    parallel_for(static_cast<std::size_t>(members * job.blocks), multiply_windows, &job);
}

}  // namespace onnxopt::recurrence
