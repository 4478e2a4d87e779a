// What onnxruntime hands to a custom op, without its C ABI: calls that return a status become results, tensors become values.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/ops/op.h"
#include "csrc/ort/api.h"
#include "kernels/cpu/common.h"

namespace onnxopt::ort {

/// The tables of functions of the runtime that loaded the library, the second one null where that is too old; set once by
/// `RegisterCustomOps`.
const Api& api();
const LaterApi& later_api();
void set_api(const void* table, const void* later);

/// A status with a sentence that starts with the op's name.
OrtStatus* failure(std::string_view op, std::string_view sentence, ErrorCode code = kInvalidArgument);

/// True when the call succeeded; a failed call's status is released.
bool succeeded(OrtStatus* status);

/// The attributes of the node that a kernel is made for.
class NodeAttributes final : public ops::Attributes {
 public:
  explicit NodeAttributes(const OrtKernelInfo* info) : info_(info) {}
  std::optional<std::string> string(const char* name) const override;
  std::optional<std::int64_t> integer(const char* name) const override;
  std::optional<float> real(const char* name) const override;
  std::optional<std::vector<std::int64_t>> integers(const char* name) const override;

 private:
  const OrtKernelInfo* info_;
};

/// The attributes of the node whose outputs' shapes are asked for.
class InferenceAttributes final : public ops::Attributes {
 public:
  explicit InferenceAttributes(const OrtShapeInferContext* context) : context_(context) {}
  std::optional<std::string> string(const char* name) const override;
  std::optional<std::int64_t> integer(const char* name) const override;
  std::optional<float> real(const char* name) const override;
  std::optional<std::vector<std::int64_t>> integers(const char* name) const override;

 private:
  const OrtShapeInferContext* context_;
};

/// The inputs of the node that a kernel is made for which are the same in all runs; others have the type `kUndefined`. To ask for
/// each of them in each run takes longer than a small kernel.
std::vector<ops::Tensor> constant_inputs(const OrtKernelInfo* info);

/// All inputs of a node that runs, constants as they are known; one that cannot be read has the type `kUndefined`.
std::vector<ops::Tensor> inputs(const OrtKernelContext* context, const std::vector<ops::Tensor>& constants);

/// Allocates all outputs and returns their memory, which an empty tensor need not have, or says which one cannot be made.
Result<std::vector<void*>> outputs(OrtKernelContext* context, const std::vector<ops::TensorType>& types);

/// What is known of all inputs before the run; nothing where one cannot be read.
std::optional<std::vector<ops::InferredType>> inferred_inputs(const OrtShapeInferContext* context);
void set_inferred_output(const OrtShapeInferContext* context, std::size_t index, const ops::InferredType& type);

/// The stream on which a kernel of a GPU provider has to run; nothing when the runtime does not tell.
std::optional<void*> gpu_stream(const OrtKernelContext* context);

/// The runtime's own intra-op threads. What a task throws is thrown when all have ended.
ParallelFor thread_pool(const OrtKernelContext* context);

}  // namespace onnxopt::ort
