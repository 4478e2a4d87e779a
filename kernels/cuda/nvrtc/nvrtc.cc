#include "kernels/cuda/nvrtc/nvrtc.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "kernels/cuda/nvrtc/cache.h"

namespace onnxopt::cuda::nvrtc {

namespace {

/// The oldest device that kernels are made for.
constexpr int kOldest = 80;

constexpr const char* kNames[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};

/// Arithmetic as that of the kernels which are compiled in advance: rounded operation by operation.
constexpr const char* kOptions[] = {"--std=c++20", "--fmad=false"};

/// What a source includes of the standard library; NVRTC has functions and types of the language alone.
constexpr SourceFile kStandard[] = {
    {"cmath", "#pragma once\n#ifndef INFINITY\n#define INFINITY __int_as_float(0x7f800000)\n#endif\n"},
    {"cstdint",
     "#pragma once\n"
     "namespace std {\n"
     "using int8_t = signed char; using int16_t = short; using int32_t = int; using int64_t = long;\n"
     "using uint8_t = unsigned char; using uint16_t = unsigned short; using uint32_t = unsigned; using uint64_t = unsigned long;\n"
     "using uintptr_t = unsigned long; using size_t = decltype(sizeof(0));\n"
     "}\n"
     "#define INT32_MIN (-2147483647 - 1)\n"
     "#define INT64_MIN (-9223372036854775807l - 1)\n"},
    {"cstring", "#pragma once\nnamespace std {\nusing ::memcpy;\n}\n"},
};

using Program = struct OpaqueProgram*;

/// The part of NVRTC's C interface that is called; its status is 0 on success.
struct Interface {
  int (*version)(int* major, int* minor);
  int (*architecture_count)(int* count);
  int (*architectures)(int* list);
  int (*create)(Program*, const char* source, const char* name, int count, const char* const* headers, const char* const* names);
  int (*destroy)(Program*);
  int (*compile)(Program, int count, const char* const* options);
  int (*code_size)(Program, std::size_t*);
  int (*code)(Program, char*);
  int (*ptx_size)(Program, std::size_t*);
  int (*ptx)(Program, char*);
  int (*log_size)(Program, std::size_t*);
  int (*log)(Program, char*);
  const char* (*error)(int);
};

struct Loaded {
  Interface calls;
  Compiler compiler;
};

void* open_library(const char* wanted, std::string& sentence) {
  if (wanted != nullptr) {
    void* library = dlopen(wanted, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) sentence = std::string("ONNXOPT_NVRTC names a library that cannot be loaded: ") + dlerror() + ".";
    return library;
  }
  for (const char* name : kNames)
    if (void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return library;
  sentence = "NVRTC, libnvrtc.so.13 or libnvrtc.so.12, is not found.";
  return nullptr;
}

bool find_functions(void* library, Interface& calls) {
  bool all = true;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    all = all && function != nullptr;
  };
  find(calls.version, "nvrtcVersion");
  find(calls.architecture_count, "nvrtcGetNumSupportedArchs");
  find(calls.architectures, "nvrtcGetSupportedArchs");
  find(calls.create, "nvrtcCreateProgram");
  find(calls.destroy, "nvrtcDestroyProgram");
  find(calls.compile, "nvrtcCompileProgram");
  find(calls.code_size, "nvrtcGetCUBINSize");
  find(calls.code, "nvrtcGetCUBIN");
  find(calls.ptx_size, "nvrtcGetPTXSize");
  find(calls.ptx, "nvrtcGetPTX");
  find(calls.log_size, "nvrtcGetProgramLogSize");
  find(calls.log, "nvrtcGetProgramLog");
  find(calls.error, "nvrtcGetErrorString");
  return all;
}

Result<Loaded> load() {
  const char* wanted = std::getenv("ONNXOPT_NVRTC");
  if (wanted != nullptr && *wanted == '\0') wanted = nullptr;
  if (wanted != nullptr && std::string_view(wanted) == "off") return Result<Loaded>::failure("ONNXOPT_NVRTC is off.");
  std::string sentence;
  void* library = open_library(wanted, sentence);
  if (library == nullptr) return Result<Loaded>::failure(sentence);
  Loaded loaded;
  Compiler& compiler = loaded.compiler;
  int count = 0;
  if (!find_functions(library, loaded.calls) || loaded.calls.version(&compiler.major, &compiler.minor) != 0 ||
      loaded.calls.architecture_count(&count) != 0)
    return Result<Loaded>::failure("The NVRTC that was found is older than 11.2.");
  compiler.architectures.resize(static_cast<std::size_t>(count));
  if (loaded.calls.architectures(compiler.architectures.data()) != 0)
    return Result<Loaded>::failure("NVRTC does not tell what it compiles for.");
  return loaded;
}

/// The library stays loaded as long as the process.
const Result<Loaded>& loaded() {
  static const Result<Loaded> instance = load();
  return instance;
}

std::string version_of(const Compiler& compiler) { return std::to_string(compiler.major) + "." + std::to_string(compiler.minor); }

std::string option_of(const Target& target) {
  return (target.machine_code ? "--gpu-architecture=sm_" : "--gpu-architecture=compute_") + std::to_string(target.architecture);
}

/// All that the result depends on.
std::string key_of(const std::string& source, std::span<const SourceFile> headers, const Target& target, const Compiler& compiler) {
  std::string key = "NVRTC " + version_of(compiler) + " " + option_of(target);
  for (const char* option : kOptions) key.append(" ").append(option);
  for (const SourceFile& file : kStandard) key.append("\n").append(file.text);
  for (const SourceFile& file : headers) key.append("\n").append(file.name).append("\n").append(file.text);
  return key.append("\n").append(source);
}

/// A program of NVRTC.
class Compilation {
 public:
  explicit Compilation(const Interface& calls) : calls_(calls) {}
  Compilation(const Compilation&) = delete;
  Compilation& operator=(const Compilation&) = delete;
  ~Compilation() {
    if (program_ != nullptr) calls_.destroy(&program_);
  }

  Result<std::string> run(const std::string& source, std::span<const SourceFile> headers, const Target& target) {
    std::vector<const char*> texts, names;
    for (const auto& files : {std::span<const SourceFile>(kStandard), headers})
      for (const SourceFile& file : files) {
        texts.push_back(file.text);
        names.push_back(file.name);
      }
    int status =
        calls_.create(&program_, source.c_str(), "expression.cu", static_cast<int>(names.size()), texts.data(), names.data());
    if (status != 0) return failure(status);
    const std::string architecture = option_of(target);
    std::vector<const char*> options(std::begin(kOptions), std::end(kOptions));
    options.push_back(architecture.c_str());
    status = calls_.compile(program_, static_cast<int>(options.size()), options.data());
    if (status != 0) return failure(status);
    return target.machine_code ? text(calls_.code_size, calls_.code) : text(calls_.ptx_size, calls_.ptx);
  }

 private:
  Result<std::string> text(int (*size_of)(Program, std::size_t*), int (*get)(Program, char*)) {
    std::size_t size = 0;
    int status = size_of(program_, &size);
    std::string bytes(size, '\0');
    if (status == 0) status = get(program_, bytes.data());
    return status == 0 ? Result<std::string>(std::move(bytes)) : failure(status);
  }

  Result<std::string> failure(int status) {
    std::string log;
    std::size_t size = 0;
    if (program_ != nullptr && calls_.log_size(program_, &size) == 0 && size > 1) {
      log.assign(size, '\0');
      calls_.log(program_, log.data());
      log = ": " + log.substr(0, log.find('\n'));
    }
    return Result<std::string>::failure(std::string("NVRTC cannot compile: ") + calls_.error(status) + log + ".");
  }

  const Interface& calls_;
  Program program_ = nullptr;
};

}  // namespace

Result<Compiler> compiler() {
  return loaded() ? Result<Compiler>(loaded()->compiler) : Result<Compiler>::failure(loaded().error());
}

Result<Target> target_for(const Compiler& compiler, int capability, int most) {
  const int wanted = std::min(capability, most);
  int best = 0;
  for (const int architecture : compiler.architectures)
    if (architecture <= wanted) best = std::max(best, architecture);
  if (best < kOldest)
    return Result<Target>::failure("NVRTC " + version_of(compiler) + " compiles nothing for sm_" + std::to_string(wanted) + ".");
  return Target{best, best == capability};
}

Result<std::string> compile(const std::string& source, std::span<const SourceFile> headers, const Target& target) {
  if (!loaded()) return Result<std::string>::failure(loaded().error());
  const std::optional<Cache> cache = Cache::of_user();
  const std::string key = key_of(source, headers, target, loaded()->compiler);
  if (cache)
    if (std::optional<std::string> kept = cache->find(key)) return std::move(*kept);
  Result<std::string> made = Compilation(loaded()->calls).run(source, headers, target);
  if (made && cache) cache->keep(key, *made);
  return made;
}

}  // namespace onnxopt::cuda::nvrtc
