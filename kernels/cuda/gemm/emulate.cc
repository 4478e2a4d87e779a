#include <algorithm>

#include "kernels/cuda/gemm/products.cuh"
#include "kernels/cuda/gemm/tensor_products.cuh"

namespace onnxopt::gemm::cuda {

namespace {

/// Fewer blocks than large problems have, so that a block takes several tiles; and so few multiprocessors that large tiles are
/// used.
constexpr std::int64_t kMostBlocks = 3;
constexpr int kProcessors = 3;

unsigned blocks_of(const Launch& launch) { return static_cast<unsigned>(std::min(launch.tiles, kMostBlocks)); }

struct OnHost {
  template <int P, class L, class Code>
  Result<bool> operator()(const Products<Code>& products, const Launch& launch) const {
    return simt::launch({blocks_of(launch)}, {kThreads}, launch.shared_bytes, [&] { multiply_packed<P, L>(products); });
  }

  template <int W, class T, class L, class Code>
  Result<bool> operator()(const TensorProducts<Code>& products, const Launch& launch) const {
    return simt::launch({blocks_of(launch)}, {kTensorThreads}, launch.shared_bytes, [&] { multiply_tensors<W, T, L>(products); });
  }
};

}  // namespace

Result<bool> emulate(const Problem& problem) {
  return problem.precision == Precision::kFloat ? with_products(problem, OnHost{})
                                                : with_tensor_products(problem, kProcessors, OnHost{});
}

}  // namespace onnxopt::gemm::cuda
