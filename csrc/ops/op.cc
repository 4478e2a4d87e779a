#include "csrc/ops/op.h"

#include <algorithm>

#include "csrc/dispatch/cpu.h"
#include "csrc/dispatch/tuning.h"
#include "csrc/ops/fused_attention.h"
#include "csrc/ops/fused_conv.h"
#include "csrc/ops/fused_elementwise.h"
#include "csrc/ops/fused_expand.h"
#include "csrc/ops/fused_gemm.h"
#include "csrc/ops/fused_norm.h"
#include "csrc/ops/fused_pool.h"
#include "csrc/ops/fused_recurrence.h"
#include "csrc/ops/fused_separable_conv.h"
#include "csrc/ops/fused_softmax.h"
#include "csrc/ops/qconv.h"
#include "csrc/ops/qgemm.h"
#if defined(ONNXOPT_HAVE_CUDA)
#include "kernels/cuda/elementwise/elementwise.h"
#endif

namespace onnxopt::ops {

std::span<const Op* const> all() {
  static const Op* const list[] = {&fused_attention(),
                                   &fused_conv(),
                                   &fused_conv_transpose(),
                                   &fused_elementwise(),
                                   &fused_gemm(),
                                   &fused_norm(),
                                   &fused_pool(),
                                   &fused_recurrence(),
                                   &fused_resize(),
                                   &fused_separable_conv(),
                                   &fused_softmax(),
                                   &qconv(),
                                   &qgemm()};
  return list;
}

const Op* find(std::string_view name) {
  const auto list = all();
  const auto found = std::find_if(list.begin(), list.end(), [&](const Op* op) { return name == op->name; });
  return found == list.end() ? nullptr : *found;
}

Result<const Variant*> choose(const Op& op) {
  using Choice = Result<const Variant*>;
  if (const auto cap = dispatch::max_isa(); !cap) return Choice::failure(cap.error());
  const Result<std::string> tuned = dispatch::tuned_variant(op.name);
  if (!tuned) return Choice::failure(tuned.error());
  if (!tuned->empty()) {
    const auto named = std::find_if(op.variants.begin(), op.variants.end(), [&](const Variant& one) { return *tuned == one.name; });
    if (named == op.variants.end())
      return Choice::failure("ONNXOPT_TUNING's file names the variant '" + *tuned + "', which it does not have.");
    if (dispatch::usable(named->isa)) return &*named;  // else it was tuned on another machine
  }
  const Variant* chosen = dispatch::choose(op.variants);
  return chosen ? Choice(chosen) : Choice::failure("No kernel variant runs on this processor.");
}

std::string cuda_problem() {
#if defined(ONNXOPT_HAVE_CUDA)
  return elementwise::cuda::interpreter().problem();
#else
  return "This build of onnxopt has no CUDA kernels.";
#endif
}

std::string problem_of(const Variant& variant) {
  if (std::string_view(variant.isa) == "cuda") return cuda_problem();
  if (dispatch::usable(variant.isa)) return "";
  return dispatch::supports(variant.isa) ? "ONNXOPT_MAX_ISA excludes it." : "This processor cannot run it.";
}

const Variant* cuda_variant(const Op& op) {
  const auto found =
      std::find_if(op.variants.begin(), op.variants.end(), [](const Variant& one) { return std::string_view(one.isa) == "cuda"; });
  return found == op.variants.end() ? nullptr : &*found;
}

}  // namespace onnxopt::ops
