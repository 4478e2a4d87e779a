// Inverted residuals: a product expands the channels of some lines, a depthwise convolution reads them, and a product projects what
// that gives, a few channels at a time, so that what lies between stays in the caches of a core.
#pragma once

#include <cstring>

#include "kernels/cpu/conv/depthwise.h"

namespace onnxopt::conv {
namespace {

/// A band of lines of an image by a part of the expanded channels, strip of columns by strip, each by groups of channels.
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
    const std::int64_t expanded = plan.kept_lines * plan.kept_columns * plan.group_channels;
    const std::int64_t results = plan.step_lines * plan.strip_columns * plan.group_channels;
    expanded_ =
        reinterpret_cast<float*>(scratch(static_cast<std::size_t>(expanded + results) * sizeof(float), ScratchOwner::kConvTiles));
    results_ = expanded_ + expanded;
  }

  void run() {
    const Geometry& g = depthwise_.geometry;
    const Range band = share(g.output[0], band_, plan_.bands);
    const Range panels = share(plan_.expand.panels, part_, plan_.parts);
    const Range part{panels.begin * static_cast<std::int64_t>(kPanel),
                     least(panels.end * static_cast<std::int64_t>(kPanel), g.channels)};
    in_even_parts(g.output[1], plan_.strip_columns, [&](std::int64_t begin, std::int64_t count) {
      strip_ = {begin, begin + count};
      columns_ = read_for(strip_, 1);
      for (std::int64_t channel = part.begin; channel < part.end; channel += plan_.group_channels) {
        group_ = {channel, least(channel + plan_.group_channels, part.end)};
        is_first_ = group_.begin == part.begin;
        is_last_ = group_.end == part.end;
        kept_ = {0, 0};
        for (std::int64_t line = band.begin; line < band.end; line += plan_.step_lines)
          step({line, least(line + plan_.step_lines, band.end)});
      }
    });
  }

 private:
  static Range share(std::int64_t total, std::int64_t number, std::int64_t parts) {
    return {number * total / parts, (number + 1) * total / parts};
  }

  /// What windows read of the image along an axis.
  Range read_for(Range outputs, int axis) const {
    const Geometry& g = depthwise_.geometry;
    const std::int64_t last = g.strides[axis] * (outputs.end - 1) - g.pads[axis] + (g.kernel[axis] - 1) * g.dilations[axis];
    return {least(most(first_of(outputs, axis), 0), g.input[axis]), most(least(last + 1, g.input[axis]), 0)};
  }
  /// Where the first window begins, be it in the padding.
  std::int64_t first_of(Range outputs, int axis) const {
    return outputs.begin * depthwise_.geometry.strides[axis] - depthwise_.geometry.pads[axis];
  }

  static std::int64_t size(Range range) { return range.end - range.begin; }
  std::int64_t width() const { return size(group_); }

  /// Takes a group of channels through lines of the output.
  void step(Range lines) {
    const Range read = read_for(lines, 0);
    keep(read);
    convolve(lines, read);
    project(lines);
  }

  /// Sees to it that expanded lines are there; those before them are not read again.
  void keep(Range read) {
    const std::int64_t line = size(columns_) * width();
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

  /// Calls `use(first row, rows, number of the first one)` for the pixels of a part of some lines: all in one where it is all of
  /// them.
  template <class Use>
  void each_run(Range lines, Range columns, const std::int64_t (&image)[2], Use use) const {
    const std::int64_t together = size(columns) == image[1] ? size(lines) : 1;
    for (std::int64_t line = lines.begin; line < lines.end; line += together)
      use((image_ * image[0] + line) * image[1] + columns.begin, together * size(columns), (line - lines.begin) * size(columns));
  }

  void expand(Range lines, float* expanded) {
    const Geometry& g = expand_.geometry;
    const Panels weights{expansion(group_.begin), g.channels * static_cast<std::int64_t>(kPanel), width()};
    each_run(lines, columns_, g.input, [&](std::int64_t first, std::int64_t rows, std::int64_t number) {
      float* const y = expanded + number * width();
      multiply(expand_.x + first * g.channels, rows, g.channels, weights, [&](std::int64_t row, std::int64_t column) {
        return gemm::Target{.c = y + row * width() + column,
                            .ld = width(),
                            .columns = 0,
                            .bias = expand_.bias + group_.begin + column,
                            .clip = expand_.clip,
                            .gate = expand_.gate};
      });
      finish_in_place(plan_.expand, {first, first + rows, group_.begin, group_.end}, y);
    });
  }

  void convolve(Range lines, Range read) {
    const Geometry& whole = depthwise_.geometry;
    Geometry g = whole;
    g.batch = 1;
    g.channels = g.filters = g.groups = width();
    const Range inputs[] = {read, columns_}, outputs[] = {lines, strip_};
    for (int axis = 0; axis < 2; ++axis) {
      g.input[axis] = size(inputs[axis]);
      g.output[axis] = size(outputs[axis]);
      g.pads[axis] = inputs[axis].begin - first_of(outputs[axis], axis);
    }
    const float* const x = expanded_ + (read.begin - kept_.begin) * g.input[1] * width();
    const Products products{depthwise_.bias + group_.begin, depthwise_.clip, depthwise_.gate};
    for (std::int64_t number = 0; number < g.output[0]; ++number)
      Line(g, x, {depthwise_.weights + group_.begin, whole.channels}, number, {0, width()}, false)
          .multiply({0, g.output[1]}, results_ + number * g.output[1] * width(), products);
    each_run(lines, strip_, whole.output, [&](std::int64_t first, std::int64_t rows, std::int64_t number) {
      finish_in_place(plan_.depthwise, {first, first + rows, group_.begin, group_.end}, results_ + number * width());
    });
  }

  void project(Range lines) {
    const Geometry& g = project_.geometry;
    const bool ends = is_last_ && plan_.parts == 1;
    float* const sums = part_ == 0 ? project_.y : plan_.sums + (part_ - 1) * g.pixels() * g.filters;
    const Panels weights{projection(0), g.channels * static_cast<std::int64_t>(kPanel), g.filters};
    each_run(lines, strip_, g.output, [&](std::int64_t first, std::int64_t rows, std::int64_t number) {
      multiply(results_ + number * width(), rows, width(), weights, [&](std::int64_t row, std::int64_t column) {
        const std::int64_t at = (first + row) * g.filters + column;
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
      if (ends) finish(plan_.project, {first, first + rows, 0, g.filters});
    });
  }

  /// Where the weights lie that make an expanded channel, and those of the group that make a filter.
  const float* expansion(std::int64_t channel) const { return expand_.weights + channel * expand_.geometry.channels; }
  const float* projection(std::int64_t filter) const {
    return project_.weights + filter * project_.geometry.channels + group_.begin * static_cast<std::int64_t>(kPanel);
  }

  /// Columns of packed weights.
  struct Panels {
    const float* data;
    std::int64_t step, columns;
  };

  /// Rows, one right after the other, by all columns; `target` says where a block goes.
  template <class MakeTarget>
  static void multiply(const float* a, std::int64_t rows, std::int64_t depth, const Panels& weights, MakeTarget target) {
    for (std::int64_t column = 0; column < weights.columns; column += kColumns) {
      const std::int64_t columns = least(static_cast<std::int64_t>(kColumns), weights.columns - column);
      const gemm::Columns b{weights.data + column / static_cast<std::int64_t>(kPanel) * weights.step, kPanel, weights.step};
      in_even_parts(rows, kRows, [&](std::int64_t row, std::int64_t count) {
        gemm::Target block = target(row, column);
        block.columns = static_cast<std::size_t>(columns);
        gemm::multiply(static_cast<int>(count), gemm::Strided{a + row * depth, depth}, 1, static_cast<std::size_t>(depth), b,
                       block);
      });
    }
  }

  const InvertedResidualPlan& plan_;
  const Convolution &expand_, &depthwise_, &project_;
  std::int64_t part_, band_, image_;
  Range strip_{0, 0}, columns_{0, 0};  // of the output, and what it reads of the input
  Range group_{0, 0};                  // of channels
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
