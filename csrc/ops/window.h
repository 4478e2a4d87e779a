// The attributes of windows that slide over the middle dims of a channels-last tensor [batch, (height,) width, channels].
#pragma once

#include <string>
#include <vector>

#include "csrc/ops/op.h"
#include "kernels/cpu/conv/conv.h"

namespace onnxopt::ops {

/// kernel_shape, strides, pads, dilations, auto_pad and ceil_mode, as ONNX has them; one or two spatial dims.
class WindowAttributes {
 public:
  /// A sentence says what is missing or has the wrong length or sign.
  static Result<WindowAttributes> read(const Attributes& attributes);

  std::size_t rank() const { return rank_; }  // spatial dims

  /// Where the windows lie over an input of this shape; the number of filters is that of channels. A sentence says why there are
  /// none.
  Result<conv::Geometry> over(const Shape& x) const;

  /// The output's size along a spatial axis of so many elements; negative where no window fits.
  std::int64_t output(std::size_t axis, std::int64_t size) const;

 private:
  /// The padding before and after an axis of so many elements.
  void padding(std::size_t axis, std::int64_t size, std::int64_t& before, std::int64_t& after) const;

  /// Attributes are held for two axes; of one, the first is trivial.
  std::size_t first() const { return 2 - rank_; }

  std::size_t rank_ = 2;
  std::int64_t kernel_[2] = {1, 1}, strides_[2] = {1, 1}, dilations_[2] = {1, 1}, begin_[2] = {0, 0}, end_[2] = {0, 0};
  std::string auto_pad_;
  bool ceil_ = false;
};

/// The shape [batch, (height,) width, channels] of what windows give.
Shape shape_of(const conv::Geometry& geometry, std::size_t rank);

/// The same before the run, of an op whose only output that is; with negative `channels`, those of X. Nothing where the attributes
/// are wrong or the rank of X does not fit.
std::vector<std::optional<InferredType>> infer_windows(const Attributes& attributes, const std::vector<Dim>& x, int type,
                                                       std::int64_t channels);

}  // namespace onnxopt::ops
