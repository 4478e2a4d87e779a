#include "csrc/ops/qattention.h"

#include "csrc/ops/fused_attention.h"
#include "csrc/ops/variants.h"
#include "kernels/cpu/qattention/qattention.h"

namespace onnxopt::ops {

namespace {

Result<std::unique_ptr<Kernel>> create(const Attributes& attributes, std::string_view name) {
  return create_attention(attributes, onnxopt::qattention::variants(), name);
}

}  // namespace

const Op& qattention() {
  static const std::vector<Variant> list = list_variants(onnxopt::qattention::variants());
  static const Op op{"QAttention", attention_attributes(), list, create, infer_attention};
  return op;
}

}  // namespace onnxopt::ops
