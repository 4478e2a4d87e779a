#include "csrc/ops/fused_softmax.h"

#include "csrc/ops/rows.h"

namespace onnxopt::ops {

namespace {

RowsLayout read_layout(const Attributes& attributes) {
  RowsLayout layout;
  layout.kind = attributes.integer("log").value_or(0) != 0 ? norm::Kind::kLogSoftmax : norm::Kind::kSoftmax;
  layout.kept = attributes.integer("kept").value_or(0) != 0;
  return layout;
}

Result<std::unique_ptr<Kernel>> create(const Attributes& attributes, std::string_view variant) {
  return make_rows_kernel(attributes, read_layout(attributes), variant);
}

std::vector<std::optional<InferredType>> infer(const Attributes& attributes, std::span<const InferredType> inputs) {
  return infer_rows(attributes, read_layout(attributes), inputs);
}

}  // namespace

const Op& fused_softmax() {
  static const char* const attributes[] = {"log", "kept", "prologue", "epilogue"};
  static const Op op{"FusedSoftmax", attributes, rows_variants(), create, infer};
  return op;
}

}  // namespace onnxopt::ops
