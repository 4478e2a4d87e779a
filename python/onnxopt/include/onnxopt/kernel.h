// What a kernel of your own is written against: a C ABI, and above it a little C++ that makes a kernel of a class.
//
//     struct Negate {
//       explicit Negate(const onnxopt::kernel::Attributes&) {}
//       void outputs(onnxopt::kernel::Tensors inputs, onnxopt::kernel::Outputs& made) const { made.add_like(inputs[0]); }
//       void run(onnxopt::kernel::Tensors inputs, onnxopt::kernel::Tensors outputs, const OnnxOptExecution& execution) const;
//     };
//     ONNXOPT_KERNELS(onnxopt::kernel::of<Negate>("com.example", "Negate", "negate__portable", "scalar"))
//
// CMake's onnxopt_add_kernel makes a library of it, which onnxruntime loads as a library of custom ops and `onnxopt bench-kernel`
// measures.
#pragma once

#include <stddef.h>
#include <stdint.h>

/// The version of everything below. A library of another version is refused with a sentence.
#define ONNXOPT_KERNEL_ABI 1

#define ONNXOPT_KERNEL_EXPORT __attribute__((visibility("default")))

#if defined(__cplusplus)
extern "C" {
#endif

struct OrtStatus;
struct OrtSessionOptions;
struct OrtApiBase;

/// A contiguous tensor.
typedef struct OnnxOptTensor {
  void* data;            // on the kernel's device, not aligned; may be null where there are no elements. Inputs are only read.
  const int64_t* shape;  // sizes; before the run, -1 is an unknown one
  size_t rank;           // before the run, also 0 where it is not known
  int32_t type;          // the number that TensorProto.DataType has for the elements; 0 is an input that the node leaves out
} OnnxOptTensor;

/// The attributes of a node. What a function returns lives until `create` returns.
typedef struct OnnxOptAttributes {
  int (*integer)(const struct OnnxOptAttributes*, const char* name, int64_t* value);             // 0: there is none
  int (*real)(const struct OnnxOptAttributes*, const char* name, float* value);                  // 0: there is none
  const char* (*string)(const struct OnnxOptAttributes*, const char* name);                      // null: there is none
  const int64_t* (*integers)(const struct OnnxOptAttributes*, const char* name, size_t* count);  // null: there is none
} OnnxOptAttributes;

/// Takes the types and shapes of the outputs, in their order.
typedef struct OnnxOptOutputs {
  void (*add)(struct OnnxOptOutputs*, int32_t type, const int64_t* shape, size_t rank);
} OnnxOptOutputs;

/// Where a kernel runs.
typedef struct OnnxOptExecution {
  /// Calls `task(user, index)` for every index below `total`, in any order, on the threads of the session, and waits for all.
  void (*parallel_for)(const struct OnnxOptExecution*, size_t total, void (*task)(void* user, size_t index), void* user);
  void* stream;  // a CUDA kernel is launched on this `cudaStream_t`, and neither waits for it nor allocates
} OnnxOptExecution;

/// One implementation of an op. Functions return null, or a sentence that says what is wrong, which lives until the next call by
/// the same thread. Nothing is thrown.
typedef struct OnnxOptKernel {
  const char* domain;   // yours, or "ai.onnxopt" for a further variant of one of onnxopt's ops
  const char* op;       // no op of another domain has this name
  const char* variant;  // its name, unlike those of the op's other variants
  const char* isa;      // what it needs: "scalar", "avx2" (with fma and f16c), "avx512" (f, bw, dq, vl), "avx512vnni" or "cuda"
  /// Why it cannot run on this machine, although that has `isa`. May be null.
  const char* (*problem)(void);
  /// Makes what the kernel knows of a node. A sentence declines the node, which then the next variant of the op gets.
  const char* (*create)(const OnnxOptAttributes*, void** state);
  void (*destroy)(void* state);
  /// Types and shapes of the outputs. Also called before the run, without data: what follows from a size of -1 is -1.
  const char* (*outputs)(const void* state, const OnnxOptTensor* inputs, size_t input_count, OnnxOptOutputs*);
  /// Computes the outputs. Several threads may call it for one state at a time.
  const char* (*run)(const void* state, const OnnxOptTensor* inputs, size_t input_count, const OnnxOptTensor* outputs,
                     size_t output_count, const OnnxOptExecution*);
} OnnxOptKernel;

/// What a library has: the best variant of an op before the others. A domain belongs to one library.
typedef struct OnnxOptKernelLibrary {
  uint32_t abi;  // ONNXOPT_KERNEL_ABI
  size_t count;
  const OnnxOptKernel* kernels;
} OnnxOptKernelLibrary;

/// A library exports this; ONNXOPT_KERNELS defines it.
ONNXOPT_KERNEL_EXPORT const OnnxOptKernelLibrary* onnxopt_kernels(void);

/// Makes a library's kernels known to onnxopt, and its ops to sessions that are made with these options (of libonnxopt_ops.so).
ONNXOPT_KERNEL_EXPORT struct OrtStatus* onnxopt_register_kernels(struct OrtSessionOptions*, const struct OrtApiBase*,
                                                                 const OnnxOptKernelLibrary*);

#if defined(__cplusplus)
}

#include <exception>
#include <iterator>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

namespace onnxopt::kernel {

using Tensors = std::span<const OnnxOptTensor>;

inline std::span<const std::int64_t> shape(const OnnxOptTensor& tensor) { return {tensor.shape, tensor.rank}; }

/// Whether the rank is known, as it always is in a run.
inline bool has_rank(const OnnxOptTensor& tensor) { return tensor.rank > 0 || tensor.data != nullptr; }

/// How many elements a tensor has.
inline std::int64_t count(const OnnxOptTensor& tensor) {
  std::int64_t product = 1;
  for (const std::int64_t size : shape(tensor)) product *= size;
  return product;
}

/// A node's attributes, or what holds where it has none of that name and type.
class Attributes {
 public:
  explicit Attributes(const OnnxOptAttributes& from) : from_(from) {}
  std::int64_t integer(const char* name, std::int64_t otherwise) const {
    std::int64_t value = 0;
    return from_.integer(&from_, name, &value) ? value : otherwise;
  }
  float real(const char* name, float otherwise) const {
    float value = 0;
    return from_.real(&from_, name, &value) ? value : otherwise;
  }
  std::string string(const char* name, const char* otherwise) const {
    const char* const value = from_.string(&from_, name);
    return value ? value : otherwise;
  }
  std::vector<std::int64_t> integers(const char* name) const {
    std::size_t count = 0;
    const std::int64_t* const values = from_.integers(&from_, name, &count);
    return {values, values + (values ? count : 0)};
  }

 private:
  const OnnxOptAttributes& from_;
};

class Outputs {
 public:
  explicit Outputs(OnnxOptOutputs& to) : to_(to) {}
  void add(std::int32_t type, std::span<const std::int64_t> shape) { to_.add(&to_, type, shape.data(), shape.size()); }
  void add_like(const OnnxOptTensor& tensor) { add(tensor.type, shape(tensor)); }

 private:
  OnnxOptOutputs& to_;
};

/// Calls `task(index)` for every index below `total` on the threads of the session. Nothing may be thrown from there.
template <class Task>
void parallel_for(const OnnxOptExecution& execution, std::size_t total, const Task& task) {
  const auto call = [](void* user, std::size_t index) { (*static_cast<const Task*>(user))(index); };
  execution.parallel_for(&execution, total, call, const_cast<Task*>(&task));
}

/// Null, or what was thrown as a sentence.
template <class Call>
const char* sentence_of(const Call& call) {
  static thread_local std::string sentence;
  try {
    call();
    return nullptr;
  } catch (const std::exception& error) {
    sentence = error.what();
  } catch (...) {
    sentence = "It failed.";
  }
  return sentence.c_str();
}

/// The kernel that a class is: made of a node's attributes, with `outputs` and `run` as the example at the top has them, and, where
/// it has one, a static `problem` that returns a string. It throws a std::exception whose text is a sentence.
template <class K>
OnnxOptKernel of(const char* domain, const char* op, const char* variant, const char* isa) {
  OnnxOptKernel made{};
  made.domain = domain, made.op = op, made.variant = variant, made.isa = isa;
  if constexpr (requires { K::problem(); })
    made.problem = []() -> const char* {
      static thread_local std::string problem;
      problem = K::problem();
      return problem.empty() ? nullptr : problem.c_str();
    };
  made.create = [](const OnnxOptAttributes* attributes, void** state) {
    return sentence_of([&] { *state = new K(Attributes(*attributes)); });
  };
  made.destroy = [](void* state) { delete static_cast<K*>(state); };
  made.outputs = [](const void* state, const OnnxOptTensor* inputs, std::size_t count, OnnxOptOutputs* to) {
    return sentence_of([&] {
      Outputs outputs(*to);
      static_cast<const K*>(state)->outputs(Tensors(inputs, count), outputs);
    });
  };
  made.run = [](const void* state, const OnnxOptTensor* inputs, std::size_t input_count, const OnnxOptTensor* outputs,
                std::size_t output_count, const OnnxOptExecution* execution) {
    return sentence_of(
        [&] { static_cast<const K*>(state)->run(Tensors(inputs, input_count), Tensors(outputs, output_count), *execution); });
  };
  return made;
}

}  // namespace onnxopt::kernel

/// The kernels of a library, once in one of its files.
#define ONNXOPT_KERNELS(...)                                                                                          \
  extern "C" const OnnxOptKernelLibrary* onnxopt_kernels(void) {                                                      \
    static const OnnxOptKernel kernels[] = {__VA_ARGS__};                                                             \
    static const OnnxOptKernelLibrary library{ONNXOPT_KERNEL_ABI, std::size(kernels), kernels};                       \
    return &library;                                                                                                  \
  }                                                                                                                   \
  extern "C" ONNXOPT_KERNEL_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) { \
    return onnxopt_register_kernels(options, base, onnxopt_kernels());                                                \
  }
#endif
