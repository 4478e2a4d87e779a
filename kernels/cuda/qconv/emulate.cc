#include "kernels/cuda/qconv/windows.cuh"

namespace onnxopt::qconv::cuda {

namespace {

struct OnHost {
  template <class T, class L, class Code>
  Result<bool> operator()(const Products<Code>& products, const Launch& launch) const {
    return simt::launch_few(launch.tiles, kThreads, launch.shared_bytes, [&] { convolve_bytes<T, L>(products); });
  }

  template <class L, class Code>
  Result<bool> operator()(const Products<Code>& products, const Launch& launch) const {
    return simt::launch_few(launch.tiles, products.finishing, launch.shared_bytes, [&] { convolve_channels<L>(products); });
  }
};

}  // namespace

Result<bool> emulate(const Problem& problem) { return with_products(problem, simt::kProcessors, OnHost{}); }

}  // namespace onnxopt::qconv::cuda
