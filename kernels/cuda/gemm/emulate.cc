#include "kernels/cuda/gemm/products.cuh"
#include "kernels/cuda/gemm/tensor_products.cuh"

namespace onnxopt::gemm::cuda {

namespace {

struct OnHost {
  template <int P, class L, class Code>
  Result<bool> operator()(const Products<Code>& products, const Launch& launch) const {
    return simt::launch_few(launch.tiles, kThreads, launch.shared_bytes, [&] { multiply_packed<P, L>(products); });
  }

  template <int W, class T, class L, class Code>
  Result<bool> operator()(const TensorProducts<Code>& products, const Launch& launch) const {
    return simt::launch_few(launch.tiles, kTensorThreads, launch.shared_bytes, [&] { multiply_tensors<W, T, L>(products); });
  }
};

}  // namespace

Result<bool> emulate(const Problem& problem) {
  return problem.precision == Precision::kFloat ? with_products(problem, OnHost{})
                                                : with_tensor_products(problem, simt::kProcessors, OnHost{});
}

}  // namespace onnxopt::gemm::cuda
