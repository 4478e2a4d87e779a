// A convolution of a run, and the program that is computed of its results.
#pragma once

#include <optional>

#include "csrc/ops/epilogue.h"
#include "kernels/cpu/conv/conv.h"

namespace onnxopt::ops {

/// Lets a convolution compute a program of its raw results, which have one shape: in registers where it can, else by `bound`, which
/// the convolution then points to. `further` are the program's inputs besides the results.
Result<bool> attach(const EpilogueProgram& program, const Shape& raw, std::span<const Tensor> further,
                    std::span<const TensorType> types, std::span<void* const> outputs, conv::Convolution& convolution,
                    std::optional<elementwise::Epilogue>& bound);

/// The same for a program that reads nothing but results which never leave the kernel.
Result<bool> attach_inside(const EpilogueProgram& program, const Shape& raw, conv::Convolution& convolution,
                           std::optional<elementwise::Epilogue>& bound);

/// What is known before the run of the only output of an op with windows and the attribute `filters`.
std::vector<std::optional<InferredType>> infer_filters(const Attributes& attributes, std::span<const InferredType> inputs);

}  // namespace onnxopt::ops
