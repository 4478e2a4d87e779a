#include "csrc/ops/convolution.h"

#include "csrc/ops/window.h"

namespace onnxopt::ops {

Result<bool> attach(const EpilogueProgram& program, const Shape& raw, std::span<const Tensor> further,
                    std::span<const TensorType> types, std::span<void* const> outputs, conv::Convolution& convolution,
                    std::optional<elementwise::Epilogue>& bound) {
  convolution.clip = program.clip();
  if (const auto sum = program.sum(raw, further); sum && !convolution.geometry.is_lanewise()) {
    convolution.added = sum->added;
    convolution.clip = sum->clip;
  } else if (program.gate()) {
    convolution.gate = program.gate();
  } else if (program.present()) {
    Result<elementwise::Epilogue> made = program.bind(raw, further, types, outputs);
    if (!made) return Result<bool>::failure(made.error());
    bound = std::move(*made);
    convolution.epilogue = &*bound;
  }
  return true;
}

Result<bool> attach_inside(const EpilogueProgram& program, const Shape& raw, conv::Convolution& convolution,
                           std::optional<elementwise::Epilogue>& bound) {
  const TensorType type{kFloat, raw};
  void* const nowhere = nullptr;
  return attach(program, raw, {}, {&type, 1}, {&nowhere, 1}, convolution, bound);
}

std::vector<std::optional<InferredType>> infer_filters(const Attributes& attributes, std::span<const InferredType> inputs) {
  const std::int64_t filters = attributes.integer("filters").value_or(0);
  if (filters < 1 || inputs.empty()) return {};
  return infer_windows(attributes, inputs[0].shape, kFloat, filters);
}

}  // namespace onnxopt::ops
