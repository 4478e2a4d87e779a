#include "csrc/ops/fused_norm.h"

#include "csrc/ops/rows.h"

namespace onnxopt::ops {

namespace {

Result<RowsLayout> read_layout(const Attributes& attributes) {
  using Made = Result<RowsLayout>;
  RowsLayout layout;
  const std::string kind = attributes.string("kind").value_or("layer");
  if (kind != "layer" && kind != "rms") return Made::failure("Its attribute 'kind' is '" + kind + "' and should be layer or rms.");
  layout.kind = kind == "rms" ? norm::Kind::kRms : norm::Kind::kLayer;
  layout.epsilon = attributes.real("epsilon").value_or(1e-5f);
  layout.axis = attributes.integer("axis").value_or(-1);
  layout.inner = attributes.integer("inner").value_or(0);
  if (layout.axis >= 0 || layout.inner < 0) return Made::failure("Its attribute 'axis' is not negative, or 'inner' is.");
  layout.groups = attributes.integer("groups").value_or(0);
  if (layout.groups < 0) return Made::failure("Its attribute 'groups' is negative.");
  layout.channels_last = attributes.integer("channels_last").value_or(0) != 0;
  layout.scaled = attributes.integer("scaled").value_or(0) != 0;
  layout.biased = attributes.integer("biased").value_or(0) != 0;
  layout.kept = attributes.integer("kept").value_or(0) != 0;
  return layout;
}

}  // namespace

const Op& fused_norm() {
  static const char* const attributes[] = {"kind",   "axis",   "inner", "groups",   "channels_last", "epsilon",
                                           "scaled", "biased", "kept",  "prologue", "epilogue"};
  static const Op op{"FusedNorm", attributes, rows_variants(), create_rows<read_layout>, infer_rows<read_layout>};
  return op;
}

}  // namespace onnxopt::ops
