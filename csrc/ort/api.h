// The part of onnxruntime's C ABI that custom ops need. The wheel of onnxruntime ships no headers; the ABI is append-only and
// versioned, so a function keeps its place in the table for ever. `tests/csrc` calls these functions in the shared object of the
// wheel.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {
struct OrtStatus;
struct OrtValue;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtTensorTypeAndShapeInfo;
struct OrtShapeInferContext;
struct OrtEnv;
struct OrtSession;
struct OrtRunOptions;
struct OrtMemoryInfo;
struct OrtAllocator;

struct OrtApiBase {
  const void* (*GetApi)(std::uint32_t version);
  const char* (*GetVersionString)();
};
}

namespace onnxopt::ort {

/// The oldest version of the ABI that has everything used here (onnxruntime 1.18).
constexpr std::uint32_t kApiVersion = 18;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };

enum Characteristic : int { kRequired = 0, kOptional = 1, kVariadic = 2 };

struct CustomOp;

/// A function of the table: its place and its type.
template <std::size_t Place, typename Type>
struct Entry;

template <std::size_t Place, typename Return, typename... Arguments>
struct Entry<Place, Return(Arguments...)> {
  static constexpr std::size_t place = Place;
  const void* const* table;
  Return operator()(Arguments... arguments) const {
    return reinterpret_cast<Return (*)(Arguments...)>(const_cast<void*>(table[Place]))(arguments...);
  }
};

/// The table of functions, each by its name in onnxruntime_c_api.h.
struct Api {
  explicit Api(const void* api) : table(static_cast<const void* const*>(api)) {}
  const void* const* table;

#define ONNXOPT_ORT_FUNCTION(name, place, ...) Entry<place, __VA_ARGS__> name{table};
#include "csrc/ort/functions.inc"
#undef ONNXOPT_ORT_FUNCTION
};

/// A version that not every onnxruntime has (from 1.24 on), and what is called where it is there.
constexpr std::uint32_t kLaterApiVersion = 24;

struct LaterApi {
  explicit LaterApi(const void* api) : table(static_cast<const void* const*>(api)) {}
  const void* const* table;  // null in an older onnxruntime

  explicit operator bool() const { return table != nullptr; }

  /// The shape lies in the value: nothing is allocated.
  Entry<414, OrtStatus*(const OrtValue*, int* type, const std::int64_t** shape, std::size_t* rank)>
      GetTensorElementTypeAndShapeDataReference{table};
};

/// The description of a custom op, field by field up to version 18 of the ABI.
struct CustomOp {
  std::uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const void* api, const OrtKernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  int (*GetInputType)(const CustomOp*, std::size_t index);
  std::size_t (*GetInputTypeCount)(const CustomOp*);
  int (*GetOutputType)(const CustomOp*, std::size_t index);
  std::size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  int (*GetInputCharacteristic)(const CustomOp*, std::size_t index);
  int (*GetOutputCharacteristic)(const CustomOp*, std::size_t index);
  int (*GetInputMemoryType)(const CustomOp*, std::size_t index);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  OrtStatus* (*CreateKernelV2)(const CustomOp*, const void* api, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const CustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  std::size_t (*GetMayInplace)(int** inputs, int** outputs);
  void (*ReleaseMayInplace)(int* inputs, int* outputs);
  std::size_t (*GetAliasMap)(int** inputs, int** outputs);
  void (*ReleaseAliasMap)(int* inputs, int* outputs);
};

}  // namespace onnxopt::ort
