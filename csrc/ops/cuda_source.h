// Expressions as CUDA source, for tests and tools that have no device: what is compiled, what it becomes, and how it is launched.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "csrc/ops/tensor.h"
#include "kernels/cpu/common.h"

namespace onnxopt::ops {

struct CudaLaunch {
  std::size_t source;     // its index
  std::string parameter;  // the bytes of the kernel's parameter
  std::int64_t blocks;
  unsigned threads;
};

struct CudaCompiler {
  int major, minor;                // of NVRTC
  std::vector<int> architectures;  // that it compiles for
};

struct CudaSourceTools {
  /// The sources of an expression: the one of all outputs first.
  Result<std::vector<std::string>> (*sources)(const std::string& expression);
  /// The launches for tensors, of which only the addresses are read. A plan without a source is a failure.
  Result<std::vector<CudaLaunch>> (*launches)(const std::string& expression, std::span<const Tensor> inputs,
                                              std::span<const Tensor> outputs);
  Result<CudaCompiler> (*compiler)();
  /// What NVRTC makes of a source for a device of that compute capability (90 is 9.0), under ONNXOPT_MAX_SM.
  Result<std::string> (*compile)(const std::string& source, int capability);
};

const CudaSourceTools& cuda_source_tools();

}  // namespace onnxopt::ops
