// What the source of a kernel is written with. It is compiled for a device, and for the host with the fibers of `simt.h`. As for
// files of instruction sets, nothing of it may be shared between the two: a kernel lies in an unnamed namespace.
#pragma once

#include "kernels/cuda/elementwise/evaluate.h"

#if defined(__CUDACC__)
#define ONNXOPT_IN_KERNEL __device__ __forceinline__
#else
#include "kernels/cuda/simt/simt.h"
#define ONNXOPT_IN_KERNEL inline
#endif

namespace onnxopt {
namespace {

/// The block's dynamic shared memory.
ONNXOPT_IN_KERNEL void* shared_memory() {
#if defined(__CUDACC__)
  extern __shared__ elementwise::cuda::Chunk<16> memory[];
  return memory;
#else
  return simt::self().shared;
#endif
}

}  // namespace
}  // namespace onnxopt
