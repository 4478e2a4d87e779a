// Inverted residuals: a product expands the channels of some lines, a depthwise convolution reads them, and a product projects what
// that gives, a few channels at a time, so that what lies between stays in the first levels of the cache.
#pragma once

#include <cstring>

#include "kernels/cpu/conv/depthwise.h"

namespace onnxopt::conv {
namespace {

/// A band of lines of an image by a part of the expanded channels.
class InvertedResidualTask {
 public:
  InvertedResidualTask(const InvertedResidualPlan& plan, std::int64_t task)
      : plan_(plan),
        expand_(*plan.expand.convolution),
        depthwise_(*plan.depthwise.convolution),
        project_(*plan.project.convolution),
        part_(task % plan.parts),
        band_(task / plan.parts % plan.bands),
        image_(task / plan.parts / plan.bands) {
    const std::int64_t widest = plan.group_panels * static_cast<std::int64_t>(kPanel);
    const std::int64_t expanded = plan.kept_lines * expand_.geometry.input[1] * widest;
    const std::int64_t results = plan.step_lines * depthwise_.geometry.output[1] * widest;
    expanded_ =
        reinterpret_cast<float*>(scratch(static_cast<std::size_t>(expanded + results) * sizeof(float), ScratchOwner::kConvTiles));
    results_ = expanded_ + expanded;
  }

  void run() {
    const std::int64_t lines = depthwise_.geometry.output[0], panels = plan_.expand.panels;
    const Range band{band_ * lines / plan_.bands, (band_ + 1) * lines / plan_.bands};
    const Range part{part_ * panels / plan_.parts, (part_ + 1) * panels / plan_.parts};
    in_even_parts(part.end - part.begin, plan_.group_panels, [&](std::int64_t begin, std::int64_t count) {
      const std::int64_t channel = (part.begin + begin) * static_cast<std::int64_t>(kPanel);
      group_ = {channel, least(channel + count * static_cast<std::int64_t>(kPanel), depthwise_.geometry.channels)};
      is_first_ = begin == 0;
      is_last_ = begin + count == part.end - part.begin;
      kept_ = {0, 0};
      for (std::int64_t line = band.begin; line < band.end; line += plan_.step_lines)
        step({line, least(line + plan_.step_lines, band.end)});
    });
  }

 private:
  std::int64_t width() const { return group_.end - group_.begin; }

  /// Takes a group of channels through lines of the output.
  void step(Range lines) {
    const Geometry& g = depthwise_.geometry;
    const std::int64_t above = lines.begin * g.strides[0] - g.pads[0];
    const std::int64_t below = (lines.end - 1) * g.strides[0] - g.pads[0] + (g.kernel[0] - 1) * g.dilations[0] + 1;
    const Range read{least(most(above, 0), g.input[0]), most(least(below, g.input[0]), 0)};
    keep(read);
    convolve(lines, read, read.begin - above);
    project(lines);
  }

  /// Sees to it that expanded lines are there; those before them are not read again.
  void keep(Range read) {
    const std::int64_t line = expand_.geometry.input[1] * width();
    const std::int64_t there = most(kept_.end - read.begin, 0);
    if (there == 0) kept_ = {read.begin, read.begin};
    if (read.end - kept_.begin > plan_.kept_lines) {
      std::memmove(expanded_, expanded_ + (read.begin - kept_.begin) * line,
                   static_cast<std::size_t>(there * line) * sizeof(float));
      kept_.begin = read.begin;
    }
    if (read.end > kept_.end) {
      expand({kept_.end, read.end}, expanded_ + (kept_.end - kept_.begin) * line);
      kept_.end = read.end;
    }
  }

  void expand(Range lines, float* y) {
    const Geometry& g = expand_.geometry;
    const std::int64_t first = (image_ * g.input[0] + lines.begin) * g.input[1];
    const std::int64_t rows = (lines.end - lines.begin) * g.input[1];
    const Panels weights{expansion(group_.begin), g.channels * static_cast<std::int64_t>(kPanel), width(), projection(0)};
    multiply(expand_.x + first * g.channels, rows, g.channels, weights, [&](std::int64_t row, std::int64_t column) {
      return gemm::Target{.c = y + row * width() + column,
                          .ld = width(),
                          .columns = 0,
                          .bias = expand_.bias + group_.begin + column,
                          .clip = expand_.clip,
                          .gate = expand_.gate};
    });
    finish_in_place(plan_.expand, {first, first + rows, group_.begin, group_.end}, y);
  }

  /// Reads the lines `read`, above which `missing` are padding.
  void convolve(Range lines, Range read, std::int64_t missing) {
    Geometry g = depthwise_.geometry;
    const std::int64_t first = (image_ * g.output[0] + lines.begin) * g.output[1];
    const std::int64_t rows = (lines.end - lines.begin) * g.output[1];
    g.batch = 1;
    g.channels = g.filters = g.groups = width();
    g.input[0] = read.end - read.begin;
    g.output[0] = lines.end - lines.begin;
    g.pads[0] = missing;
    const float* const x = expanded_ + (read.begin - kept_.begin) * g.input[1] * width();
    const Products products{depthwise_.bias + group_.begin, depthwise_.clip, depthwise_.gate};
    for (std::int64_t number = 0; number < g.output[0]; ++number)
      Line(g, x, {depthwise_.weights + group_.begin, depthwise_.geometry.channels}, number, {0, width()}, false)
          .multiply({0, g.output[1]}, results_ + number * g.output[1] * width(), products);
    finish_in_place(plan_.depthwise, {first, first + rows, group_.begin, group_.end}, results_);
  }

  void project(Range lines) {
    const Geometry& g = project_.geometry;
    const std::int64_t begin = (image_ * g.output[0] + lines.begin) * g.output[1];
    const std::int64_t rows = (lines.end - lines.begin) * g.output[1];
    const bool ends = is_last_ && plan_.parts == 1;
    float* const sums = part_ == 0 ? project_.y : plan_.sums + (part_ - 1) * g.pixels() * g.filters;
    const Panels weights{projection(0), g.channels * static_cast<std::int64_t>(kPanel), g.filters, expansion(group_.end)};
    multiply(results_, rows, width(), weights, [&](std::int64_t row, std::int64_t column) {
      const std::int64_t at = (begin + row) * g.filters + column;
      return gemm::Target{.c = sums + at,
                          .ld = g.filters,
                          .columns = 0,
                          .bias = part_ == 0 ? project_.bias + column : nullptr,
                          .accumulate = !is_first_,
                          .clip = ends ? project_.clip : nullptr,
                          .gate = ends ? project_.gate : nullptr,
                          .added = ends && project_.added ? project_.added + at : nullptr,
                          .added_ld = g.filters};
    });
    if (ends) finish(plan_.project, {begin, begin + rows, 0, g.filters});
  }

  /// Where the weights lie that make an expanded channel, and those of the group that make a filter.
  const float* expansion(std::int64_t channel) const { return expand_.weights + channel * expand_.geometry.channels; }
  const float* projection(std::int64_t filter) const {
    return project_.weights + filter * project_.geometry.channels + group_.begin * static_cast<std::int64_t>(kPanel);
  }

  /// Columns of packed weights, and what is read after them.
  struct Panels {
    const float* data;
    std::int64_t step, columns;
    const float* after;
  };

  /// Rows, one right after the other, by all columns; `target` says where a block goes.
  template <class MakeTarget>
  static void multiply(const float* a, std::int64_t rows, std::int64_t depth, const Panels& weights, MakeTarget target) {
    for (std::int64_t column = 0; column < weights.columns; column += kColumns) {
      const std::int64_t columns = least(static_cast<std::int64_t>(kColumns), weights.columns - column);
      gemm::Columns b{weights.data + column / static_cast<std::int64_t>(kPanel) * weights.step, kPanel, weights.step};
      const float* const after = column + columns < weights.columns ? b.data + kPanels * weights.step : weights.after;
      in_even_parts(rows, kRows, [&](std::int64_t row, std::int64_t count) {
        gemm::Target block = target(row, column);
        block.columns = static_cast<std::size_t>(columns);
        if (row > 0) b.next = distance(b.data, after);
        gemm::multiply(static_cast<int>(count), gemm::Strided{a + row * depth, depth}, 1, static_cast<std::size_t>(depth), b,
                       block);
      });
    }
  }

  /// Between arrays, in floats.
  static std::ptrdiff_t distance(const float* from, const float* to) {
    return (reinterpret_cast<std::intptr_t>(to) - reinterpret_cast<std::intptr_t>(from)) /
           static_cast<std::ptrdiff_t>(sizeof(float));
  }

  const InvertedResidualPlan& plan_;
  const Convolution &expand_, &depthwise_, &project_;
  std::int64_t part_, band_, image_;
  Range group_{0, 0};  // of channels
  bool is_first_ = true, is_last_ = true;
  Range kept_{0, 0};  // expanded lines
  float *expanded_, *results_;
};

/// Adds the sums of all parts of the channels, for some pixels.
inline void join_sums(const InvertedResidualPlan& plan, std::int64_t task) {
  const Convolution& project = *plan.project.convolution;
  const Geometry& g = project.geometry;
  const Range rows{task * plan.joined_rows, least((task + 1) * plan.joined_rows, g.pixels())};
  const std::int64_t end = rows.end * g.filters, all = g.pixels() * g.filters;
  const Products finished{nullptr, project.clip, project.gate};
  const auto vector = [&]<bool Whole>(std::int64_t at, std::size_t count) {
    F sum = load_channels<Whole>(project.y + at, count);
    for (std::int64_t part = 1; part < plan.parts; ++part)
      sum = V::add(sum, load_channels<Whole>(plan.sums + (part - 1) * all + at, count));
    if (project.added) sum = V::add(sum, load_channels<Whole>(project.added + at, count));
    store_channels<Whole>(project.y + at, finished.end(sum), count);
  };
  std::int64_t at = rows.begin * g.filters;
  for (; at + kWidth <= end; at += kWidth) vector.template operator()<true>(at, V::kWidth);
  if (at < end) vector.template operator()<false>(at, static_cast<std::size_t>(end - at));
  finish(plan.project, {rows.begin, rows.end, 0, g.filters});
}

}  // namespace
}  // namespace onnxopt::conv
