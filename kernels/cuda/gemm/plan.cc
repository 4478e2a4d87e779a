#include "kernels/cuda/gemm/plan.h"

#include <algorithm>

namespace onnxopt::gemm::cuda {

namespace {

std::int64_t tiles_along(std::int64_t size, std::int64_t tile) { return (size + tile - 1) / tile; }

/// As many threads as have room for their slots behind the tile; a warp may ask for more.
unsigned finishing_threads(std::size_t bytes_of_thread) {
  unsigned threads = kThreads;
  while (threads > 32 && kTileFloats * sizeof(float) + threads * bytes_of_thread > ew::kSharedBytes) threads /= 2;
  return threads;
}

}  // namespace

template <int P, class L, class Code>
bool fill(const Problem& problem, const ew::Planned* epilogue, Products<Code>& products, Launch& launch) {
  if (!pack_epilogue<L>(epilogue, products.epilogue)) return false;
  products.a = static_cast<const float*>(problem.a);
  products.rows = problem.rows;
  products.depth = problem.depth;
  products.columns = problem.columns;
  products.count = static_cast<int>(problem.product_count);
  products.vectors_of_a = problem.depth % 4 == 0 && ew::is_aligned(problem.a);
  products.vectors_of_weights = true;
  for (std::size_t i = 0; i < kMostProducts; ++i) {
    products.weights[i] = static_cast<const float*>(problem.products[i].weights);
    products.bias[i] = static_cast<const float*>(problem.products[i].bias);
    products.c[i] = static_cast<float*>(problem.products[i].c);
    products.vectors_of_weights &= ew::is_aligned(products.weights[i]);
  }
  const std::size_t bytes_of_thread = ew::slots_of(epilogue) * sizeof(L);
  products.finishing = finishing_threads(bytes_of_thread);
  launch = {tiles_along(problem.rows, kTileRows<P>) * tiles_along(problem.columns, kTileColumns), kThreads,
            kTileFloats * sizeof(float) + products.finishing * bytes_of_thread};
  return true;
}

#define ONNXOPT_FORMS(P)                                                                                   \
  template bool fill<P, ew::Usual>(const Problem&, const ew::Planned*, Products<NoProgram>&, Launch&);     \
  template bool fill<P, ew::Any>(const Problem&, const ew::Planned*, Products<NoProgram>&, Launch&);       \
  template bool fill<P, ew::Usual>(const Problem&, const ew::Planned*, Products<ew::SmallCode>&, Launch&); \
  template bool fill<P, ew::Any>(const Problem&, const ew::Planned*, Products<ew::LargeCode>&, Launch&);
ONNXOPT_FORMS(1)
ONNXOPT_FORMS(2)
ONNXOPT_FORMS(4)
#undef ONNXOPT_FORMS

bool takes_vectors(const Problem& problem, const ew::Planned* epilogue) {
  const auto aligned = [](const Factor& one) { return ew::is_aligned(one.c); };
  return problem.columns % ew::Usual::kCount == 0 && !ew::is_wide(epilogue) &&
         std::all_of(problem.products, problem.products + problem.product_count, aligned);
}

}  // namespace onnxopt::gemm::cuda
