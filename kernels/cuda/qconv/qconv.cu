#include "kernels/cuda/launcher.h"
#include "kernels/cuda/qconv/windows.cuh"

namespace onnxopt::qconv::cuda {

const onnxopt::cuda::Kernels<Problem>& kernels() { return onnxopt::cuda::kernels_of<Family>(); }

}  // namespace onnxopt::qconv::cuda
