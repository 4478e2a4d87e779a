#include <vector>

#include "kernels/cuda/memory.h"
#include "kernels/cuda/runtime.h"

namespace onnxopt::cuda {

Result<Memory> allocate(std::size_t bytes) {
  void* memory = nullptr;
  if (const Result<bool> done = check(cudaMalloc(&memory, std::max<std::size_t>(bytes, 1)), "allocate memory"); !done)
    return Result<Memory>::failure(done.error());
  return Memory(memory);
}

Result<Memory> copy_of(const Source& source) {
  Result<Memory> memory = allocate(source.bytes);
  if (!memory) return memory;
  const auto copied = check(cudaMemcpy(memory->get(), source.data, source.bytes, cudaMemcpyHostToDevice), "copy an input");
  return copied ? std::move(memory) : Result<Memory>::failure(copied.error());
}

Result<bool> check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return true;
  return Result<bool>::failure(std::string("CUDA cannot ") + what + ": " + cudaGetErrorString(status) + " (" +
                               cudaGetErrorName(status) + ").");
}

Result<int> processors() {
  int device = 0, count = 0;
  Result<bool> done = check(cudaGetDevice(&device), "tell the current device");
  if (done) done = check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "describe the current device");
  return done ? Result<int>(count) : Result<int>::failure(done.error());
}

Result<int> capability() {
  int device = 0, major = 0, minor = 0;
  Result<bool> done = check(cudaGetDevice(&device), "tell the current device");
  if (done) done = check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "describe the current device");
  if (done) done = check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "describe the current device");
  return done ? Result<int>(10 * major + minor) : Result<int>::failure(done.error());
}

Result<bool> grant(const void* kernel, std::size_t shared_bytes) {
  if (shared_bytes <= elementwise::cuda::kSharedBytes) return true;
  return check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
               "give a block the shared memory that the expression needs");
}

Result<bool> run_on_copies(std::span<const Source> sources, std::span<const Target> targets, const Start& start) {
  std::vector<Memory> memories;
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
  for (const Source& source : sources) {
    Result<Memory> memory = copy_of(source);
    if (!memory) return Result<bool>::failure(memory.error());
    inputs.push_back(memory->get());
    memories.push_back(std::move(*memory));
  }
  for (const Target& target : targets) {
    Result<Memory> memory = allocate(target.bytes);
    if (!memory) return Result<bool>::failure(memory.error());
    outputs.push_back(memory->get());
    memories.push_back(std::move(*memory));
  }
  if (const Result<bool> started = start(inputs, outputs, cudaStreamPerThread); !started) return started;
  if (const auto finished = check(cudaStreamSynchronize(cudaStreamPerThread), "finish the kernel"); !finished) return finished;
  for (std::size_t i = 0; i < targets.size(); ++i) {
    const auto copied = check(cudaMemcpy(targets[i].data, outputs[i], targets[i].bytes, cudaMemcpyDeviceToHost), "copy an output");
    if (!copied) return copied;
  }
  return true;
}

}  // namespace onnxopt::cuda
