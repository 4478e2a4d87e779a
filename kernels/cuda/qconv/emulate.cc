#include <algorithm>

#include "kernels/cuda/qconv/windows.cuh"

namespace onnxopt::qconv::cuda {

namespace {

/// Fewer blocks than large problems have, so that a block takes several tiles; and so few multiprocessors that large tiles are
/// used.
constexpr std::int64_t kMostBlocks = 3;
constexpr int kProcessors = 3;

unsigned blocks_of(const Launch& launch) { return static_cast<unsigned>(std::min(launch.tiles, kMostBlocks)); }

struct OnHost {
  template <class T, class L, class Code>
  Result<bool> operator()(const Products<Code>& products, const Launch& launch) const {
    return simt::launch({blocks_of(launch)}, {kThreads}, launch.shared_bytes, [&] { convolve_bytes<T, L>(products); });
  }

  template <class L, class Code>
  Result<bool> operator()(const Products<Code>& products, const Launch& launch) const {
    return simt::launch({blocks_of(launch)}, {products.finishing}, launch.shared_bytes, [&] { convolve_channels<L>(products); });
  }
};

}  // namespace

Result<bool> emulate(const Problem& problem) { return with_products(problem, kProcessors, OnHost{}); }

}  // namespace onnxopt::qconv::cuda
