#include "kernels/cuda/launcher.h"
#include "kernels/cuda/norm/rows.cuh"

namespace onnxopt::norm::cuda {

const onnxopt::cuda::Kernels<Problem>& kernels() { return onnxopt::cuda::kernels_of<Family>(); }

}  // namespace onnxopt::norm::cuda
