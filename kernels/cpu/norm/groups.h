// Groups of channels that lie last. Moments are those of each channel at first, of as many neighbouring places as the first-level
// cache holds; they are combined in pairs.
//
// Source: T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
// 1979.
#pragma once

#include "kernels/cpu/norm/norm.h"

namespace onnxopt::norm {
namespace {

/// Places of which a few channels are taken at a time, so that sums are short and stay in the cache.
inline std::int64_t places_together(std::int64_t channels) { return channels < kBlock ? least(kBlock / channels, kShortChunk) : 1; }

/// Takes places into the moments of some channels, which are of `before` places already.
template <class Part>
[[gnu::always_inline]] inline void measure_places(const float* x, std::int64_t places, std::int64_t channels, std::int64_t before,
                                                  const Moment& moment, Part part) {
  using F = decltype(part.load(x));
  const auto count = static_cast<float>(places), share = 1.0f / count;
  const auto mean_from = [&](F middle) {
    F total = splat<F>(0.0f);
    for (std::int64_t k = 0; k < places; ++k) total = total + (part.load(x + k * channels) - middle);
    return total * splat<F>(share);
  };
  const F middle = before > 0 ? part.load(moment.middle) : mean_from(splat<F>(0.0f));
  F mean = before > 0 ? mean_from(middle) : splat<F>(0.0f), rest = splat<F>(0.0f), squares = rest;
  for (std::int64_t k = 0; k < places; ++k) {
    const F d = part.load(x + k * channels) - middle - mean;
    rest = rest + d;
    squares = fma(d, d, squares);
  }
  const F correction = rest * splat<F>(share);
  mean = mean + correction;
  squares = max(splat<F>(0.0f), fnma(rest, correction, squares));
  if (before > 0) {
    const float all = static_cast<float>(before + places);
    const F old = part.load(moment.mean), d = mean - old;
    mean = fma(d, splat<F>(count / all), old);
    squares = fma(d * d, splat<F>(static_cast<float>(before) * (count / all)), part.load(moment.squares) + squares);
  } else {
    part.store(moment.middle, middle);
  }
  part.store(moment.mean, mean);
  part.store(moment.squares, squares);
}

template <class Part>
[[gnu::always_inline]] inline void scale_places(const float* x, float* y, std::int64_t places, std::int64_t channels,
                                                const Line& line, Part part) {
  const auto mean = part.load(line.mean), factor = part.load(line.factor), term = part.load(line.term);
  for (std::int64_t k = 0; k < places; ++k) part.store(y + k * channels, fma(part.load(x + k * channels) - mean, factor, term));
}

void measure_channels(const Problem& p, const Places& places, const Moment& moment) {
  const std::int64_t channels = p.line, together = places_together(channels);
  for (std::int64_t place = places.begin; place < places.end; place += together) {
    const float* const x = p.x + places.image * p.width + place * channels;
    const std::int64_t count = least(together, places.end - place);
    for_parts(channels, [&](auto part) { measure_places(x, count, channels, place - places.begin, moment, part); });
  }
}

void scale_channels(const Problem& p, const Places& places, const Line& line) {
  const std::int64_t channels = p.line, together = places_together(channels);
  float* const block = held_block(p, least(together, places.end - places.begin) * channels);
  for (std::int64_t place = places.begin; place < places.end; place += together) {
    const std::int64_t count = least(together, places.end - place), offset = places.image * p.width + place * channels;
    float* const y = p.y ? p.y + offset : block;
    for_parts(channels, [&](auto part) { scale_places(p.x + offset, y, count, channels, line, part); });
    if (p.clip)
      transform(y, y, count * channels, [bounds = *p.clip](auto v, auto) { return clamp_keep_nan(v, bounds.low, bounds.high); });
    if (p.epilogue) apply(*p.epilogue, channels, {offset, count, channels, channels}, y, channels, nullptr);
  }
}

}  // namespace
}  // namespace onnxopt::norm
