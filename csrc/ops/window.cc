#include "csrc/ops/window.h"

#include <algorithm>

namespace onnxopt::ops {

namespace {

constexpr std::int64_t kMostWindow = std::int64_t{1} << 31;

/// Copies an attribute of one number per axis; a sentence says what is wrong with it.
std::string read_axes(const Attributes& attributes, const char* name, std::size_t rank, std::int64_t least, std::int64_t* target) {
  const auto values = attributes.integers(name);
  if (!values) return "";
  if (values->size() != rank)
    return "Its attribute '" + std::string(name) + "' has " + std::to_string(values->size()) + " numbers and should have " +
           std::to_string(rank) + ".";
  for (std::size_t i = 0; i < rank; ++i) {
    if ((*values)[i] < least || (*values)[i] > kMostWindow)
      return "Its attribute '" + std::string(name) + "' has the number " + std::to_string((*values)[i]) +
             ", which is out of range.";
    target[i] = (*values)[i];
  }
  return "";
}

}  // namespace

Result<WindowAttributes> WindowAttributes::read(const Attributes& attributes) {
  using Made = Result<WindowAttributes>;
  WindowAttributes made;
  const auto kernel = attributes.integers("kernel_shape");
  if (!kernel || kernel->empty() || kernel->size() > 2)
    return Made::failure("It needs an attribute 'kernel_shape' of one or two numbers.");
  made.rank_ = kernel->size();
  const std::size_t first = made.first();
  std::int64_t pads[4] = {0, 0, 0, 0};
  for (const std::string& sentence : {read_axes(attributes, "kernel_shape", made.rank_, 1, made.kernel_ + first),
                                      read_axes(attributes, "strides", made.rank_, 1, made.strides_ + first),
                                      read_axes(attributes, "dilations", made.rank_, 1, made.dilations_ + first),
                                      read_axes(attributes, "pads", 2 * made.rank_, 0, pads)})
    if (!sentence.empty()) return Made::failure(sentence);
  if (made.kernel_[0] * made.kernel_[1] > kMostWindow)
    return Made::failure("The windows of its attribute 'kernel_shape' are too large.");
  for (std::size_t i = 0; i < made.rank_; ++i) {
    made.begin_[first + i] = pads[i];
    made.end_[first + i] = pads[made.rank_ + i];
  }
  made.auto_pad_ = attributes.string("auto_pad").value_or("NOTSET");
  for (const char* known : {"NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"})
    if (made.auto_pad_ == known) {
      made.ceil_ = attributes.integer("ceil_mode").value_or(0) != 0;
      return made;
    }
  return Made::failure("Its attribute 'auto_pad' is '" + made.auto_pad_ + "', which ONNX does not have.");
}

void WindowAttributes::padding(std::size_t axis, std::int64_t size, std::int64_t& before, std::int64_t& after) const {
  before = begin_[axis];
  after = end_[axis];
  if (auto_pad_ == "NOTSET") return;
  before = after = 0;
  if (auto_pad_ == "VALID") return;
  const std::int64_t outputs = (size + strides_[axis] - 1) / strides_[axis];
  const std::int64_t needed = (outputs - 1) * strides_[axis] + (kernel_[axis] - 1) * dilations_[axis] + 1;
  const std::int64_t total = std::max<std::int64_t>(needed - size, 0);
  before = auto_pad_ == "SAME_UPPER" ? total / 2 : total - total / 2;
  after = total - before;
}

std::int64_t WindowAttributes::output(std::size_t axis, std::int64_t size) const {
  axis += first();
  std::int64_t before, after;
  padding(axis, size, before, after);
  const std::int64_t room = size + before + after - (kernel_[axis] - 1) * dilations_[axis] - 1;
  // Rounded towards zero, as onnxruntime does where no whole window fits.
  std::int64_t count = room / strides_[axis] + 1;
  // The last window, if it is not whole, has to begin in the input or in the padding before it.
  if (ceil_ && room > 0 && room % strides_[axis] != 0 && count * strides_[axis] < size + before) ++count;
  return count;
}

Result<conv::Geometry> WindowAttributes::over(const Shape& x) const {
  using Made = Result<conv::Geometry>;
  if (x.size() != rank_ + 2)
    return Made::failure("Input 0 has the shape " + text_of(x) + " and should have " + std::to_string(rank_ + 2) + " dims.");
  conv::Geometry geometry;
  geometry.batch = x.front();
  geometry.channels = geometry.filters = x.back();
  for (std::size_t axis = 0; axis < 2; ++axis) {
    geometry.kernel[axis] = kernel_[axis];
    geometry.strides[axis] = strides_[axis];
    geometry.dilations[axis] = dilations_[axis];
    if (axis < first()) continue;
    geometry.input[axis] = x[1 + axis - first()];
    std::int64_t after;
    padding(axis, geometry.input[axis], geometry.pads[axis], after);
    geometry.output[axis] = output(axis - first(), geometry.input[axis]);
    if (geometry.output[axis] < 0)
      return Made::failure("Its windows are larger than input 0, whose shape is " + text_of(x) + ", with its padding.");
  }
  return geometry;
}

Shape shape_of(const conv::Geometry& geometry, std::size_t rank) {
  Shape shape{geometry.batch};
  shape.insert(shape.end(), geometry.output + 2 - rank, geometry.output + 2);
  shape.push_back(geometry.filters);
  return shape;
}

std::vector<std::optional<InferredType>> infer_windows(const Attributes& attributes, const std::vector<Dim>& x, int type,
                                                       std::int64_t channels) {
  const Result<WindowAttributes> window = WindowAttributes::read(attributes);
  if (!window || x.size() != window->rank() + 2) return {};
  std::vector<Dim> shape = x;
  shape.back() = channels < 0 ? x.back() : Dim{channels, ""};
  for (std::size_t axis = 0; axis < window->rank(); ++axis) {
    const std::int64_t size = x[axis + 1].size < 0 ? -1 : window->output(axis, x[axis + 1].size);
    shape[axis + 1] = size < 0 ? Dim{-1, fresh_dim()} : Dim{size, ""};
  }
  return {InferredType{type, std::move(shape)}};
}

}  // namespace onnxopt::ops
