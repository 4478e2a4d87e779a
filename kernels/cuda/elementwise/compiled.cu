#include <cuda.h>
#include <dlfcn.h>

#include "kernels/cuda/elementwise/compiled.h"
#include "kernels/cuda/elementwise/elementwise.h"
#include "kernels/cuda/elementwise/source.h"
#include "kernels/cuda/nvrtc/nvrtc.h"
#include "kernels/cuda/runtime.h"

namespace onnxopt::elementwise::cuda {

namespace {

using onnxopt::cuda::check;
namespace nvrtc = onnxopt::cuda::nvrtc;

/// What is called of the driver; this library is linked to CUDA's runtime alone, which does not load code before its version 12.8.
struct Driver {
  decltype(&cuLibraryLoadData) load;
  decltype(&cuLibraryUnload) unload;
  decltype(&cuLibraryGetKernel) kernel;
  decltype(&cuKernelGetFunction) function;
  decltype(&cuLaunchKernel) launch;
  decltype(&cuGetErrorString) error;
};

Result<Driver> find_driver() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return Result<Driver>::failure("This machine has no NVIDIA driver.");
  Driver driver{};
  bool all = true;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    all = all && function != nullptr;
  };
  find(driver.load, "cuLibraryLoadData");
  find(driver.unload, "cuLibraryUnload");
  find(driver.kernel, "cuLibraryGetKernel");
  find(driver.function, "cuKernelGetFunction");
  find(driver.launch, "cuLaunchKernel");
  find(driver.error, "cuGetErrorString");
  return all ? Result<Driver>(driver) : Result<Driver>::failure("The NVIDIA driver is older than 525, the one of CUDA 12.0.");
}

const Result<Driver>& driver() {
  static const Result<Driver> instance = find_driver();
  return instance;
}

Result<bool> check_driver(CUresult status, const char* what) {
  if (status == CUDA_SUCCESS) return true;
  const char* text = nullptr;
  if (driver()->error(status, &text) != CUDA_SUCCESS || text == nullptr) text = "unknown error";
  return Result<bool>::failure(std::string("The NVIDIA driver cannot ") + what + ": " + text + ".");
}

struct Unload {
  void operator()(CUlibrary library) const { driver()->unload(library); }
};

/// A kernel that was loaded, for all devices.
class Loaded {
 public:
  static Result<Loaded> make(const std::string& image) {
    Loaded loaded;
    CUlibrary library = nullptr;
    Result<bool> done = check_driver(driver()->load(&library, image.data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
                                     "load a compiled expression");
    if (!done) return Result<Loaded>::failure(done.error());
    loaded.library_.reset(library);
    done = check_driver(driver()->kernel(&loaded.kernel_, library, Source::kKernel), "find the kernel of an expression");
    // What is loaded lazily must not be while a graph is captured.
    CUfunction function = nullptr;
    if (done) done = check_driver(driver()->function(&function, loaded.kernel_), "load the kernel of an expression");
    return done ? Result<Loaded>(std::move(loaded)) : Result<Loaded>::failure(done.error());
  }

  Result<bool> start(const SourceLaunch& launch, CUstream stream) const {
    const Result<int> available = onnxopt::cuda::processors();
    if (!available) return Result<bool>::failure(available.error());
    const auto blocks = static_cast<unsigned>(std::min(launch.blocks, *available * onnxopt::cuda::kBlocksPerProcessor));
    void* parameters[] = {const_cast<void*>(launch.parameter)};  // which is only read
    return check_driver(
        driver()->launch(reinterpret_cast<CUfunction>(kernel_), blocks, 1, 1, launch.threads, 1, 1, 0, stream, parameters, nullptr),
        "start the kernel of an expression");
  }

 private:
  std::unique_ptr<CUlib_st, Unload> library_;
  CUkernel kernel_ = nullptr;
};

class CompiledProgram final : public Compiled {
 public:
  static Result<std::unique_ptr<Compiled>> make(const Program& program, int most) {
    using Made = Result<std::unique_ptr<Compiled>>;
    if (!driver()) return Made::failure(driver().error());
    const Result<nvrtc::Compiler> compiler = nvrtc::compiler();
    if (!compiler) return Made::failure(compiler.error());
    const Result<int> capability = onnxopt::cuda::capability();
    if (!capability) return Made::failure(capability.error());
    const Result<nvrtc::Target> target = nvrtc::target_for(*compiler, *capability, most);
    if (!target) return Made::failure(target.error());
    auto made = std::make_unique<CompiledProgram>();
    made->sources_ = sources_of(program);
    for (const Source& source : made->sources_) {
      const Result<std::string> image = nvrtc::compile(source.text, headers(), *target);
      if (!image) return Made::failure(image.error());
      Result<Loaded> loaded = Loaded::make(*image);
      if (!loaded) return Made::failure(loaded.error());
      made->loaded_.push_back(std::move(*loaded));
    }
    return Made(std::move(made));
  }

  std::optional<Result<bool>> run(const Program& program, const Plan& plan, void* stream) const override {
    std::optional<Result<bool>> done;
    with_source(sources_, program, plan, [&](std::size_t index, const SourceLaunch& launch) {
      done = launch.blocks == 0 ? true : loaded_[index].start(launch, static_cast<CUstream>(stream));
    });
    return done;
  }

 private:
  std::vector<Source> sources_;
  std::vector<Loaded> loaded_;
};

}  // namespace

Result<std::unique_ptr<Compiled>> compile(const Program& program, int most) { return CompiledProgram::make(program, most); }

Result<bool> run(const Compiled* compiled, const Program& program, const Arguments& arguments, void* stream) {
  return for_each_plan(program, arguments, [&](const Plan& plan) {
    if (compiled != nullptr)
      if (std::optional<Result<bool>> done = compiled->run(program, plan, stream)) return std::move(*done);
    return interpreter().run_plan(program, plan, stream);
  });
}

}  // namespace onnxopt::elementwise::cuda
