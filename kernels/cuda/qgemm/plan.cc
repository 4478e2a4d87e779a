#include "kernels/cuda/qgemm/plan.h"

namespace onnxopt::qgemm::cuda {

using gemm::cuda::Large;
using gemm::cuda::Small;

template <class T, class L, class Code>
bool fill(const Problem& problem, const ew::Planned* epilogue, Products<Code>& products, Launch& launch) {
  if (!gemm::cuda::pack_epilogue<L>(epilogue, products.epilogue)) return false;
  products.problem = problem;
  products.problem.epilogue = nullptr;  // it is in memory of the host
  products.vectors = takes_vectors(problem);
  const gemm::cuda::Finish finish = gemm::cuda::finish_of<T, kGroup>(ew::slots_of(epilogue) * sizeof(L));
  products.finishing = finish.threads;
  launch = {gemm::cuda::tiles_of<T>(problem.rows, problem.columns, 1), kThreads, sizeof(Rows<T>) + finish.shared_bytes};
  return true;
}

template bool fill<Large, ew::Usual>(const Problem&, const ew::Planned*, Products<NoProgram>&, Launch&);
template bool fill<Small, ew::Usual>(const Problem&, const ew::Planned*, Products<NoProgram>&, Launch&);
template bool fill<Large, ew::Usual>(const Problem&, const ew::Planned*, Products<ew::SmallCode>&, Launch&);
template bool fill<Small, ew::Usual>(const Problem&, const ew::Planned*, Products<ew::SmallCode>&, Launch&);
template bool fill<Small, ew::Any>(const Problem&, const ew::Planned*, Products<ew::LargeCode>&, Launch&);

bool takes_vectors(const Problem& problem) {
  const void* const read[] = {problem.weight_scales, problem.sums, problem.bias, problem.c};
  return problem.columns % ew::Usual::kCount == 0 && std::all_of(std::begin(read), std::end(read), ew::is_aligned) &&
         reinterpret_cast<std::uintptr_t>(problem.bytes) % ew::Usual::kCount == 0;
}

}  // namespace onnxopt::qgemm::cuda
