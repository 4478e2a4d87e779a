#include "csrc/ort/adapter.h"

#include <atomic>

namespace onnxopt::ort {

namespace {
const void* g_table = nullptr;

enum AttributeKind : int { kStringAttribute = 5 };

std::optional<TensorView> type_and_shape(OrtTensorTypeAndShapeInfo* info) {
  TensorView view;
  std::size_t rank = 0;
  bool ok = succeeded(api().GetTensorElementType(info, &view.type)) && succeeded(api().GetDimensionsCount(info, &rank));
  view.shape.resize(rank);
  ok = ok && succeeded(api().GetDimensions(info, view.shape.data(), rank));
  return ok ? std::optional(std::move(view)) : std::nullopt;
}
}  // namespace

const Api& api() {
  static const Api instance(g_table);
  return instance;
}

void set_api(const void* table) {
  g_table = table;
  api();
}

OrtStatus* failure(std::string_view op, std::string_view sentence, ErrorCode code) {
  std::string text("onnxopt ");
  text.append(op).append(": ").append(sentence);
  return api().CreateStatus(code, text.c_str());
}

bool succeeded(OrtStatus* status) {
  if (status == nullptr) return true;
  api().ReleaseStatus(status);
  return false;
}

std::optional<std::string> string_attribute(const OrtKernelInfo* info, const char* name) {
  std::size_t size = 0;
  if (!succeeded(api().KernelInfoGetAttribute_string(info, name, nullptr, &size)) || size == 0) return std::nullopt;
  std::string text(size, '\0');
  if (!succeeded(api().KernelInfoGetAttribute_string(info, name, text.data(), &size))) return std::nullopt;
  text.resize(size - 1);  // the size counts a closing zero
  return text;
}

std::optional<std::string> string_attribute(const OrtShapeInferContext* context, const char* name) {
  const void* attribute = nullptr;
  std::size_t size = 0;
  if (!succeeded(api().ShapeInferContext_GetAttribute(context, name, &attribute)) || attribute == nullptr) return std::nullopt;
  succeeded(api().ReadOpAttr(attribute, kStringAttribute, nullptr, 0, &size));
  if (size == 0) return std::nullopt;
  std::string text(size, '\0');
  if (!succeeded(api().ReadOpAttr(attribute, kStringAttribute, text.data(), size, &size))) return std::nullopt;
  while (!text.empty() && text.back() == '\0') text.pop_back();
  return text;
}

std::optional<TensorView> input(const OrtKernelContext* context, std::size_t index) {
  const OrtValue* value = nullptr;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  if (!succeeded(api().KernelContext_GetInput(context, index, &value)) || value == nullptr) return std::nullopt;
  if (!succeeded(api().GetTensorTypeAndShape(value, &info))) return std::nullopt;
  std::optional<TensorView> view = type_and_shape(info);
  api().ReleaseTensorTypeAndShapeInfo(info);
  void* data = nullptr;
  // Inputs are only read; the ABI has one function for both purposes.
  if (!view || !succeeded(api().GetTensorMutableData(const_cast<OrtValue*>(value), &data))) return std::nullopt;
  view->data = data;
  return view;
}

Result<void*> output(OrtKernelContext* context, std::size_t index, const std::vector<std::int64_t>& shape) {
  OrtValue* value = nullptr;
  void* data = nullptr;
  OrtStatus* status = api().KernelContext_GetOutput(context, index, shape.data(), shape.size(), &value);
  if (status == nullptr && value == nullptr) return Result<void*>::failure("the node leaves it out.");
  if (status == nullptr) status = api().GetTensorMutableData(value, &data);
  if (status == nullptr) return data;
  std::string message = api().GetErrorMessage(status);
  api().ReleaseStatus(status);
  return Result<void*>::failure(std::move(message));
}

std::optional<InferredInput> inferred_input(const OrtShapeInferContext* context, std::size_t index) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  // The context keeps this object; it is not released here.
  if (!succeeded(api().ShapeInferContext_GetInputTypeShape(context, index, &info)) || info == nullptr) return std::nullopt;
  const std::optional<TensorView> view = type_and_shape(info);
  if (!view) return std::nullopt;
  std::vector<const char*> names(view->shape.size(), nullptr);
  if (!succeeded(api().GetSymbolicDimensions(info, names.data(), names.size()))) return std::nullopt;
  InferredInput input{view->type, {}};
  for (std::size_t i = 0; i < names.size(); ++i) input.shape.push_back({view->shape[i], names[i] ? names[i] : ""});
  return input;
}

void set_inferred_output(const OrtShapeInferContext* context, std::size_t index, int type, const InferredShape& shape) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  if (!succeeded(api().CreateTensorTypeAndShapeInfo(&info))) return;
  std::vector<std::int64_t> sizes;
  std::vector<const char*> names;
  for (const InferredDim& dim : shape) {
    sizes.push_back(dim.size);
    names.push_back(dim.size < 0 ? dim.name.c_str() : "");
  }
  if (succeeded(api().SetTensorElementType(info, type)) && succeeded(api().SetDimensions(info, sizes.data(), sizes.size())) &&
      succeeded(api().SetSymbolicDimensions(info, names.data(), names.size())))
    succeeded(api().ShapeInferContext_SetOutputTypeShape(context, index, info));
  api().ReleaseTensorTypeAndShapeInfo(info);
}

std::string fresh_dim() {
  static std::atomic<std::uint64_t> next{0};
  return "onnxopt_dim_" + std::to_string(next++);
}

std::optional<void*> gpu_stream(const OrtKernelContext* context) {
  void* stream = nullptr;
  if (!succeeded(api().KernelContext_GetGPUComputeStream(context, &stream))) return std::nullopt;
  return stream;
}

ParallelFor thread_pool(const OrtKernelContext* context) {
  return {[](void* pool, std::size_t total, ParallelFor::Task task, void* user) {
            if (!succeeded(api().KernelContext_ParallelFor(static_cast<const OrtKernelContext*>(pool), task, total, 0, user)))
              for (std::size_t i = 0; i < total; ++i) task(user, i);
          },
          const_cast<OrtKernelContext*>(context)};
}

}  // namespace onnxopt::ort
