#include "csrc/ops/layout.h"

#include <algorithm>
#include <charconv>

namespace onnxopt::ops {

Result<AxisLayout> AxisLayout::parse(std::string_view text) {
  using Made = Result<AxisLayout>;
  const auto wrong = [&] { return Made::failure("Its layout '" + std::string(text) + "' is not one of the axes b, h, s and d."); };
  AxisLayout layout;
  layout.text_ = text;
  std::array<int, kAxes.size()> seen{};
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find(' ', at), text.size());
    const std::string_view word = text.substr(at, end - at), letters = word.substr(0, word.find('@'));
    at = end + 1;
    Group group;
    for (const char letter : letters) {
      const std::size_t axis = kAxes.find(letter);
      if (axis == std::string_view::npos || ++seen[axis] > 1) return wrong();
      group.axes.push_back(axis);
    }
    if (letters.size() < word.size()) {
      group.part = true;
      const char* const last = word.data() + word.size();
      const auto [stop, problem] = std::from_chars(word.data() + letters.size() + 1, last, group.offset);
      if (problem != std::errc() || stop != last || group.offset < 0) return wrong();
    }
    if (word.empty()) return wrong();
    layout.groups_.push_back(std::move(group));
  }
  return layout;
}

Result<Axes> AxisLayout::sizes(const Shape& shape, Axes given) const {
  using Made = Result<Axes>;
  const auto wrong = [&] { return Made::failure("has the shape " + text_of(shape) + ", which is not '" + text_ + "'"); };
  if (shape.size() != groups_.size()) return wrong();
  std::array<bool, kAxes.size()> present{};
  for (std::size_t i = 0; i < shape.size(); ++i) {
    const Group& group = groups_[i];
    std::int64_t known = 1;
    std::size_t open = kAxes.size();
    for (const std::size_t axis : group.axes) {
      present[axis] = true;
      if (given[axis] >= 0)
        known *= given[axis];
      else if (open == kAxes.size())
        open = axis;
      else
        return wrong();
    }
    if (open < kAxes.size()) {
      if (group.part || known == 0 || shape[i] % known != 0) return wrong();
      given[open] = shape[i] / known;
    } else if (group.part ? known > shape[i] || group.offset > shape[i] - known : known != shape[i]) {
      return wrong();
    }
  }
  for (std::size_t axis = 0; axis < given.size(); ++axis) {
    if (present[axis]) continue;
    if (given[axis] > 1) return wrong();
    given[axis] = 1;
  }
  return given;
}

Axes AxisLayout::steps(const Shape& shape, const Axes& sizes) const {
  Axes steps{};
  std::int64_t outer = 1;
  for (std::size_t i = shape.size(); i-- > 0; outer *= shape[i]) {
    std::int64_t step = outer;
    for (auto axis = groups_[i].axes.rbegin(); axis != groups_[i].axes.rend(); ++axis) {
      steps[*axis] = step;
      step *= sizes[*axis];
    }
  }
  return steps;
}

std::int64_t AxisLayout::offset(const Shape& shape) const {
  std::int64_t offset = 0;
  for (std::size_t i = 0; i < shape.size(); ++i) offset = offset * shape[i] + groups_[i].offset;
  return offset;
}

Shape AxisLayout::shape(const Axes& sizes) const {
  Shape shape;
  for (const Group& group : groups_) {
    std::int64_t size = 1;
    for (const std::size_t axis : group.axes) size *= sizes[axis];
    shape.push_back(size);
  }
  return shape;
}

}  // namespace onnxopt::ops
