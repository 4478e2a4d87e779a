#include "csrc/ops/two_bytes.h"

#include <functional>
#include <numeric>

#include "kernels/cuda/elementwise/functions.h"

namespace onnxopt::ops {

namespace device = elementwise::cuda;

std::size_t count_of(const Shape& shape) {
  return static_cast<std::size_t>(std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies()));
}

void round_to(int type, std::span<const float> floats, void* elements) {
  auto* const target = static_cast<std::uint16_t*>(elements);
  for (std::size_t i = 0; i < floats.size(); ++i)
    target[i] = type == kBfloat16 ? device::to_brain(floats[i]) : device::to_half(floats[i]);
}

AsFloats::AsFloats(std::span<const Tensor> tensors) : tensors_(tensors.begin(), tensors.end()) {
  for (Tensor& tensor : tensors_) {
    if (!is_of_two_bytes(tensor.type)) continue;
    const std::size_t count = count_of(tensor.shape);
    const auto* const source = static_cast<const std::uint16_t*>(tensor.data);
    auto floats = std::make_unique_for_overwrite<float[]>(count);
    for (std::size_t i = 0; i < count; ++i)
      floats[i] = tensor.type == kBfloat16 ? device::from_brain(source[i]) : device::from_half(source[i]);
    tensor.type = kFloat;
    tensor.data = memory_.emplace_back(std::move(floats)).get();
  }
}

}  // namespace onnxopt::ops
