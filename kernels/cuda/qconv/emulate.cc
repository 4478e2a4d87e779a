#include "kernels/cuda/simt/emulate.h"

#include "kernels/cuda/qconv/windows.cuh"

namespace onnxopt::qconv::cuda {

Result<bool> emulate(const Problem& problem) { return simt::emulate<Family>(problem); }

}  // namespace onnxopt::qconv::cuda
