#include <algorithm>

#include "kernels/cuda/gemm/products.cuh"

namespace onnxopt::gemm::cuda {

namespace {

/// Fewer blocks than large problems have, so that a block takes several tiles.
constexpr std::int64_t kMostBlocks = 3;

struct OnHost {
  template <int P, class L, class Code>
  Result<bool> operator()(const Products<Code>& products, const Launch& launch) const {
    const auto blocks = static_cast<unsigned>(std::min(launch.tiles, kMostBlocks));
    return simt::launch({blocks}, {kThreads}, launch.shared_bytes, [&] { multiply_packed<P, L>(products); });
  }
};

}  // namespace

Result<bool> emulate(const Problem& problem) { return with_products(problem, OnHost{}); }

}  // namespace onnxopt::gemm::cuda
