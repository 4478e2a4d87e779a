// Writing a custom op without touching the C ABI: calls that return a status become results, tensors become spans.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/ort/api.h"
#include "kernels/cpu/common.h"

namespace onnxopt::ort {

/// The table of functions of the runtime that loaded the library; set once by `RegisterCustomOps`.
const Api& api();
void set_api(const void* table);

/// A status with a sentence that starts with the op's name.
OrtStatus* failure(std::string_view op, std::string_view sentence, ErrorCode code = kInvalidArgument);

/// True when the call succeeded; a failed call's status is released.
bool succeeded(OrtStatus* status);

/// A tensor that a kernel reads: type, shape, and where its elements lie.
struct TensorView {
  int type = kUndefined;
  std::vector<std::int64_t> shape;
  const void* data = nullptr;
};

std::optional<std::string> string_attribute(const OrtKernelInfo* info, const char* name);
std::optional<std::string> string_attribute(const OrtShapeInferContext* context, const char* name);

std::optional<TensorView> input(const OrtKernelContext* context, std::size_t index);

/// Allocates an output and returns its memory, which an empty tensor need not have. A failure is what onnxruntime says.
Result<void*> output(OrtKernelContext* context, std::size_t index, const std::vector<std::int64_t>& shape);

/// A dim before the run: a size, or -1 with the name that the model gives it (empty where it has none).
struct InferredDim {
  std::int64_t size = 1;
  std::string name;
};
using InferredShape = std::vector<InferredDim>;

struct InferredInput {
  int type = kUndefined;
  InferredShape shape;
};

/// Type and shape of an input as far as they are known before the run. onnxruntime shows an unknown rank as rank 0.
std::optional<InferredInput> inferred_input(const OrtShapeInferContext* context, std::size_t index);
void set_inferred_output(const OrtShapeInferContext* context, std::size_t index, int type, const InferredShape& shape);

/// A name for an unknown dim that equals no other dim.
std::string fresh_dim();

/// The stream on which a kernel of a GPU provider has to run; nothing when the runtime does not tell.
std::optional<void*> gpu_stream(const OrtKernelContext* context);

/// The runtime's own intra-op threads.
ParallelFor thread_pool(const OrtKernelContext* context);

}  // namespace onnxopt::ort
