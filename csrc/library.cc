// The exported functions of libonnxopt_ops.
#include <cstdio>
#include <mutex>

#include "csrc/ort/adapter.h"
#include "csrc/ort/custom_op.h"
#include "csrc/registry.h"

#define ONNXOPT_EXPORT extern "C" __attribute__((visibility("default")))

/// What onnxruntime calls when the library is registered with session options. The domain lives as long as the process: sessions
/// keep plain pointers to its ops.
ONNXOPT_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace onnxopt;
  const void* table = base->GetApi(ort::kApiVersion);
  if (table == nullptr) {
    // Nothing of this ABI version can be called, so the sentence goes through the first version, whose error functions are the
    // same.
    const char* version = base->GetVersionString();
    char text[160];
    std::snprintf(text, sizeof text, "onnxopt needs onnxruntime 1.18 or newer; this is %s.", version ? version : "older");
    const void* first = base->GetApi(1);
    return first ? ort::Api(first).CreateStatus(ort::kFail, text) : nullptr;
  }
  ort::set_api(table);
  static std::mutex mutex;
  static OrtCustomOpDomain* domain = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (domain == nullptr) {
    OrtCustomOpDomain* made = nullptr;
    if (!ort::succeeded(ort::api().CreateCustomOpDomain(ops::kDomain, &made)) || !ort::add_ops(made))
      return ort::failure("library", "The custom ops could not be registered.", ort::kFail);
    domain = made;
  }
  return ort::api().AddCustomOpDomain(options, domain);
}

ONNXOPT_EXPORT const OnnxOptRegistry* onnxopt_registry() {
  using namespace onnxopt;
  static const OnnxOptRegistry registry{
      ops::all().data(), ops::all().size(), elementwise::op_table().data(), elementwise::op_table().size(), ops::choose,
      ops::problem_of,   ops::cuda_problem};
  return &registry;
}
