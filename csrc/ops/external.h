// Kernels of the user's libraries, which are written against python/onnxopt/include/onnxopt/kernel.h.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/ops/op.h"

extern "C" struct OnnxOptKernelLibrary;

namespace onnxopt::ops::external {

/// Makes the kernels of a library known; once is as good as twice. A failure says what is wrong, and then none of them is known. A
/// library is never unloaded.
Result<bool> add(const OnnxOptKernelLibrary& library);

/// The user's own ops, of all libraries or of one.
std::vector<const Op*> ops(const OnnxOptKernelLibrary* library = nullptr);

/// The variants that libraries have of an op.
std::vector<Variant> variants(std::string_view op);

Result<std::unique_ptr<Kernel>> create(const OnnxOptKernel& kernel, const Attributes& attributes);

/// Why a kernel cannot run on this machine; empty when it can.
std::string problem_of(const OnnxOptKernel& kernel);

}  // namespace onnxopt::ops::external
