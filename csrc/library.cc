// The exported functions of libonnxopt_ops.
#include <algorithm>
#include <cstdio>
#include <mutex>

#include "csrc/ops/fused_elementwise.h"
#include "csrc/ort/adapter.h"
#include "csrc/registry.h"

#define ONNXOPT_EXPORT extern "C" __attribute__((visibility("default")))

namespace {
constexpr const char* kDomain = "ai.onnxopt";

/// Every op with its provider; onnxruntime takes the schema of the first of a name.
bool add_ops(OrtCustomOpDomain* domain) {
  using namespace onnxopt;
  const ort::CustomOp* const all[] = {
      ops::fused_elementwise(),
#if defined(ONNXOPT_HAVE_CUDA)
      ops::fused_elementwise_on_cuda(),
#endif
  };
  return std::all_of(std::begin(all), std::end(all),
                     [&](const ort::CustomOp* op) { return ort::succeeded(ort::api().CustomOpDomain_Add(domain, op)); });
}

const onnxopt::elementwise::cuda::Interpreter* cuda_interpreter() {
#if defined(ONNXOPT_HAVE_CUDA)
  return &onnxopt::elementwise::cuda::interpreter();
#else
  return nullptr;
#endif
}
}  // namespace

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
    if (!ort::succeeded(ort::api().CreateCustomOpDomain(kDomain, &made)) || !add_ops(made))
      return ort::failure("library", "The custom ops could not be registered.", ort::kFail);
    domain = made;
  }
  return ort::api().AddCustomOpDomain(options, domain);
}

ONNXOPT_EXPORT const OnnxOptRegistry* onnxopt_registry() {
  using namespace onnxopt::elementwise;
  static const OnnxOptRegistry registry{variants().data(), variants().size(), op_table().data(), op_table().size(),
                                        cuda_interpreter()};
  return &registry;
}
