// The attribute `prologue`: a program that makes what an op reads of its first inputs.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "csrc/ops/op.h"
#include "kernels/cpu/elementwise/epilogue.h"
#include "kernels/cpu/norm/norm.h"

namespace onnxopt::ops {

/// A program of one float32 result; without the attribute, the first input itself.
class PrologueProgram {
 public:
  static Result<PrologueProgram> read(const Attributes& attributes, std::string_view isa);

  bool present() const { return program_.has_value(); }
  /// The program itself, null without one.
  const elementwise::Program* program() const { return program_ ? &*program_ : nullptr; }
  /// How many of the op's inputs are read.
  std::size_t inputs() const { return program_ ? program_->inputs().size() : 1; }

  /// The shape of the result, or a sentence that says what is wrong with the inputs.
  Result<Shape> shape(std::span<const Tensor> inputs) const;

  /// The dims of the result, as far as they are known before the run; nothing where the rank is not.
  std::optional<std::vector<Dim>> infer(std::span<const InferredType> inputs) const;

  /// The program as a sum of the inputs over the rows of the last axis of a tensor of that shape; nothing where it is none, or has
  /// float16 terms that are not asked for.
  std::optional<norm::Terms> terms(const Shape& shape, std::span<const Tensor> inputs, bool halves) const;

  /// The program over the tensors of one run; `kept` is where the whole result goes, null where blocks of it are asked for.
  Result<elementwise::Epilogue> bind(const Shape& shape, std::span<const Tensor> inputs, void* kept) const;

 private:
  /// The inputs in the order in which they are added up.
  struct Sum {
    std::vector<std::size_t> inputs;
    float factor = 1.0f;
  };

  static std::optional<Sum> as_sum(const elementwise::Program& program);

  std::optional<elementwise::Program> program_;
  std::optional<Sum> sum_;
  const elementwise::Variant* variant_ = nullptr;
};

}  // namespace onnxopt::ops
