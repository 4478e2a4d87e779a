#include "kernels/cuda/simt/emulate.h"

#include "kernels/cuda/norm/rows.cuh"

namespace onnxopt::norm::cuda {

Result<bool> emulate(const Problem& problem) { return simt::emulate<Family>(problem); }

}  // namespace onnxopt::norm::cuda
