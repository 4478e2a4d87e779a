#include "kernels/cuda/gemm/tensor_plan.h"

namespace onnxopt::gemm::cuda {

template <int W, class T, class L, class Code>
bool fill_tensor(const Problem& problem, const ew::Planned* epilogue, TensorProducts<Code>& products, Launch& launch) {
  if (!pack_epilogue<L>(epilogue, products.epilogue)) return false;
  products.problem = problem;
  products.problem.epilogue = nullptr;  // it is in memory of the host
  products.count = static_cast<int>(problem.product_count);
  products.share = share_of<T>(products.count);
  products.vectors = takes_tensor_vectors(problem);
  const Finish finish = finish_of<T, W>(ew::slots_of(epilogue) * sizeof(L));
  products.finishing = finish.threads;
  launch = {tiles_of<T>(problem.rows, problem.columns, products.count), kTensorThreads, finish.shared_bytes};
  return true;
}

#define ONNXOPT_FORMS(W)                                                                                                       \
  template bool fill_tensor<W, Large, ew::Usual>(const Problem&, const ew::Planned*, TensorProducts<NoProgram>&, Launch&);     \
  template bool fill_tensor<W, Small, ew::Usual>(const Problem&, const ew::Planned*, TensorProducts<NoProgram>&, Launch&);     \
  template bool fill_tensor<W, Large, ew::Usual>(const Problem&, const ew::Planned*, TensorProducts<ew::SmallCode>&, Launch&); \
  template bool fill_tensor<W, Small, ew::Usual>(const Problem&, const ew::Planned*, TensorProducts<ew::SmallCode>&, Launch&); \
  template bool fill_tensor<W, Small, ew::Any>(const Problem&, const ew::Planned*, TensorProducts<ew::LargeCode>&, Launch&);
ONNXOPT_FORMS(2)
ONNXOPT_FORMS(4)
#undef ONNXOPT_FORMS

bool takes_tensor_vectors(const Problem& problem) {
  const auto bytes = static_cast<std::uintptr_t>(element_bytes(problem.precision)) * ew::Usual::kCount;
  const auto aligned = [&](const Factor& one) {
    return (reinterpret_cast<std::uintptr_t>(one.c) | reinterpret_cast<std::uintptr_t>(one.bias)) % bytes == 0;
  };
  return problem.columns % ew::Usual::kCount == 0 &&
         std::all_of(problem.products, problem.products + problem.product_count, aligned);
}

}  // namespace onnxopt::gemm::cuda
