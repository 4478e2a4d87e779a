#include "kernels/cuda/simt/emulate.h"

#include "kernels/cuda/recurrence/steps.cuh"

namespace onnxopt::recurrence::cuda {

Result<bool> emulate(const Problem& problem) { return simt::emulate<Family>(problem); }

}  // namespace onnxopt::recurrence::cuda
