// Where attention finds its axes in a tensor: `b s hd` is [batch, rows, heads * columns].
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/ops/tensor.h"
#include "kernels/cpu/common.h"

namespace onnxopt::ops {

/// The sizes of the axes b (batch), h (heads), s (rows) and d (columns); -1 where the tensor tells.
using Axes = std::array<std::int64_t, 4>;
constexpr std::string_view kAxes = "bhsd";

/// One word for each dim of the tensor: the axes that it holds, outermost first, and after `@` where they begin in a dim that holds
/// more. An axis without a dim has the size 1.
class AxisLayout {
 public:
  static Result<AxisLayout> parse(std::string_view text);

  /// The sizes in a tensor of this shape, where those that are not -1 are given, or a sentence that says what does not fit.
  Result<Axes> sizes(const Shape& shape, Axes given) const;

  /// Elements from one index to the next along each axis.
  Axes steps(const Shape& shape, const Axes& sizes) const;
  /// Where the tensor's first element lies.
  std::int64_t offset(const Shape& shape) const;

  /// The shape that the tensor has.
  Shape shape(const Axes& sizes) const;

  struct Group {
    std::vector<std::size_t> axes;
    bool part = false;
    std::int64_t offset = 0;
  };
  const std::vector<Group>& groups() const { return groups_; }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
  std::vector<Group> groups_;
};

}  // namespace onnxopt::ops
