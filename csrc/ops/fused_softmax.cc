#include "csrc/ops/fused_softmax.h"

#include "csrc/ops/rows.h"

namespace onnxopt::ops {

namespace {

Result<RowsLayout> read_layout(const Attributes& attributes) {
  RowsLayout layout;
  layout.axis = attributes.integer("axis").value_or(-1);
  layout.inner = -1 - layout.axis;
  if (layout.axis >= 0) return Result<RowsLayout>::failure("Its attribute 'axis' is not negative.");
  layout.kind = attributes.integer("log").value_or(0) != 0 ? norm::Kind::kLogSoftmax : norm::Kind::kSoftmax;
  layout.kept = attributes.integer("kept").value_or(0) != 0;
  return layout;
}

}  // namespace

const Op& fused_softmax() {
  static const char* const attributes[] = {"axis", "log", "kept", "prologue", "epilogue"};
  static const Op op{"FusedSoftmax", attributes, rows_variants(), create_rows<read_layout>, infer_rows<read_layout>};
  return op;
}

}  // namespace onnxopt::ops
