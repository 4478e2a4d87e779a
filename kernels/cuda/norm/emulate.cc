#include "kernels/cuda/norm/rows.cuh"

namespace onnxopt::norm::cuda {

namespace {

struct OnHost {
  template <class L, class Code>
  Result<bool> operator()(const Rows<Code>& rows, const Launch& launch) const {
    return simt::launch_few(launch.blocks, launch.threads, launch.shared_bytes, [&] { normalize_rows<L>(rows); });
  }
};

}  // namespace

Result<bool> emulate(const Problem& problem) { return with_rows(problem, OnHost{}); }

}  // namespace onnxopt::norm::cuda
