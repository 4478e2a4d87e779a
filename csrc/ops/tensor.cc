#include "csrc/ops/tensor.h"

#include <atomic>
#include <functional>
#include <numeric>
#include <string_view>

namespace onnxopt::ops {

std::size_t size_of(int type) {
  switch (type) {
    case kUint8:
    case kInt8:
    case kBool: return 1;
    case kFloat16:
    case kBfloat16: return 2;
    case kFloat:
    case kInt32: return 4;
    case kInt64:
    case kDouble: return 8;
    default: return 0;
  }
}

bool is_of_two_bytes(int type) { return type == kFloat16 || type == kBfloat16; }

std::string name_of(int type) {
  constexpr std::string_view names[] = {"undefined", "float",  "uint8",     "int8",       "uint16",  "int16",
                                        "int32",     "int64",  "string",    "bool",       "float16", "double",
                                        "uint32",    "uint64", "complex64", "complex128", "bfloat16"};
  if (type == kInt4) return "int4";
  const bool known = type >= 0 && static_cast<std::size_t>(type) < std::size(names);
  return known ? std::string(names[type]) : "number " + std::to_string(type);
}

std::string text_of(const Shape& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? "," : "") + std::to_string(shape[i]);
  return text + "]";
}

std::string fresh_dim() {
  static std::atomic<std::uint64_t> next{0};
  return "onnxopt_dim_" + std::to_string(next++);
}

std::int64_t rows_of(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end() - 1, std::int64_t{1}, std::multiplies());
}

Shape with_columns(Shape shape, std::int64_t columns) {
  shape.back() = columns;
  return shape;
}

std::string too_few(std::span<const Tensor> inputs, std::size_t least) {
  if (inputs.size() >= least) return "";
  return "It got " + number(inputs.size()) + " inputs and needs at least " + number(least) + ".";
}

std::string no_floats(std::span<const Tensor> inputs, std::size_t least) {
  if (std::string sentence = too_few(inputs, least); !sentence.empty()) return sentence;
  for (std::size_t i = 0; i < least; ++i)
    if (inputs[i].type != kFloat) return "Input " + number(i) + " is of type " + name_of(inputs[i].type) + " and should be float.";
  return "";
}

std::string wrong(std::span<const Tensor> inputs, std::size_t index, int type, const Shape& shape) {
  const Tensor& tensor = inputs[index];
  if (tensor.type != type)
    return "Input " + number(index) + " is of type " + name_of(tensor.type) + " and should be " + name_of(type) + ".";
  return wrong_shapes(inputs, index, {&shape, 1});
}

std::string wrong_shapes(std::span<const Tensor> inputs, std::size_t first, std::span<const Shape> shapes) {
  for (std::size_t i = 0; i < shapes.size(); ++i)
    if (const Shape& shape = inputs[first + i].shape; shape != shapes[i])
      return "Input " + number(first + i) + " has the shape " + text_of(shape) + " and should have " + text_of(shapes[i]) + ".";
  return "";
}

}  // namespace onnxopt::ops
