// Which kernel variants a CUDA device runs.
#pragma once

#include <optional>
#include <string_view>

#include "kernels/cpu/common.h"

namespace onnxopt::dispatch {

/// The oldest architecture that has kernels.
constexpr int kOldestSm = 80;

/// The architecture that a variant's instruction set needs: 90 for "sm_90", the oldest one for "cuda"; nothing for a processor's.
std::optional<int> sm_of(std::string_view isa);

/// The value of ONNXOPT_MAX_SM, 90 or sm_90, or more than any architecture. Another value is a failure.
Result<int> max_sm();

}  // namespace onnxopt::dispatch
