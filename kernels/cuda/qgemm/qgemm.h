// Products of a quantized matrix with packed weights of int8 on a CUDA device; see kernels/cpu/qgemm/qgemm.h. Sums are the same
// integers, and what is made of them without an expression has the same bits.
#pragma once

#include "kernels/cpu/qgemm/qgemm.h"
#include "kernels/cuda/elementwise/embedded.h"
#include "kernels/cuda/launch.h"

namespace onnxopt::qgemm::cuda {

/// A scale and a zero point in memory of the device.
struct Quantization {
  const float* scale = nullptr;
  const void* zero = nullptr;
  bool is_signed = false;  // the zero point, and what is quantized by it
};

struct Problem {
  const void* a = nullptr;  // [rows, depth]
  Source source = Source::kUint8;
  Quantization of_a;  // not of rows over their own ranges
  std::int64_t rows = 0, depth = 0, columns = 0;
  const std::int8_t* weights = nullptr;
  const float* weight_scales = nullptr;  // of the columns
  const std::int32_t* sums = nullptr;    // of the columns of the weights
  const float* bias = nullptr;           // of the columns, or null
  float* c = nullptr;                    // [rows, columns], where there is neither an epilogue nor bytes
  std::uint8_t* bytes = nullptr;         // [rows, columns], the results, or the only one of the epilogue, quantized
  Quantization of_bytes;
  const elementwise::cuda::Bound* epilogue = nullptr;  // its first input is the product
};

const onnxopt::cuda::Kernels<Problem>& kernels();

/// Runs the kernel on the host, a fiber for each thread, on tensors of the host.
Result<bool> emulate(const Problem& problem);

}  // namespace onnxopt::qgemm::cuda
