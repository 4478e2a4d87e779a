// Tensors as ops see them, in a run and before it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/cpu/shape.h"

namespace onnxopt::ops {

/// Element types of tensors, numbered as in ONNX.
enum ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kInt32 = 6,
  kInt64 = 7,
  kBool = 9,
  kFloat16 = 10,
  kDouble = 11,
  kBfloat16 = 16,
  kInt4 = 22  // two in a byte, the lower half first
};

/// Bytes of an element; 0 where the type has none.
std::size_t size_of(int type);

/// Whether elements are float16 or bfloat16.
bool is_of_two_bytes(int type);

/// What ONNX calls an element type.
std::string name_of(int type);

using onnxopt::Shape;

/// A shape as sentences show it: [2,3].
std::string text_of(const Shape& shape);

struct TensorType {
  int type = kUndefined;
  Shape shape;
};

/// A contiguous tensor that a kernel reads. An optional input that the node leaves out has the type `kUndefined`.
struct Tensor : TensorType {
  const void* data = nullptr;
};

/// A number as sentences show it.
std::string number(auto value) { return std::to_string(value); }

/// How many rows a tensor has: its dims but the last one. Not for scalars.
std::int64_t rows_of(const Shape& shape);

/// The shape with rows of another length.
Shape with_columns(Shape shape, std::int64_t columns);

/// A sentence where an op that needs `least` inputs got fewer; empty where it did not.
std::string too_few(std::span<const Tensor> inputs, std::size_t least);

/// The same, and of the first of these inputs that is not float32.
std::string no_floats(std::span<const Tensor> inputs, std::size_t least);

/// A sentence that says what an input is and should be, where its type or shape is another one; empty where both are right.
std::string wrong(std::span<const Tensor> inputs, std::size_t index, int type, const Shape& shape);

/// The same for the shapes of neighbouring inputs, from the one of that index on.
std::string wrong_shapes(std::span<const Tensor> inputs, std::size_t first, std::span<const Shape> shapes);

/// A dim before the run: a size, or -1 with the name that the model gives it (empty where it has none).
struct Dim {
  std::int64_t size = 1;
  std::string name;
};

/// A name for an unknown dim that equals no other dim.
std::string fresh_dim();

/// What is known of a tensor before the run. onnxruntime shows an unknown rank as rank 0.
struct InferredType {
  int type = kUndefined;
  std::vector<Dim> shape;
};

}  // namespace onnxopt::ops
