#include <cuda_runtime.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "kernels/cuda/elementwise/elementwise.h"
#include "kernels/cuda/elementwise/pack.h"

namespace onnxopt::elementwise::cuda {

namespace {

/// Blocks per multiprocessor: enough to fill it several times over, so that the last ones to finish do not keep it waiting.
constexpr std::int64_t kBlocksPerProcessor = 32;

template <class L, class Code>
__global__ void __launch_bounds__(kThreads) interpret(const __grid_constant__ Code code) {
  extern __shared__ Chunk<16> memory[];
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  run_thread(code, Slots<L>{memory, threadIdx.x, blockDim.x}, thread, static_cast<std::int64_t>(gridDim.x) * blockDim.x);
}

/// Success, or a sentence about what failed.
Result<bool> check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return true;
  return Result<bool>::failure(std::string("CUDA cannot ") + what + ": " + cudaGetErrorString(status) + " (" +
                               cudaGetErrorName(status) + ").");
}

/// Multiprocessors of the current device.
Result<int> processors() {
  int device = 0, count = 0;
  Result<bool> done = check(cudaGetDevice(&device), "tell the current device");
  if (done) done = check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "describe the current device");
  return done ? Result<int>(count) : Result<int>::failure(done.error());
}

struct Launch {
  cudaStream_t stream;

  template <class L, class Code>
  Result<bool> operator()(const Code& code, unsigned threads) const {
    if (code.elements == 0) return true;
    const Result<int> available = processors();
    if (!available) return Result<bool>::failure(available.error());
    auto* kernel = interpret<L, Code>;
    const std::size_t shared = code.slot_count * sizeof(L) * threads;
    if (shared > kSharedBytes) {
      const Result<bool> granted =
          check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
                "give a block the shared memory that the expression needs");
      if (!granted) return granted;
    }
    const std::int64_t block = static_cast<std::int64_t>(threads) * L::kCount;
    const std::int64_t blocks = std::min((code.elements + block - 1) / block, *available * kBlocksPerProcessor);
    void* parameters[] = {const_cast<Code*>(&code)};  // which are only read
    return check(cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(threads), parameters, shared, stream),
                 "start the kernel");
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
    cudaFuncAttributes attributes;
    return check(cudaFuncGetAttributes(&attributes, interpret<L, Code>), "load the kernels");
  }
};

Result<bool> prepare() { return for_each_form(Load{}); }

/// Memory of the device for one tensor.
struct Free {
  void operator()(void* memory) const { cudaFree(memory); }
};
using Memory = std::unique_ptr<void, Free>;

Result<Memory> allocate(std::size_t bytes) {
  void* memory = nullptr;
  if (const Result<bool> done = check(cudaMalloc(&memory, std::max<std::size_t>(bytes, 1)), "allocate memory"); !done)
    return Result<Memory>::failure(done.error());
  return Memory(memory);
}

std::size_t bytes_of(std::span<const std::int64_t> shape, DType type) {
  std::size_t bytes = size_of(type);
  for (std::int64_t dim : shape) bytes *= static_cast<std::size_t>(dim);
  return bytes;
}

Result<bool> run_on_copies(const Program& program, const Arguments& arguments) {
  std::vector<Memory> memories;
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
  for (std::size_t i = 0; i < arguments.inputs.size(); ++i) {
    const std::size_t bytes = bytes_of(arguments.input_shapes[i], program.inputs()[i]);
    Result<Memory> memory = allocate(bytes);
    if (!memory) return Result<bool>::failure(memory.error());
    const auto copied = check(cudaMemcpy(memory->get(), arguments.inputs[i], bytes, cudaMemcpyHostToDevice), "copy an input");
    if (!copied) return copied;
    inputs.push_back(memory->get());
    memories.push_back(std::move(*memory));
  }
  for (std::size_t i = 0; i < arguments.outputs.size(); ++i) {
    Result<Memory> memory = allocate(bytes_of(arguments.output_shapes[i], program.outputs()[i]));
    if (!memory) return Result<bool>::failure(memory.error());
    outputs.push_back(memory->get());
    memories.push_back(std::move(*memory));
  }
  const Result<bool> started =
      run(program, {inputs, arguments.input_shapes, outputs, arguments.output_shapes}, cudaStreamPerThread);
  if (!started) return started;
  if (const auto finished = check(cudaStreamSynchronize(cudaStreamPerThread), "finish the kernel"); !finished) return finished;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const std::size_t bytes = bytes_of(arguments.output_shapes[i], program.outputs()[i]);
    const auto copied = check(cudaMemcpy(arguments.outputs[i], outputs[i], bytes, cudaMemcpyDeviceToHost), "copy an output");
    if (!copied) return copied;
  }
  return true;
}

}  // namespace

const Interpreter& interpreter() {
  static constexpr Interpreter instance{problem, prepare, run, run_on_copies};
  return instance;
}

}  // namespace onnxopt::elementwise::cuda
