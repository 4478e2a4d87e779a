#include "kernels/cuda/launcher.h"
#include "kernels/cuda/qgemm/products.cuh"

namespace onnxopt::qgemm::cuda {

const onnxopt::cuda::Kernels<Problem>& kernels() { return onnxopt::cuda::kernels_of<Family>(); }

}  // namespace onnxopt::qgemm::cuda
