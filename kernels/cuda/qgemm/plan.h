// From a problem to one launch: the tiles of a block and the kernel's parameter.
#pragma once

#include "kernels/cuda/gemm/forms.h"
#include "kernels/cuda/qgemm/qgemm.h"

namespace onnxopt::qgemm::cuda {

namespace ew = elementwise::cuda;
using gemm::cuda::Launch;
using gemm::cuda::NoProgram;

constexpr int kThreads = gemm::cuda::kTensorThreads;

/// The kernel's parameter.
template <class Code>
struct Products {
  Problem problem;     // of which the epilogue is not read
  bool vectors;        // four neighbouring columns are aligned, in what is read and what is written
  unsigned finishing;  // threads that finish results at once, each with slots for the program
  Code epilogue;
};

/// Scales and zero points of a tile's rows lie in front of all other shared memory.
template <class T>
struct alignas(16) Rows {
  float scales[T::kRows];
  std::int32_t zeros[T::kRows];
};

/// Fills in the parameter; false when the program does not fit.
template <class T, class L, class Code>
bool fill(const Problem& problem, const ew::Planned* epilogue, Products<Code>& products, Launch& launch);

/// Whether four neighbouring columns are read and written together.
bool takes_vectors(const Problem& problem);

/// Calls `use.template operator()<T, L>(products, launch)` with the best form that the problem fits into, for a device of so many
/// multiprocessors.
template <class Use>
Result<bool> with_products(const Problem& problem, int processors, const Use& use) {
  return ew::with_planned(problem.epilogue, {1, problem.bytes == nullptr}, [&](const ew::Planned* epilogue) {
    const gemm::cuda::Choice choice{problem.rows, problem.columns, 1, processors, takes_vectors(problem)};
    return gemm::cuda::with_tensor_form(choice, epilogue, [&]<class T, class L, class Code>() -> std::optional<Result<bool>> {
      Launch launch;
      const auto products = std::make_unique<Products<Code>>();
      if (!fill<T, L>(problem, epilogue, *products, launch)) return std::nullopt;
      return use.template operator()<T, L>(*products, launch);
    });
  });
}

}  // namespace onnxopt::qgemm::cuda
