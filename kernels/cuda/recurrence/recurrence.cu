#include "kernels/cuda/launcher.h"
#include "kernels/cuda/recurrence/steps.cuh"

namespace onnxopt::recurrence::cuda {

const onnxopt::cuda::Kernels<Problem>& kernels() { return onnxopt::cuda::kernels_of<Family>(); }

}  // namespace onnxopt::recurrence::cuda
