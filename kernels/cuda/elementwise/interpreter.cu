#include "kernels/cuda/elementwise/elementwise.h"
#include "kernels/cuda/elementwise/pack.h"
#include "kernels/cuda/runtime.h"

namespace onnxopt::elementwise::cuda {

namespace {

using onnxopt::cuda::check;

template <class L, class Code>
__global__ void __launch_bounds__(kThreads) interpret(const __grid_constant__ Code code) {
  extern __shared__ Chunk<16> memory[];
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  run_thread(code, Slots<L>{memory, threadIdx.x, blockDim.x}, thread, static_cast<std::int64_t>(gridDim.x) * blockDim.x);
}

struct Launch {
  cudaStream_t stream;

  template <class L, class Code>
  Result<bool> operator()(const Code& code, unsigned threads) const {
    if (code.elements == 0) return true;
    const std::int64_t block = static_cast<std::int64_t>(threads) * L::kCount;
    return onnxopt::cuda::start(interpret<L, Code>, code, (code.elements + block - 1) / block, threads,
                                code.slot_count * sizeof(L) * threads, stream);
  }
};

Result<bool> run(const Program& program, const Arguments& arguments, void* stream) {
  const Launch launch{static_cast<cudaStream_t>(stream)};
  return for_each_plan(program, arguments, [&](const Plan& plan) { return with_code(program, plan, launch); });
}

std::string problem() {
  int count = 0, driver = 0;
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) return "This machine has no NVIDIA driver.";
  if (const Result<bool> counted = check(cudaGetDeviceCount(&count), "find a device"); !counted) return counted.error();
  if (count == 0) return "This machine has no CUDA device.";
  int device = 0, major = 0, minor = 0;
  Result<bool> done = check(cudaGetDevice(&device), "tell the current device");
  if (done) done = check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "describe the device");
  if (done) done = check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "describe the device");
  if (!done) return done.error();
  if (major < 8)
    return "The CUDA device has compute capability " + std::to_string(major) + "." + std::to_string(minor) +
           "; the kernels need 8.0 or newer.";
  return {};
}

struct Load {
  template <class L, class Code>
  Result<bool> operator()() const {
    return onnxopt::cuda::load(interpret<L, Code>);
  }
};

Result<bool> prepare() { return for_each_form(Load{}); }

}  // namespace

const Interpreter& interpreter() {
  static constexpr Interpreter instance{problem, prepare, run};
  return instance;
}

}  // namespace onnxopt::elementwise::cuda
