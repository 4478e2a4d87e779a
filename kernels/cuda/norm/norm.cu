#include "kernels/cuda/norm/rows.cuh"
#include "kernels/cuda/runtime.h"

namespace onnxopt::norm::cuda {

namespace {

struct OnDevice {
  cudaStream_t stream;

  template <class L, class Code>
  Result<bool> operator()(const Rows<Code>& rows, const Launch& launch) const {
    return onnxopt::cuda::start(normalize_rows<L, Code>, rows, launch.blocks, launch.threads, launch.shared_bytes, stream);
  }
};

struct Load {
  template <class L, class Code>
  Result<bool> operator()() const {
    return onnxopt::cuda::load(normalize_rows<L, Code>);
  }
};

Result<bool> prepare() { return for_each_form(Load{}); }

Result<bool> run(const Problem& problem, void* stream) { return with_rows(problem, OnDevice{static_cast<cudaStream_t>(stream)}); }

}  // namespace

const Kernels& kernels() {
  static constexpr Kernels instance{prepare, run};
  return instance;
}

}  // namespace onnxopt::norm::cuda
