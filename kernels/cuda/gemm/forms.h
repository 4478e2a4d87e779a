// The forms of kernels on tensor cores: which tiles, and which expression is part of the kernel.
#pragma once

#include <memory>
#include <optional>
#include <type_traits>

#include "kernels/cuda/elementwise/embedded.h"
#include "kernels/cuda/gemm/tensor.h"
#include "kernels/cuda/launch.h"

namespace onnxopt::gemm::cuda {

namespace ew = elementwise::cuda;
using onnxopt::cuda::Launch;

/// In place of a program.
struct NoProgram {};

/// Fills in a kernel's code; false when the program does not fit into this form.
template <class L, class Code>
bool pack_epilogue(const ew::Planned* planned, Code& code) {
  if constexpr (std::is_same_v<Code, NoProgram>)
    return planned == nullptr;
  else
    return ew::pack_embedded<L>(planned, code);
}

/// Calls `use.template operator()<T, L, Code>()` for every form until one fails. A large program has small tiles, so that there is
/// shared memory for its values.
template <class Big = Large, class Use>
Result<bool> for_each_tensor_form(const Use& use) {
  Result<bool> done = use.template operator()<Big, ew::Usual, NoProgram>();
  if (done) done = use.template operator()<Small, ew::Usual, NoProgram>();
  if (done) done = use.template operator()<Big, ew::Usual, ew::SmallCode>();
  if (done) done = use.template operator()<Small, ew::Usual, ew::SmallCode>();
  if (done) done = use.template operator()<Small, ew::Any, ew::LargeCode>();
  return done;
}

/// What decides about the form of a problem.
struct Choice {
  std::int64_t rows, columns;
  int products, processors;
  bool vectors;  // whether all tensors that the kernel itself reads and writes take vectors of four
};

/// Calls `attempt.template operator()<T, L, Code>()`, which returns nothing where the problem does not fit into the form, with the
/// best ones until one fits.
template <class Big = Large, class Attempt>
Result<bool> with_tensor_form(const Choice& choice, const ew::Planned* epilogue, const Attempt& attempt) {
  const bool large = takes_large_tiles<Big>(choice.rows, choice.columns, choice.products, choice.processors,
                                            ew::slots_of(epilogue) * sizeof(ew::Usual));
  std::optional<Result<bool>> done;
  if (epilogue == nullptr)
    done = large ? attempt.template operator()<Big, ew::Usual, NoProgram>()
                 : attempt.template operator()<Small, ew::Usual, NoProgram>();
  else if (choice.vectors && !ew::is_wide(epilogue))
    done = large ? attempt.template operator()<Big, ew::Usual, ew::SmallCode>()
                 : attempt.template operator()<Small, ew::Usual, ew::SmallCode>();
  if (!done) done = attempt.template operator()<Small, ew::Any, ew::LargeCode>();
  return done ? *done : Result<bool>::failure("Its epilogue is too large for one launch.");
}

}  // namespace onnxopt::gemm::cuda
