#include "kernels/cuda/elementwise/elementwise.h"
#include "kernels/cuda/elementwise/pack.h"

namespace onnxopt::elementwise::cuda {

namespace {

struct OnHost {
  template <class L, class Code>
  Result<bool> operator()(const Code& code, unsigned threads) const {
    std::vector<Chunk<16>> memory(code.slot_count * sizeof(L) * threads / sizeof(Chunk<16>) + 1);
    for (unsigned thread = 0; thread < threads; ++thread)
      run_thread(code, Slots<L>{memory.data(), thread, threads}, thread, threads);
    return true;
  }
};

}  // namespace

Result<bool> emulate(const Program& program, const Arguments& arguments) {
  return for_each_plan(program, arguments, [&](const Plan& plan) { return with_code(program, plan, OnHost{}); });
}

}  // namespace onnxopt::elementwise::cuda
