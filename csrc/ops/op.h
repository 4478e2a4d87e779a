// A custom op as both sides see it: onnxruntime through csrc/ort, Python through csrc/python.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/dispatch/gpu.h"
#include "csrc/ops/tensor.h"
#include "kernels/cpu/common.h"

extern "C" struct OnnxOptKernel;

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

/// A tensor that brings its memory along.
struct Made : TensorType {
  std::vector<std::byte> bytes;
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

  /// Whether the shapes of the outputs are known after a run only: `make` is then what is called, and neither of the two above.
  virtual bool shapes_by_run() const { return false; }
  virtual Result<std::vector<Made>> make(std::span<const Tensor>, const Execution&) const { return std::vector<Made>(); }
};

/// A kernel whose outputs have the shapes that its run finds.
class ShapingKernel : public Kernel {
 public:
  Result<std::vector<TensorType>> outputs(std::span<const Tensor>) const final {
    return Result<std::vector<TensorType>>::failure("Its outputs' shapes are known after its run only.");
  }
  Result<bool> run(std::span<const Tensor>, std::span<const TensorType>, std::span<void* const>, const Execution&) const final {
    return Result<bool>::failure("Its outputs' shapes are known after its run only.");
  }
  bool shapes_by_run() const final { return true; }
};

/// One implementation of an op. `isa` is what the processor must have, or a CUDA device: "cuda" is any that has kernels, "sm_90"
/// one of that architecture or newer.
struct Variant {
  const char* name;
  const char* isa;
  const OnnxOptKernel* external = nullptr;  // of a library of the user's

  bool is_cuda() const { return dispatch::sm_of(isa).has_value(); }
};

struct Op {
  const char* name;
  std::span<const char* const> attributes;
  /// Best first; the portable one is the last of those for the processor. None where the op is the user's.
  std::span<const Variant> variants;
  /// A kernel of one of these variants, or a sentence that says what is wrong with the attributes.
  Result<std::unique_ptr<Kernel>> (*create)(const Attributes&, std::string_view variant);
  /// Types and shapes of the outputs, as far as they are known before the run. May be null.
  std::vector<std::optional<InferredType>> (*infer)(const Attributes&, std::span<const InferredType> inputs);
  /// Multiplies registers alone with the instructions of a variant, and returns the number of products (0 where that says nothing):
  /// over its time, the ceiling of the kernel. May be null.
  std::int64_t (*occupy)(std::string_view variant, std::int64_t rounds) = nullptr;
  /// Whether the first output may take the memory of the first input, where nothing else reads that.
  bool in_place = false;
  const char* domain = kDomain;
};

/// Every op of onnxopt, in the order of their names.
std::span<const Op* const> ours();

/// These, and then those of the user's libraries.
std::vector<const Op*> all();

/// The op of that name, or null.
const Op* find(std::string_view name);

/// Every variant of an op: ours, and then those of the user's libraries, of each best first.
std::vector<Variant> variants(const Op& op);

/// The variant for this processor, ONNXOPT_TUNING and ONNXOPT_MAX_ISA, or a sentence that says why there is none. Of the user's
/// variants of our ops, one is chosen only by ONNXOPT_TUNING.
Result<Variant> choose(const Op& op);

/// The same for a CUDA device of an architecture (90 is sm_90), ONNXOPT_TUNING, ONNXOPT_MAX_SM and ONNXOPT_TF32: with 1, the
/// variant that multiplies floats as tf32, where the op has it.
Result<Variant> choose_for_sm(const Op& op, int sm);

/// The same for the current device.
Result<Variant> choose_cuda(const Op& op);

/// A kernel of a variant for a node, or a sentence that says what is wrong with it.
Result<std::unique_ptr<Kernel>> create(const Op& op, const Variant& variant, const Attributes& attributes);

/// A kernel of the variant that is chosen for the processor or for a CUDA device; where it is the user's and declines the node, of
/// the next.
Result<std::unique_ptr<Kernel>> create(const Op& op, bool cuda, const Attributes& attributes);

/// Types and shapes of a node's outputs, as far as they are known before the run; of the user's ops by the kernel itself.
std::vector<std::optional<InferredType>> infer(const Op& op, const Attributes& attributes, std::span<const InferredType> inputs);

/// Why no CUDA kernel can run here; empty when one can.
std::string cuda_problem();

/// Why a variant cannot run here; empty when it can.
std::string problem_of(const Variant& variant);

}  // namespace onnxopt::ops
