#include "csrc/ops/op.h"

#include <algorithm>
#include <cstdlib>

#include "csrc/dispatch/cpu.h"
#include "csrc/dispatch/gpu.h"
#include "csrc/dispatch/tuning.h"
#include "csrc/ops/external.h"
#include "csrc/ops/fused_attention.h"
#include "csrc/ops/fused_conv.h"
#include "csrc/ops/fused_elementwise.h"
#include "csrc/ops/fused_expand.h"
#include "csrc/ops/fused_gemm.h"
#include "csrc/ops/fused_inverted_residual.h"
#include "csrc/ops/fused_loop.h"
#include "csrc/ops/fused_norm.h"
#include "csrc/ops/fused_pool.h"
#include "csrc/ops/fused_recurrence.h"
#include "csrc/ops/fused_separable_conv.h"
#include "csrc/ops/fused_softmax.h"
#include "csrc/ops/fused_squeeze_excite.h"
#include "csrc/ops/qattention.h"
#include "csrc/ops/qconv.h"
#include "csrc/ops/qgemm.h"
#if defined(ONNXOPT_HAVE_CUDA)
#include "kernels/cuda/elementwise/elementwise.h"
#endif

namespace onnxopt::ops {

std::span<const Op* const> ours() {
  static const Op* const list[] = {&fused_attention(),
                                   &fused_conv(),
                                   &fused_conv_transpose(),
                                   &fused_elementwise(),
                                   &fused_gemm(),
                                   &fused_inverted_residual(),
                                   &fused_loop(),
                                   &fused_norm(),
                                   &fused_pool(),
                                   &fused_recurrence(),
                                   &fused_resize(),
                                   &fused_separable_conv(),
                                   &fused_softmax(),
                                   &fused_squeeze_excite(),
                                   &qattention(),
                                   &qconv(),
                                   &qgemm()};
  return list;
}

std::vector<const Op*> all() {
  std::vector<const Op*> list(ours().begin(), ours().end());
  const std::vector<const Op*> more = external::ops();
  list.insert(list.end(), more.begin(), more.end());
  return list;
}

const Op* find(std::string_view name) {
  const auto list = all();
  const auto found = std::find_if(list.begin(), list.end(), [&](const Op* op) { return name == op->name; });
  return found == list.end() ? nullptr : *found;
}

std::vector<Variant> variants(const Op& op) {
  std::vector<Variant> list(op.variants.begin(), op.variants.end());
  const std::vector<Variant> more = external::variants(op.name);
  list.insert(list.end(), more.begin(), more.end());
  return list;
}

namespace {

/// Those of an op's variants that may run, as `runs` says, and first of them what ONNXOPT_TUNING's file names.
template <class Runs>
Result<std::vector<Variant>> ordered(const Op& op, std::vector<Variant> list, const Runs& runs) {
  using List = Result<std::vector<Variant>>;
  const Result<std::string> tuned = dispatch::tuned_variant(op.name);
  if (!tuned) return List::failure(tuned.error());
  const auto is_tuned = [&](const Variant& one) { return *tuned == one.name; };
  if (!tuned->empty() && std::none_of(list.begin(), list.end(), is_tuned))
    return List::failure("ONNXOPT_TUNING's file names the variant '" + *tuned + "', which it does not have.");
  // What cannot run here was tuned on another machine.
  std::erase_if(list, [&](const Variant& one) {
    const bool own = op.create != nullptr && one.external != nullptr && !is_tuned(one);
    return own || !runs(one);
  });
  std::stable_partition(list.begin(), list.end(), is_tuned);
  return list;
}

Result<std::vector<Variant>> candidates_on_processor(const Op& op) {
  using List = Result<std::vector<Variant>>;
  if (const auto cap = dispatch::max_isa(); !cap) return List::failure(cap.error());
  List list = ordered(op, variants(op), [](const Variant& one) { return !one.is_cuda() && problem_of(one).empty(); });
  return list && list->empty() ? List::failure("No kernel variant runs on this processor.") : list;
}

bool wants_tf32() {
  const char* const text = std::getenv("ONNXOPT_TF32");
  return text != nullptr && std::string_view(text) == "1";
}

/// Those for a CUDA device of an architecture, or of one that a sentence says is not there.
Result<std::vector<Variant>> candidates_on_device(const Op& op, const Result<int>& sm) {
  using List = Result<std::vector<Variant>>;
  const Result<int> most = dispatch::max_sm();
  if (!most) return List::failure(most.error());
  std::vector<Variant> all = variants(op);
  if (wants_tf32())
    std::stable_partition(all.begin(), all.end(), [](const Variant& one) { return std::string_view(one.name).ends_with("_tf32"); });
  // The user's kernels are asked themselves when they are made.
  List list = ordered(op, all, [&](const Variant& one) {
    return one.is_cuda() && (one.external != nullptr || (sm && *dispatch::sm_of(one.isa) <= std::min(*sm, *most)));
  });
  if (!list || !list->empty()) return list;
  if (!sm) return List::failure(sm.error());
  if (std::none_of(all.begin(), all.end(), [](const Variant& one) { return one.is_cuda(); }))
    return List::failure("It has no CUDA kernel.");
  return List::failure("It has no CUDA kernel for the architecture sm_" + std::to_string(std::min(*sm, *most)) +
                       (*most < *sm ? ", to which ONNXOPT_MAX_SM limits it." : "."));
}

/// The architecture of the current CUDA device, or a sentence that says why there is none.
Result<int> capability() {
#if defined(ONNXOPT_HAVE_CUDA)
  if (cuda_problem().empty()) return elementwise::cuda::interpreter().capability();
#endif
  return Result<int>::failure(cuda_problem());
}

Result<std::vector<Variant>> candidates(const Op& op, bool cuda) {
  return cuda ? candidates_on_device(op, capability()) : candidates_on_processor(op);
}

Result<Variant> first_of(const Result<std::vector<Variant>>& list) {
  return list ? Result<Variant>(list->front()) : Result<Variant>::failure(list.error());
}

/// Why a kernel of ours cannot run on the current CUDA device; empty when it can.
std::string problem_of_device(const Variant& variant) {
  const Result<int> sm = capability(), most = dispatch::max_sm();
  if (!sm || !most) return sm ? most.error() : sm.error();
  const int needed = *dispatch::sm_of(variant.isa);
  if (needed > *most) return "ONNXOPT_MAX_SM excludes it.";
  return needed > *sm ? "The CUDA device is of the architecture sm_" + std::to_string(*sm) + "." : "";
}

}  // namespace

Result<Variant> choose(const Op& op) { return first_of(candidates(op, false)); }

Result<Variant> choose_for_sm(const Op& op, int sm) { return first_of(candidates_on_device(op, sm)); }

Result<Variant> choose_cuda(const Op& op) { return first_of(candidates(op, true)); }

Result<std::unique_ptr<Kernel>> create(const Op& op, const Variant& variant, const Attributes& attributes) {
  if (variant.external) return external::create(*variant.external, attributes);
  if (op.create) return op.create(attributes, variant.name);
  return Result<std::unique_ptr<Kernel>>::failure("It has no variant '" + std::string(variant.name) + "'.");
}

Result<std::unique_ptr<Kernel>> create(const Op& op, bool cuda, const Attributes& attributes) {
  using Made = Result<std::unique_ptr<Kernel>>;
  const Result<std::vector<Variant>> list = candidates(op, cuda);
  if (!list) return Made::failure(list.error());
  std::string declined;
  for (const Variant& variant : *list) {
    Made made = create(op, variant, attributes);
    if (made || variant.external == nullptr) return made;
    declined += (declined.empty() ? "" : " ") + std::string(variant.name) + ": " + made.error();
  }
  return Made::failure(declined);
}

std::vector<std::optional<InferredType>> infer(const Op& op, const Attributes& attributes, std::span<const InferredType> inputs) {
  if (op.create != nullptr) return op.infer ? op.infer(attributes, inputs) : std::vector<std::optional<InferredType>>{};
  Result<std::unique_ptr<Kernel>> kernel = create(op, false, attributes);
  if (!kernel) kernel = create(op, true, attributes);
  if (!kernel) return {};
  std::vector<Tensor> tensors;
  for (const InferredType& input : inputs) {
    Tensor& tensor = tensors.emplace_back();
    tensor.type = input.type;
    for (const Dim& dim : input.shape) tensor.shape.push_back(dim.size);
  }
  const Result<std::vector<TensorType>> types = (*kernel)->outputs(tensors);
  if (!types) return {};
  std::vector<std::optional<InferredType>> inferred;
  for (const TensorType& type : *types) {
    InferredType& one = inferred.emplace_back(InferredType{type.type, {}}).value();
    for (const std::int64_t size : type.shape) one.shape.push_back({size, ""});
  }
  return inferred;
}

std::string cuda_problem() {
#if defined(ONNXOPT_HAVE_CUDA)
  return elementwise::cuda::interpreter().problem();
#else
  return "This build of onnxopt has no CUDA kernels.";
#endif
}

std::string problem_of(const Variant& variant) {
  if (variant.external == nullptr && variant.is_cuda()) return problem_of_device(variant);
  if (!variant.is_cuda() && !dispatch::usable(variant.isa))
    return dispatch::supports(variant.isa) ? "ONNXOPT_MAX_ISA excludes it." : "This processor cannot run it.";
  return variant.external ? external::problem_of(*variant.external) : "";
}

}  // namespace onnxopt::ops
