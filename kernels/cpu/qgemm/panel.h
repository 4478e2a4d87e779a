// How quantized weights lie in memory, for every instruction set.
#pragma once

#include <cstddef>

#include "kernels/cpu/gemm/panel.h"

namespace onnxopt::qgemm {

using gemm::kPanel;

/// Rows of B whose products an instruction sums. A packed matrix of K rows and N columns is [ceil(N / 16), ceil(K / 4), 16, 4],
/// what is missing being zero.
constexpr std::size_t kGroup = 4;

}  // namespace onnxopt::qgemm
