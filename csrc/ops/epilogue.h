// The attribute `epilogue`, which every op that computes more than element by element may have.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "csrc/ops/op.h"
#include "kernels/cpu/elementwise/epilogue.h"
#include "kernels/cpu/gemm/panel.h"

namespace onnxopt::ops {

/// The element type of a program's value, as ONNX numbers it.
int element_type(elementwise::DType type);

/// What is computed of an op's raw results, a program whose first inputs they are; without the attribute, nothing.
class EpilogueProgram {
 public:
  /// Reads the attribute, or one of another name that says the same of results inside of the op. `raw` is the number of raw
  /// results, all float32 or, for an op that has them (`halves`), all float16 or bfloat16.
  static Result<EpilogueProgram> read(const Attributes& attributes, std::size_t raw, std::string_view isa,
                                      const char* attribute = "epilogue", bool halves = false);

  /// The same of an op whose only result is float32, as is what the program makes of it.
  static Result<EpilogueProgram> read_of_floats(const Attributes& attributes, std::string_view isa,
                                                const char* attribute = "epilogue");

  /// Whether there is more to do than to clip.
  bool present() const { return program_ && (added_ || !clip_); }
  /// What the results are clipped to, where that is all.
  const gemm::Bounds* clip() const { return clip_ && !added_ ? &*clip_ : nullptr; }

  /// A sum that can be computed in registers: what is added to the only result, and what that is clipped to (null where it is not).
  struct Sum {
    const float* added;
    const gemm::Bounds* clip;
  };
  /// The program as a sum, where it is one with an input of the result's shape.
  std::optional<Sum> sum(const Shape& raw, std::span<const Tensor> inputs) const;

  /// The program as a gate of the only result, where it is one.
  const gemm::Gate* gate() const { return gate_ ? &*gate_ : nullptr; }

  /// Whether the program is the Gelu of the only result and nothing else.
  bool gelu() const;

  /// The program itself, null without one.
  const elementwise::Program* program() const { return program_ ? &*program_ : nullptr; }

  /// The element types of the outputs; without a program, that of the raw results.
  std::vector<int> output_types(int raw_type = kFloat) const;

  /// The types and shapes of the outputs for raw results of one shape and the epilogue's further inputs.
  Result<std::vector<TensorType>> outputs(const Shape& raw, std::span<const Tensor> inputs, int raw_type = kFloat) const;

  /// The program over the tensors of one run; `raw` results are not in memory.
  Result<elementwise::Epilogue> bind(const Shape& raw, std::span<const Tensor> inputs, std::span<const TensorType> types,
                                     std::span<void* const> outputs) const;

  /// Runs the program alone, on `results` in memory.
  Result<bool> run(const Shape& raw, std::vector<const void*> results, std::span<const Tensor> inputs,
                   std::span<const TensorType> types, std::span<void* const> outputs, const ParallelFor& parallel_for) const;

 private:
  std::vector<std::span<const std::int64_t>> shapes(const Shape& raw, std::span<const Tensor> inputs) const;

  std::size_t raw_ = 0;
  std::optional<elementwise::Program> program_;
  std::optional<std::size_t> added_;  // the input that is added before the results are clipped
  std::optional<gemm::Bounds> clip_;  // of a program that does nothing else
  std::optional<gemm::Gate> gate_;    // what the program is
  const elementwise::Variant* variant_ = nullptr;
};

}  // namespace onnxopt::ops
