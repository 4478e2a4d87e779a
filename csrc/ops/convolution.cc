#include "csrc/ops/convolution.h"

#include <algorithm>

namespace onnxopt::ops {

Result<bool> attach(const EpilogueProgram& program, const Shape& raw, std::span<const Tensor> further,
                    std::span<const TensorType> types, std::span<void* const> outputs, conv::Convolution& convolution,
                    std::optional<elementwise::Epilogue>& bound) {
  convolution.clip = program.clip();
  if (const auto sum = program.sum(raw, further); sum && !convolution.geometry.is_depthwise()) {
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

std::vector<Variant> convolution_variants() {
  std::vector<Variant> list;
  for (const conv::Variant& variant : conv::variants()) list.push_back({variant.name, variant.isa});
  return list;
}

Result<const conv::Variant*> find_convolution_variant(std::string_view name) {
  const auto list = conv::variants();
  const auto found = std::find_if(list.begin(), list.end(), [&](const auto& one) { return name == one.name; });
  if (found == list.end()) return Result<const conv::Variant*>::failure("There is no variant '" + std::string(name) + "'.");
  return &*found;
}

}  // namespace onnxopt::ops
