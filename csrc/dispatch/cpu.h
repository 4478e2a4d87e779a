// What this processor can run, and which kernel variant is chosen.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/cpu/common.h"

namespace onnxopt::dispatch {

/// Instruction sets by falling capability: "avx512vnni", "avx512", "avx2", "scalar".
std::vector<std::string_view> instruction_sets();

/// Whether the processor and the operating system support an instruction set, whatever ONNXOPT_MAX_ISA says.
bool supports(std::string_view isa);

/// The value of ONNXOPT_MAX_ISA, or the best that this processor has. An unknown value is a failure.
Result<std::string_view> max_isa();

/// Whether a variant may be chosen: the processor supports it and ONNXOPT_MAX_ISA does not exclude it.
bool usable(std::string_view isa);

/// The first usable one of an ordered list of variants, best first; nullptr where there is none.
template <typename Variants>
auto choose(const Variants& variants) -> decltype(&variants[0]) {
  for (const auto& variant : variants)
    if (usable(variant.isa)) return &variant;
  return nullptr;
}

}  // namespace onnxopt::dispatch
