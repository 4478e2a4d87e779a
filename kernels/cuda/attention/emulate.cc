#include "kernels/cuda/simt/emulate.h"

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/halves.cuh"
#include "kernels/cuda/attention/tiles.cuh"

namespace onnxopt::attention::cuda {

Result<bool> emulate(const Problem& problem) { return simt::emulate<Family>(problem); }

Result<bool> emulate(const Halves& problem) { return simt::emulate<HalfFamily>(problem); }

}  // namespace onnxopt::attention::cuda
