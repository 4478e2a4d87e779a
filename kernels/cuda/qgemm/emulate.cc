#include <algorithm>

#include "kernels/cuda/qgemm/products.cuh"

namespace onnxopt::qgemm::cuda {

namespace {

/// Fewer blocks than large problems have, so that a block takes several tiles; and so few multiprocessors that large tiles are
/// used.
constexpr std::int64_t kMostBlocks = 3;
constexpr int kProcessors = 3;

struct OnHost {
  template <class T, class L, class Code>
  Result<bool> operator()(const Products<Code>& products, const Launch& launch) const {
    const auto blocks = static_cast<unsigned>(std::min(launch.tiles, kMostBlocks));
    return simt::launch({blocks}, {kThreads}, launch.shared_bytes, [&] { multiply_bytes<T, L>(products); });
  }
};

}  // namespace

Result<bool> emulate(const Problem& problem) { return with_products(problem, kProcessors, OnHost{}); }

}  // namespace onnxopt::qgemm::cuda
