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

struct OnDevice {
  int processors;
  cudaStream_t stream;

  template <class L, class Code>
  Result<bool> operator()(const Code& code, unsigned threads) const {
    if (code.elements == 0) return true;
    const std::int64_t block = static_cast<std::int64_t>(threads) * L::kCount;
    const onnxopt::cuda::Launch launch{(code.elements + block - 1) / block, threads, code.slot_count * sizeof(L) * threads};
    return onnxopt::cuda::start(interpret<L, Code>, code, launch, processors, stream);
  }
};

Result<bool> run_plan(const Program& program, const Plan& plan, void* stream) {
  const Result<int> processors = onnxopt::cuda::processors();
  if (!processors) return Result<bool>::failure(processors.error());
  return with_code(program, plan, OnDevice{*processors, static_cast<cudaStream_t>(stream)});
}

std::string problem() {
  int count = 0, driver = 0;
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) return "This machine has no NVIDIA driver.";
  if (const Result<bool> counted = check(cudaGetDeviceCount(&count), "find a device"); !counted) return counted.error();
  if (count == 0) return "This machine has no CUDA device.";
  const Result<int> capability = onnxopt::cuda::capability();
  if (!capability) return capability.error();
  if (*capability < 80)
    return "The CUDA device has compute capability " + std::to_string(*capability / 10) + "." + std::to_string(*capability % 10) +
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
  static constexpr Interpreter instance{problem, onnxopt::cuda::capability, prepare, run_plan};
  return instance;
}

}  // namespace onnxopt::elementwise::cuda
