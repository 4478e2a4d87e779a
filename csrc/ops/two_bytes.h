// Elements of two bytes on a processor, whose kernels compute with floats.
#pragma once

#include <memory>

#include "csrc/ops/op.h"

namespace onnxopt::ops {

/// Rounds floats to elements of a type of two bytes.
void round_to(int type, std::span<const float> floats, void* elements);

/// Tensors of which those of two bytes are copied as floats.
class AsFloats {
 public:
  explicit AsFloats(std::span<const Tensor> tensors);

  std::span<const Tensor> tensors() const { return tensors_; }

 private:
  std::vector<std::unique_ptr<float[]>> memory_;
  std::vector<Tensor> tensors_;
};

/// The number of a tensor's elements.
std::size_t count_of(const Shape& shape);

}  // namespace onnxopt::ops
