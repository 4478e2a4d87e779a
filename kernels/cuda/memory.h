// Memory of the device for one tensor, for `.cu` files of tests and tools.
#pragma once

#include <memory>

#include "kernels/cuda/copies.h"
#include "kernels/cuda/runtime.h"

namespace onnxopt::cuda {

struct Free {
  void operator()(void* memory) const { cudaFree(memory); }
};
using Memory = std::unique_ptr<void, Free>;

Result<Memory> allocate(std::size_t bytes);

/// Memory with what a tensor of the host holds.
Result<Memory> copy_of(const Source& source);

}  // namespace onnxopt::cuda
