#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/halves.cuh"
#include "kernels/cuda/attention/tiles.cuh"
#include "kernels/cuda/launcher.h"

namespace onnxopt::attention::cuda {

const onnxopt::cuda::Kernels<Problem>& kernels() { return onnxopt::cuda::kernels_of<Family>(); }

const onnxopt::cuda::Kernels<Halves>& half_kernels() { return onnxopt::cuda::kernels_of<HalfFamily>(); }

}  // namespace onnxopt::attention::cuda
