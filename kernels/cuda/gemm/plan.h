// From a problem to one launch: the tiles of a block and the kernel's parameter.
#pragma once

#include "kernels/cuda/gemm/forms.h"
#include "kernels/cuda/gemm/gemm.h"

namespace onnxopt::gemm::cuda {

constexpr unsigned kThreads = 256;
constexpr int kTileColumns = 64, kTileDepth = 16;
/// Results of a thread: rows of four neighbouring columns. All tiles have as many results.
constexpr int kRowsOfThread = 8;
constexpr std::size_t kTileFloats = std::size_t{kThreads} * kRowsOfThread * 4;

template <int P>
constexpr int kTileRows = 16 * kRowsOfThread / P;

/// The kernel's parameter.
template <class Code>
struct Products {
  const float* a;
  std::int64_t rows, depth, columns;
  const float *weights[kMostProducts], *bias[kMostProducts];
  float* c[kMostProducts];
  int count;
  bool vectors_of_a, vectors_of_weights;  // four neighbours are aligned
  unsigned finishing;                     // threads that finish results at once, each with slots for the program
  Code epilogue;
};

/// The forms of the kernel, for one, two and up to four products: without a program for vectors and for any columns, with one the
/// same.
template <class Use>
Result<bool> for_each_form(const Use& use) {
  const auto of_count = [&]<int P>(std::integral_constant<int, P>) {
    Result<bool> done = use.template operator()<P, ew::Usual, NoProgram>();
    if (done) done = use.template operator()<P, ew::Any, NoProgram>();
    if (done) done = use.template operator()<P, ew::Usual, ew::SmallCode>();
    if (done) done = use.template operator()<P, ew::Any, ew::LargeCode>();
    return done;
  };
  Result<bool> done = of_count(std::integral_constant<int, 1>{});
  if (done) done = of_count(std::integral_constant<int, 2>{});
  if (done) done = of_count(std::integral_constant<int, 4>{});
  return done;
}

/// Fills in the parameter; false when the program does not fit.
template <int P, class L, class Code>
bool fill(const Problem& problem, const ew::Planned* epilogue, Products<Code>& products, Launch& launch);

/// Whether results are finished four neighbours at a time.
bool takes_vectors(const Problem& problem, const ew::Planned* epilogue);

/// Tries one form: nothing when the problem does not fit into it.
template <int P, class L, class Code, class Use>
std::optional<Result<bool>> try_form(const Problem& problem, const ew::Planned* epilogue, const Use& use) {
  Launch launch;
  const auto products = std::make_unique<Products<Code>>();
  if (!fill<P, L>(problem, epilogue, *products, launch)) return std::nullopt;
  return use.template operator()<P, L>(*products, launch);
}

template <int P, class Use>
std::optional<Result<bool>> try_forms(const Problem& problem, const ew::Planned* epilogue, const Use& use) {
  const bool vectors = takes_vectors(problem, epilogue);
  if (epilogue == nullptr)
    return vectors ? try_form<P, ew::Usual, NoProgram>(problem, epilogue, use)
                   : try_form<P, ew::Any, NoProgram>(problem, epilogue, use);
  std::optional<Result<bool>> done;
  if (vectors) done = try_form<P, ew::Usual, ew::SmallCode>(problem, epilogue, use);
  return done ? done : try_form<P, ew::Any, ew::LargeCode>(problem, epilogue, use);
}

/// Calls `use.template operator()<P, L>(products, launch)` with the best form that the problem fits into.
template <class Use>
Result<bool> with_products(const Problem& problem, const Use& use) {
  return ew::with_planned(problem.epilogue, {problem.product_count, true}, [&](const ew::Planned* epilogue) {
    const auto done = problem.product_count == 1   ? try_forms<1>(problem, epilogue, use)
                      : problem.product_count == 2 ? try_forms<2>(problem, epilogue, use)
                                                   : try_forms<4>(problem, epilogue, use);
    return done ? *done : Result<bool>::failure("Its epilogue is too large for one launch.");
  });
}

}  // namespace onnxopt::gemm::cuda
