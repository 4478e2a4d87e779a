// Convolution of quantized channels-last tensors on a CUDA device; see kernels/cpu/qconv/qconv.h. Sums are the same integers, and
// what is made of them without a further expression has the same bits.
#pragma once

#include "kernels/cpu/qconv/qconv.h"
#include "kernels/cuda/elementwise/embedded.h"
#include "kernels/cuda/launch.h"

namespace onnxopt::qconv::cuda {

/// Numbers, or bytes with a scale and a zero point in memory of the device.
struct Tensor {
  const void* data = nullptr;
  Type type = Type::kNone;
  const float* scale = nullptr;
  const void* zero = nullptr;
};

struct Problem {
  conv::Geometry geometry;
  Tensor x;  // bytes
  const std::int8_t* weights = nullptr;
  const float* weight_scales = nullptr;  // [filters]
  const std::int32_t* sums = nullptr;    // [filters], of the weights
  const float* bias = nullptr;           // [filters], or null
  void* y = nullptr;
  Tensor result;   // the type of y, and how it is quantized
  Tensor rounded;  // what results are quantized to before something is added
  Tensor added;    // of the shape of y
  bool clipped = false, gated = false;
  gemm::Bounds clip{};                                 // of the sum
  gemm::Gate gate{};                                   // where it is not clipped
  const elementwise::cuda::Bound* epilogue = nullptr;  // where neither is done; its first input is the result
};

const onnxopt::cuda::Kernels<Problem>& kernels();

/// Runs the kernel on the host, a fiber for each thread, on tensors of the host.
Result<bool> emulate(const Problem& problem);

}  // namespace onnxopt::qconv::cuda
