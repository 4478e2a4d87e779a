// Every custom op with its kernel variants, as the Python module sees it.
#pragma once

#include <cstddef>

#include "csrc/ops/cuda_source.h"
#include "csrc/ops/device.h"
#include "csrc/ops/op.h"
#include "kernels/cpu/elementwise/elementwise.h"

extern "C" {
struct OnnxOptKernelLibrary;

/// What the function `onnxopt_registry` of the library returns.
struct OnnxOptRegistry {
  std::vector<const onnxopt::ops::Op*> (*all)();
  std::vector<onnxopt::ops::Variant> (*variants)(const onnxopt::ops::Op&);
  onnxopt::Result<onnxopt::ops::Variant> (*choose)(const onnxopt::ops::Op&);
  onnxopt::Result<onnxopt::ops::Variant> (*choose_for_sm)(const onnxopt::ops::Op&, int sm);
  onnxopt::Result<onnxopt::ops::Variant> (*choose_cuda)(const onnxopt::ops::Op&);
  onnxopt::Result<std::unique_ptr<onnxopt::ops::Kernel>> (*create)(const onnxopt::ops::Op&, const onnxopt::ops::Variant&,
                                                                   const onnxopt::ops::Attributes&);
  std::string (*problem_of)(const onnxopt::ops::Variant&);
  std::string (*cuda_problem)();
  onnxopt::Result<bool> (*add)(const OnnxOptKernelLibrary&);
  const onnxopt::elementwise::OpInfo* elementwise_ops;
  std::size_t elementwise_op_count;
  const onnxopt::ops::CudaSourceTools* cuda_source;
  /// Both are null in a build without CUDA kernels.
  onnxopt::Result<onnxopt::cuda::Limits> (*device_limits)();
  decltype(&onnxopt::ops::time_on_device) time_on_device;
};
}
