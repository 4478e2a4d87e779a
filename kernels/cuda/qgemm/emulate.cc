#include "kernels/cuda/simt/emulate.h"

#include "kernels/cuda/qgemm/products.cuh"

namespace onnxopt::qgemm::cuda {

Result<bool> emulate(const Problem& problem) { return simt::emulate<Family>(problem); }

}  // namespace onnxopt::qgemm::cuda
