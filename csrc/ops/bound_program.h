// Tensors of one run as a program that is part of a CUDA kernel takes them.
#pragma once

#include "csrc/ops/op.h"
#include "kernels/cuda/elementwise/embedded.h"

namespace onnxopt::ops {

struct BoundProgram {
  std::vector<const void*> inputs;
  std::vector<std::span<const std::int64_t>> input_shapes;
  std::vector<void*> outputs;
  std::vector<Shape> output_shapes;

  /// Inputs that the kernel has in its registers.
  void take(std::size_t count, const Shape& shape) {
    inputs.insert(inputs.end(), count, nullptr);
    input_shapes.insert(input_shapes.end(), count, shape);
  }
  void read(std::span<const Tensor> tensors) {
    for (const Tensor& tensor : tensors) {
      inputs.push_back(tensor.data);
      input_shapes.emplace_back(tensor.shape);
    }
  }
  void write(std::span<void* const> memory, const Shape& shape) {
    outputs.assign(memory.begin(), memory.end());
    output_shapes.assign(memory.size(), shape);
  }
  elementwise::cuda::Bound bound(const elementwise::Program& program) const {
    return {&program, {inputs, input_shapes, outputs, output_shapes}};
  }
};

}  // namespace onnxopt::ops
