// From a problem for tensor cores to one launch: the tiles of a block and the kernel's parameter.
#pragma once

#include "kernels/cuda/gemm/forms.h"
#include "kernels/cuda/gemm/gemm.h"

namespace onnxopt::gemm::cuda {

/// The kernel's parameter.
template <class Code>
struct TensorProducts {
  Problem problem;     // of which the epilogue is not read
  int count, share;    // products, and columns of each in a tile
  bool vectors;        // four neighbouring columns are aligned, in what is read and what is written
  unsigned finishing;  // threads that finish results at once, each with slots for the program
  Code epilogue;
};

/// Bytes of an element.
constexpr int element_bytes(Precision precision) { return precision == Precision::kFloat || precision == Precision::kTf32 ? 4 : 2; }

/// Fills in the parameter; false when the program does not fit. `W` are the bytes of an element.
template <int W, class T, class L, class Code>
bool fill_tensor(const Problem& problem, const ew::Planned* epilogue, TensorProducts<Code>& products, Launch& launch);

/// Whether four neighbouring columns are read and written together.
bool takes_tensor_vectors(const Problem& problem);

template <int W, class Use>
Result<bool> with_elements(const Problem& problem, int processors, const ew::Planned* epilogue, const Use& use) {
  const Choice choice{problem.rows, problem.columns, static_cast<int>(problem.product_count), processors,
                      takes_tensor_vectors(problem)};
  return with_tensor_form(choice, epilogue, [&]<class T, class L, class Code>() -> std::optional<Result<bool>> {
    Launch launch;
    const auto products = std::make_unique<TensorProducts<Code>>();
    if (!fill_tensor<W, T, L>(problem, epilogue, *products, launch)) return std::nullopt;
    return use.template operator()<W, T, L>(*products, launch);
  });
}

/// Calls `use.template operator()<W, T, L>(products, launch)` with the best form that the problem fits into, for a device of so
/// many multiprocessors.
template <class Use>
Result<bool> with_tensor_products(const Problem& problem, int processors, const Use& use) {
  return ew::with_planned(problem.epilogue, {problem.product_count, true}, [&](const ew::Planned* epilogue) {
    return element_bytes(problem.precision) == 2 ? with_elements<2>(problem, processors, epilogue, use)
                                                 : with_elements<4>(problem, processors, epilogue, use);
  });
}

}  // namespace onnxopt::gemm::cuda
