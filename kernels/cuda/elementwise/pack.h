// From a program and the plan of one shape to the code of one launch.
#pragma once

#include <span>
#include <type_traits>
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

/// What a kernel that a program is part of has in its registers.
struct Surroundings {
  std::size_t taken = 0;  // so many first inputs
  bool stores = true;     // whether outputs go to memory; else the only one is what the kernel asks for
};

/// `outputs` are statements of the program.
Listing assemble(const Program& program, std::span<const std::uint16_t> outputs, const Surroundings& surroundings = {});

/// The statements that a plan's outputs are.
std::vector<std::uint16_t> output_statements(const Program& program, const Plan& plan);

/// Fills in the code for threads of `elements` elements. False when it does not fit.
template <class Code>
bool pack(const Listing& listing, const Plan& plan, int elements, Code& code);

/// Fills in the tensors of a launch for threads of `elements` elements; `inputs` are the numbers of those that are read. False when
/// they do not fit.
template <class Domain>
bool pack_tensors(std::span<const std::uint16_t> inputs, const Plan& plan, int elements, Domain& domain);

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

/// The forms of the kernel: what a thread holds, by the widest type and the width of the tensors.
using Narrow = Lanes<std::uint32_t, 8>;
using Usual = Lanes<std::uint32_t, 4>;
using Wide = Lanes<std::uint64_t, 4>;
using Any = Lanes<std::uint64_t, 1>;

/// Calls `use.template operator()<L, Code>()` for every form until one fails.
template <class Use>
Result<bool> for_each_form(const Use& use) {
  Result<bool> done = use.template operator()<Narrow, SmallCode>();
  if (done) done = use.template operator()<Usual, SmallCode>();
  if (done) done = use.template operator()<Wide, SmallCode>();
  if (done) done = use.template operator()<Any, LargeCode>();
  return done;
}

/// Calls `use.template operator()<L>(code, threads)` with the best form that the plan fits into.
template <class Use>
Result<bool> with_code(const Program& program, const Plan& plan, const Use& use) {
  const Listing listing = assemble(program, output_statements(program, plan));
  SmallCode small;
  const auto fits = [&]<class L>(std::type_identity<L>) {
    return threads_for<L>(listing.slot_count) > 0 && pack(listing, plan, L::kCount, small);
  };
  const auto use_small = [&]<class L>(std::type_identity<L>) {
    return use.template operator()<L>(small, threads_for<L>(listing.slot_count));
  };
  if (!listing.wide && is_narrow(listing, plan) && fits(std::type_identity<Narrow>{}))
    return use_small(std::type_identity<Narrow>{});
  if (!listing.wide && fits(std::type_identity<Usual>{})) return use_small(std::type_identity<Usual>{});
  if (listing.wide && fits(std::type_identity<Wide>{})) return use_small(std::type_identity<Wide>{});
  LargeCode large;
  if (!pack(listing, plan, Any::kCount, large)) return Result<bool>::failure("The expression is too large for one launch.");
  return use.template operator()<Any>(large, kFewestThreads);
}

}  // namespace onnxopt::elementwise::cuda
