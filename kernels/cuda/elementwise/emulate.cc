#include "kernels/cuda/elementwise/elementwise.h"
#include "kernels/cuda/elementwise/pack.h"

namespace onnxopt::elementwise::cuda {

namespace {

struct OnHost {
  template <class L, class Code>
  Result<bool> operator()(const Code& code, unsigned threads) const {
    // Slots of one thread of a block, as they lie there.
    std::vector<Chunk<16>> memory(code.slot_count * sizeof(L) * threads / sizeof(Chunk<16>) + 1);
    const Slots<L> slots{memory.data(), threads / 2, threads};
    for (std::int64_t first = 0; first < code.elements; first += L::kCount) evaluate(code, slots, first);
    return true;
  }
};

}  // namespace

Result<bool> emulate(const Program& program, const Arguments& arguments) {
  return for_each_plan(program, arguments, [&](const Plan& plan) { return with_code(program, plan, OnHost{}); });
}

}  // namespace onnxopt::elementwise::cuda
