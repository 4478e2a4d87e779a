#include "kernels/cuda/qgemm/products.cuh"

namespace onnxopt::qgemm::cuda {

namespace {

struct OnHost {
  template <class T, class L, class Code>
  Result<bool> operator()(const Products<Code>& products, const Launch& launch) const {
    return simt::launch_few(launch.tiles, kThreads, launch.shared_bytes, [&] { multiply_bytes<T, L>(products); });
  }
};

}  // namespace

Result<bool> emulate(const Problem& problem) { return with_products(problem, simt::kProcessors, OnHost{}); }

}  // namespace onnxopt::qgemm::cuda
