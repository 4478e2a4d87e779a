// Calls of CUDA's runtime whose return codes become sentences, for `.cu` files.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/copies.h"
#include "kernels/cuda/elementwise/pack.h"
#include "kernels/cuda/launch.h"

namespace onnxopt::cuda {

/// Blocks per multiprocessor: enough to fill it several times over, so that the last ones to finish do not keep it waiting.
constexpr std::int64_t kBlocksPerProcessor = 32;

/// Success, or a sentence about what failed.
Result<bool> check(cudaError_t status, const char* what);

/// Multiprocessors of the current device.
Result<int> processors();

/// The compute capability of the current device: 90 is 9.0.
Result<int> capability();

/// Lets blocks of a kernel have more shared memory than they have without asking.
Result<bool> grant(const void* kernel, std::size_t shared_bytes);

/// Loads a kernel.
template <class Parameter>
Result<bool> load(void (*kernel)(Parameter)) {
  cudaFuncAttributes attributes;
  return check(cudaFuncGetAttributes(&attributes, kernel), "load the kernels");
}

/// Starts a kernel that shares its work between as many blocks as there are, on a device of so many multiprocessors.
template <class Parameter, class Value>
Result<bool> start(void (*kernel)(Parameter), const Value& parameter, const Launch& launch, int processors, cudaStream_t stream) {
  const Result<bool> granted = grant(reinterpret_cast<const void*>(kernel), launch.shared_bytes);
  if (!granted) return granted;
  const auto blocks = static_cast<unsigned>(std::min(launch.blocks, processors * kBlocksPerProcessor));
  void* parameters[] = {const_cast<Value*>(&parameter)};  // which are only read
  return check(cudaLaunchKernel(kernel, dim3(blocks), dim3(launch.threads), parameters, launch.shared_bytes, stream),
               "start the kernel");
}

}  // namespace onnxopt::cuda
