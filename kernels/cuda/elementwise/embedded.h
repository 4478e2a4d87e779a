// Programs that are part of another kernel: a prologue makes what it reads, an epilogue takes what it has in its registers.
#pragma once

#include <functional>

#include "kernels/cuda/elementwise/pack.h"

namespace onnxopt::elementwise::cuda {

/// A program with the tensors of one run, whose outputs are all of one shape. The data of what a kernel has in its registers are
/// not read.
struct Bound {
  const Program* program;
  Arguments arguments;
};

/// A program and the plan of its set of outputs.
struct Planned {
  const Plan* plan;
  Listing listing;
};

/// Calls `use` with what a bound program computes; with null where there is none.
Result<bool> with_planned(const Bound* bound, const Surroundings& surroundings,
                          const std::function<Result<bool>(const Planned*)>& use);

inline std::size_t slots_of(const Planned* planned) { return planned ? planned->listing.slot_count : 0; }

inline bool is_wide(const Planned* planned) { return planned && planned->listing.wide; }

/// Fills in a kernel's code; false when the program does not fit into this form.
template <class L, class Code>
bool pack_embedded(const Planned* planned, Code& code) {
  if (planned == nullptr) return true;
  if (planned->listing.wide && sizeof(typename L::Word) < sizeof(std::int64_t)) return false;
  return pack(planned->listing, *planned->plan, L::kCount, code);
}

/// Whether a vector of four floats can be read there.
inline bool is_aligned(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; }

}  // namespace onnxopt::elementwise::cuda
