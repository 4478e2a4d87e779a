// The exported functions of libonnxopt_ops.
#include <cstdio>
#include <map>
#include <mutex>

#include "csrc/ops/external.h"
#include "csrc/ort/adapter.h"
#include "csrc/ort/custom_op.h"
#include "csrc/registry.h"
#include "python/onnxopt/include/onnxopt/kernel.h"

#define ONNXOPT_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace onnxopt;

/// The table of a later version of the ABI; null where the runtime is older, which is asked first, as it would complain on stderr.
const void* later_table(const OrtApiBase* base) {
  unsigned major = 0, minor = 0;
  const char* version = base->GetVersionString();
  const bool has = version && std::sscanf(version, "%u.%u", &major, &minor) == 2 && (major > 1 || minor >= ort::kLaterApiVersion);
  return has ? base->GetApi(ort::kLaterApiVersion) : nullptr;
}

/// Keeps onnxruntime's tables of functions, or makes a status that says why it cannot be used.
OrtStatus* use_runtime(const OrtApiBase* base) {
  const void* table = base->GetApi(ort::kApiVersion);
  if (table != nullptr) {
    ort::set_api(table, later_table(base));
    return nullptr;
  }
  // Nothing of this ABI version can be called, so the sentence goes through the first version, whose error functions are the
  // same.
  const char* version = base->GetVersionString();
  char text[160];
  std::snprintf(text, sizeof text, "onnxopt needs onnxruntime 1.18 or newer; this is %s.", version ? version : "older");
  const void* first = base->GetApi(1);
  return first ? ort::Api(first).CreateStatus(ort::kFail, text) : nullptr;
}

/// Adds the domain of some ops to session options. Domains live as long as the process: sessions keep plain pointers to their ops.
OrtStatus* add_domain(OrtSessionOptions* options, const std::string& name, std::span<const ops::Op* const> list) {
  static std::mutex mutex;
  static std::map<std::string, OrtCustomOpDomain*> domains;
  const std::lock_guard<std::mutex> lock(mutex);
  OrtCustomOpDomain*& domain = domains[name];
  if (domain == nullptr) {
    OrtCustomOpDomain* made = nullptr;
    if (!ort::succeeded(ort::api().CreateCustomOpDomain(name.c_str(), &made)) || !ort::add_ops(made, list))
      return ort::failure("library", "The custom ops could not be registered.", ort::kFail);
    domain = made;
  }
  return ort::api().AddCustomOpDomain(options, domain);
}

}  // namespace

/// What onnxruntime calls when the library is registered with session options.
ONNXOPT_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  OrtStatus* status = use_runtime(base);
  return status ? status : add_domain(options, ops::kDomain, ops::ours());
}

/// What the user's libraries call when they are registered with session options.
ONNXOPT_EXPORT OrtStatus* onnxopt_register_kernels(OrtSessionOptions* options, const OrtApiBase* base,
                                                   const OnnxOptKernelLibrary* library) {
  if (OrtStatus* status = use_runtime(base)) return status;
  if (const Result<bool> added = ops::external::add(*library); !added) return ort::failure("kernels", added.error());
  std::map<std::string, std::vector<const ops::Op*>> list;
  for (const ops::Op* op : ops::external::ops(library)) list[op->domain].push_back(op);
  for (const auto& [domain, ops] : list)
    if (OrtStatus* status = add_domain(options, domain, ops)) return status;
  return nullptr;
}

ONNXOPT_EXPORT const OnnxOptRegistry* onnxopt_registry() {
  static const OnnxOptRegistry registry{
      ops::all,
      ops::variants,
      ops::choose,
      ops::choose_for_sm,
      ops::choose_cuda,
      ops::create,
      ops::problem_of,
      ops::cuda_problem,
      ops::external::add,
      elementwise::op_table().data(),
      elementwise::op_table().size(),
      &ops::cuda_source_tools(),
#if defined(ONNXOPT_HAVE_CUDA)
      cuda::limits,
      ops::time_on_device,
#else
      nullptr,
      nullptr,
#endif
  };
  return &registry;
}
