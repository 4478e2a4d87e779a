#include "csrc/ort/adapter.h"

#include <algorithm>
#include <atomic>
#include <exception>

namespace onnxopt::ort {

namespace {
const void *g_table = nullptr, *g_later_table = nullptr;

enum AttributeKind : int { kInteger = 1, kIntegers = 2, kReal = 3, kString = 5 };

std::optional<ops::Tensor> type_and_shape(const OrtTensorTypeAndShapeInfo* info) {
  ops::Tensor tensor;
  std::size_t rank = 0;
  bool ok = succeeded(api().GetTensorElementType(info, &tensor.type)) && succeeded(api().GetDimensionsCount(info, &rank));
  tensor.shape.resize(rank);
  ok = ok && succeeded(api().GetDimensions(info, tensor.shape.data(), rank));
  return ok ? std::optional(std::move(tensor)) : std::nullopt;
}

std::optional<ops::Tensor> type_and_shape(const OrtValue* value) {
  if (const LaterApi& later = later_api()) {
    ops::Tensor tensor;
    const std::int64_t* shape = nullptr;
    std::size_t rank = 0;
    if (!succeeded(later.GetTensorElementTypeAndShapeDataReference(value, &tensor.type, &shape, &rank))) return std::nullopt;
    tensor.shape.assign(shape, shape + rank);
    return tensor;
  }
  OrtTensorTypeAndShapeInfo* info = nullptr;
  if (!succeeded(api().GetTensorTypeAndShape(value, &info))) return std::nullopt;
  std::optional<ops::Tensor> tensor = type_and_shape(info);
  api().ReleaseTensorTypeAndShapeInfo(info);
  return tensor;
}

std::optional<ops::Tensor> tensor_of(const OrtValue* value) {
  std::optional<ops::Tensor> tensor = type_and_shape(value);
  void* data = nullptr;
  // Inputs are only read; the ABI has one function for both purposes.
  if (!tensor || !succeeded(api().GetTensorMutableData(const_cast<OrtValue*>(value), &data))) return std::nullopt;
  tensor->data = data;
  return tensor;
}

std::optional<ops::Tensor> input(const OrtKernelContext* context, std::size_t index) {
  const OrtValue* value = nullptr;
  if (!succeeded(api().KernelContext_GetInput(context, index, &value)) || value == nullptr) return std::nullopt;
  return tensor_of(value);
}

Result<void*> output(OrtKernelContext* context, std::size_t index, const ops::Shape& shape) {
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

/// The bytes of an attribute, or nothing when it is absent or of another kind.
std::optional<std::string> read(const OrtShapeInferContext* context, const char* name, AttributeKind kind) {
  const void* attribute = nullptr;
  std::size_t size = 0;
  if (!succeeded(api().ShapeInferContext_GetAttribute(context, name, &attribute)) || attribute == nullptr) return std::nullopt;
  succeeded(api().ReadOpAttr(attribute, kind, nullptr, 0, &size));
  std::string bytes(size, '\0');
  if (size == 0 || !succeeded(api().ReadOpAttr(attribute, kind, bytes.data(), size, &size))) return std::nullopt;
  return bytes;
}

/// The number that an attribute of one of the fixed sizes holds.
template <typename Number>
std::optional<Number> read_number(const OrtShapeInferContext* context, const char* name, AttributeKind kind) {
  const void* attribute = nullptr;
  std::size_t size = 0;
  Number value{};
  if (!succeeded(api().ShapeInferContext_GetAttribute(context, name, &attribute)) || attribute == nullptr) return std::nullopt;
  if (!succeeded(api().ReadOpAttr(attribute, kind, &value, sizeof value, &size))) return std::nullopt;
  return value;
}

std::optional<ops::InferredType> inferred_input(const OrtShapeInferContext* context, std::size_t index) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  // The context keeps this object; it is not released here.
  if (!succeeded(api().ShapeInferContext_GetInputTypeShape(context, index, &info)) || info == nullptr) return std::nullopt;
  const std::optional<ops::Tensor> tensor = type_and_shape(info);
  if (!tensor) return std::nullopt;
  std::vector<const char*> names(tensor->shape.size(), nullptr);
  if (!succeeded(api().GetSymbolicDimensions(info, names.data(), names.size()))) return std::nullopt;
  ops::InferredType type{tensor->type, {}};
  for (std::size_t i = 0; i < names.size(); ++i) type.shape.push_back({tensor->shape[i], names[i] ? names[i] : ""});
  return type;
}
/// The tasks of one loop. What one of them throws, for want of memory, waits for the end of the loop: it would end the process from
/// a thread of the pool, and from the caller's own it would leave others with what is no longer there.
struct Loop {
  ParallelFor::Task task;
  void* user;
  std::atomic_flag failed{};
  std::exception_ptr error{};

  static void run(void* self, std::size_t index) noexcept {
    Loop& loop = *static_cast<Loop*>(self);
    try {
      loop.task(loop.user, index);
    } catch (...) {
      if (!loop.failed.test_and_set()) loop.error = std::current_exception();
    }
  }
};
}  // namespace

const Api& api() {
  static const Api instance(g_table);
  return instance;
}

const LaterApi& later_api() {
  static const LaterApi instance(g_later_table);
  return instance;
}

void set_api(const void* table, const void* later) {
  g_table = table;
  g_later_table = later;
  api();
  later_api();
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

std::optional<std::string> NodeAttributes::string(const char* name) const {
  std::size_t size = 0;
  if (!succeeded(api().KernelInfoGetAttribute_string(info_, name, nullptr, &size)) || size == 0) return std::nullopt;
  std::string text(size, '\0');
  if (!succeeded(api().KernelInfoGetAttribute_string(info_, name, text.data(), &size))) return std::nullopt;
  text.resize(size - 1);  // the size counts a closing zero
  return text;
}

std::optional<std::int64_t> NodeAttributes::integer(const char* name) const {
  std::int64_t value = 0;
  return succeeded(api().KernelInfoGetAttribute_int64(info_, name, &value)) ? std::optional(value) : std::nullopt;
}

std::optional<float> NodeAttributes::real(const char* name) const {
  float value = 0;
  return succeeded(api().KernelInfoGetAttribute_float(info_, name, &value)) ? std::optional(value) : std::nullopt;
}

std::optional<std::vector<std::int64_t>> NodeAttributes::integers(const char* name) const {
  std::size_t size = 0;
  if (!succeeded(api().KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size))) return std::nullopt;
  std::vector<std::int64_t> values(size);
  if (!succeeded(api().KernelInfoGetAttributeArray_int64(info_, name, values.data(), &size))) return std::nullopt;
  return values;
}

std::optional<std::string> InferenceAttributes::string(const char* name) const {
  std::optional<std::string> text = read(context_, name, kString);
  while (text && !text->empty() && text->back() == '\0') text->pop_back();
  return text;
}

std::optional<std::int64_t> InferenceAttributes::integer(const char* name) const {
  return read_number<std::int64_t>(context_, name, kInteger);
}

std::optional<float> InferenceAttributes::real(const char* name) const { return read_number<float>(context_, name, kReal); }

std::optional<std::vector<std::int64_t>> InferenceAttributes::integers(const char* name) const {
  const std::optional<std::string> bytes = read(context_, name, kIntegers);
  if (!bytes) return std::nullopt;
  std::vector<std::int64_t> values(bytes->size() / sizeof(std::int64_t));
  std::copy_n(bytes->data(), values.size() * sizeof(std::int64_t), reinterpret_cast<char*>(values.data()));
  return values;
}

std::vector<ops::Tensor> constant_inputs(const OrtKernelInfo* info) {
  std::size_t count = 0;
  if (!succeeded(api().KernelInfo_GetInputCount(info, &count))) return {};
  std::vector<ops::Tensor> tensors(count);
  for (std::size_t i = 0; i < count; ++i) {
    int is_constant = 0;
    const OrtValue* value = nullptr;
    if (!succeeded(api().KernelInfoGetConstantInput_tensor(info, i, &is_constant, &value))) continue;
    if (is_constant != 0 && value != nullptr) tensors[i] = tensor_of(value).value_or(ops::Tensor{});
  }
  return tensors;
}

std::vector<ops::Tensor> inputs(const OrtKernelContext* context, const std::vector<ops::Tensor>& constants) {
  std::size_t count = 0;
  std::vector<ops::Tensor> tensors;
  if (!succeeded(api().KernelContext_GetInputCount(context, &count))) return tensors;
  tensors.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    const bool known = i < constants.size() && constants[i].type != ops::kUndefined;
    tensors.push_back(known ? constants[i] : input(context, i).value_or(ops::Tensor{}));
  }
  return tensors;
}

Result<std::vector<void*>> outputs(OrtKernelContext* context, const std::vector<ops::TensorType>& types) {
  using Memory = std::vector<void*>;
  std::size_t count = 0;
  if (!succeeded(api().KernelContext_GetOutputCount(context, &count)) || count != types.size())
    return Result<Memory>::failure("The node has " + std::to_string(count) + " outputs and its kernel makes " +
                                   std::to_string(types.size()) + ".");
  Memory memory;
  memory.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    const Result<void*> one = output(context, i, types[i].shape);
    if (!one)
      return Result<Memory>::failure("Output " + std::to_string(i) + " of shape " + ops::text_of(types[i].shape) +
                                     " cannot be made: " + one.error());
    memory.push_back(*one);
  }
  return memory;
}

std::optional<std::vector<ops::InferredType>> inferred_inputs(const OrtShapeInferContext* context) {
  std::size_t count = 0;
  if (!succeeded(api().ShapeInferContext_GetInputCount(context, &count))) return std::nullopt;
  std::vector<ops::InferredType> types;
  for (std::size_t i = 0; i < count; ++i) {
    std::optional<ops::InferredType> one = inferred_input(context, i);
    if (!one) return std::nullopt;
    types.push_back(std::move(*one));
  }
  return types;
}

void set_inferred_output(const OrtShapeInferContext* context, std::size_t index, const ops::InferredType& type) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  if (!succeeded(api().CreateTensorTypeAndShapeInfo(&info))) return;
  std::vector<std::int64_t> sizes;
  std::vector<std::string> texts;
  for (const ops::Dim& dim : type.shape) {
    sizes.push_back(dim.size);
    // onnxruntime takes unknown dims without a name to be equal.
    texts.push_back(dim.size >= 0 ? "" : dim.name.empty() ? ops::fresh_dim() : dim.name);
  }
  std::vector<const char*> names;
  for (const std::string& text : texts) names.push_back(text.c_str());
  if (succeeded(api().SetTensorElementType(info, type.type)) && succeeded(api().SetDimensions(info, sizes.data(), sizes.size())) &&
      succeeded(api().SetSymbolicDimensions(info, names.data(), names.size())))
    succeeded(api().ShapeInferContext_SetOutputTypeShape(context, index, info));
  api().ReleaseTensorTypeAndShapeInfo(info);
}

std::optional<void*> gpu_stream(const OrtKernelContext* context) {
  void* stream = nullptr;
  if (!succeeded(api().KernelContext_GetGPUComputeStream(context, &stream))) return std::nullopt;
  return stream;
}

ParallelFor thread_pool(const OrtKernelContext* context) {
  return {[](void* pool, std::size_t total, ParallelFor::Task task, void* user) {
            if (total == 1) return task(user, 0);
            Loop loop{task, user};
            if (!succeeded(api().KernelContext_ParallelFor(static_cast<const OrtKernelContext*>(pool), Loop::run, total, 0, &loop)))
              for (std::size_t i = 0; i < total; ++i) Loop::run(&loop, i);
            if (loop.error) std::rethrow_exception(loop.error);
          },
          const_cast<OrtKernelContext*>(context)};
}

}  // namespace onnxopt::ort
