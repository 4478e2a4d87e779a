// From a program and the plan of one shape to the code of one launch.
#pragma once

#include <span>
#include <vector>

#include "kernels/cpu/elementwise/plan.h"
#include "kernels/cuda/elementwise/evaluate.h"

namespace onnxopt::elementwise::cuda {

/// The statements that make a set of outputs, with the places of all values. It depends on the program alone.
struct Listing {
  std::vector<Statement> statements;
  std::vector<std::uint64_t> scalars;
  std::vector<std::uint16_t> inputs;  // the numbers of those that are loaded, in the order of `Statement::tensor`
  std::uint16_t slot_count = 0;
  bool wide = false;  // some value is an int64
};

/// `outputs` are statements of the program.
Listing assemble(const Program& program, std::span<const std::uint16_t> outputs);

/// The statements that a plan's outputs are.
std::vector<std::uint16_t> output_statements(const Program& program, const Plan& plan);

/// Fills in the code for threads of `elements` elements. False when it does not fit.
template <class Code>
bool pack(const Listing& listing, const Plan& plan, int elements, Code& code);

/// A dim with its divisor, which is exact for sizes and elements below 2^31.
Dim dim_of(std::int64_t size);

/// Shared memory that a block has without asking for more.
constexpr std::size_t kSharedBytes = 48 * 1024;
constexpr unsigned kThreads = 128, kFewThreads = 64, kFewestThreads = 32;

/// Threads of a block whose slots fit into its shared memory; 0 when too many slots are needed.
template <class L>
unsigned threads_for(std::size_t slot_count) {
  if (slot_count * sizeof(L) * kThreads <= kSharedBytes) return kThreads;
  return slot_count * sizeof(L) * kFewThreads <= kSharedBytes ? kFewThreads : 0;
}

/// Whether all tensors of a plan are so narrow that a thread takes eight elements for 16 bytes.
bool is_narrow(const Listing& listing, const Plan& plan);

/// Calls `use.template operator()<L>(code, threads)` with the best form that the plan fits into.
template <class Use>
Result<bool> with_code(const Program& program, const Plan& plan, const Use& use) {
  const Listing listing = assemble(program, output_statements(program, plan));
  const auto attempt = [&]<class L>() -> unsigned { return threads_for<L>(listing.slot_count); };
  SmallCode small;
  if (listing.wide) {
    const unsigned threads = attempt.template operator()<Lanes<std::uint64_t, 4>>();
    if (threads > 0 && pack(listing, plan, 4, small)) return use.template operator()<Lanes<std::uint64_t, 4>>(small, threads);
  } else {
    unsigned threads = attempt.template operator()<Lanes<std::uint32_t, 8>>();
    if (threads > 0 && is_narrow(listing, plan) && pack(listing, plan, 8, small))
      return use.template operator()<Lanes<std::uint32_t, 8>>(small, threads);
    threads = attempt.template operator()<Lanes<std::uint32_t, 4>>();
    if (threads > 0 && pack(listing, plan, 4, small)) return use.template operator()<Lanes<std::uint32_t, 4>>(small, threads);
  }
  LargeCode large;
  if (!pack(listing, plan, 1, large)) return Result<bool>::failure("The expression is too large for one launch.");
  return use.template operator()<Lanes<std::uint64_t, 1>>(large, kFewestThreads);
}

}  // namespace onnxopt::elementwise::cuda
