// The kernel variants that a tuning file chooses.
#pragma once

#include <string>
#include <string_view>

#include "kernels/cpu/common.h"

namespace onnxopt::dispatch {

/// The variant that the file of ONNXOPT_TUNING names for an op; empty where it names none, or no file is set. A file that cannot be
/// read is a failure. Only the table `[variants]` is read, of lines `Op = "variant"`; the rest is for the optimizer.
Result<std::string> tuned_variant(std::string_view op);

}  // namespace onnxopt::dispatch
