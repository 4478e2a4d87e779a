// A custom op as both sides see it: onnxruntime through csrc/ort, Python through csrc/python.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/ops/tensor.h"
#include "kernels/cpu/common.h"

namespace onnxopt::ops {

constexpr const char* kDomain = "ai.onnxopt";

/// The attributes of a node; nothing where the node does not have one of that name and type.
class Attributes {
 public:
  virtual ~Attributes() = default;
  virtual std::optional<std::string> string(const char* name) const = 0;
  virtual std::optional<std::int64_t> integer(const char* name) const = 0;
  virtual std::optional<float> real(const char* name) const = 0;
  virtual std::optional<std::vector<std::int64_t>> integers(const char* name) const = 0;
};

/// Where a kernel runs.
struct Execution {
  ParallelFor parallel_for;
  void* stream = nullptr;    // a `cudaStream_t`, for kernels of a CUDA device
  bool host_memory = false;  // such a kernel is given tensors of the host, which it copies: for tests and tools
};

/// One node's kernel. Immutable, so any number of threads may run it.
class Kernel {
 public:
  virtual ~Kernel() = default;

  /// Types and shapes of the outputs for these inputs, or a sentence that says what is wrong with the inputs.
  virtual Result<std::vector<TensorType>> outputs(std::span<const Tensor> inputs) const = 0;

  /// Computes the outputs, whose memory is that of `types`.
  virtual Result<bool> run(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                           const Execution& execution) const = 0;
};

/// One implementation of an op. `isa` is what the processor must have ("cuda" for a kernel of a CUDA device).
struct Variant {
  const char* name;
  const char* isa;
};

struct Op {
  const char* name;
  std::span<const char* const> attributes;
  /// Best first; the portable one is the last of those for the processor.
  std::span<const Variant> variants;
  /// A kernel of one of the variants, or a sentence that says what is wrong with the attributes.
  Result<std::unique_ptr<Kernel>> (*create)(const Attributes&, std::string_view variant);
  /// Types and shapes of the outputs, as far as they are known before the run. May be null.
  std::vector<std::optional<InferredType>> (*infer)(const Attributes&, std::span<const InferredType> inputs);
  /// Multiplies registers alone with the instructions of a variant, and returns the number of products (0 where that says nothing):
  /// over its time, the ceiling of the kernel. May be null.
  std::int64_t (*occupy)(std::string_view variant, std::int64_t rounds) = nullptr;
};

/// Every op, in the order of their names.
std::span<const Op* const> all();

/// The op of that name, or null.
const Op* find(std::string_view name);

/// The variant for this processor, ONNXOPT_TUNING and ONNXOPT_MAX_ISA, or a sentence that says why there is none.
Result<const Variant*> choose(const Op& op);

/// Why no CUDA kernel can run here; empty when one can.
std::string cuda_problem();

/// Why a variant cannot run here; empty when it can.
std::string problem_of(const Variant& variant);

/// The variant for a CUDA device, or null.
const Variant* cuda_variant(const Op& op);

}  // namespace onnxopt::ops
