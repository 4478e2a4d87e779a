// How an op lists the variants of a family of kernels for processors, and finds the one that it is to run.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/ops/op.h"
#include "kernels/cpu/elementwise/elementwise.h"

namespace onnxopt::ops {

/// A family's variants, best first, and then the op's `others`.
template <class Family>
std::vector<Variant> list_variants(std::span<const Family> family, std::initializer_list<Variant> others = {}) {
  std::vector<Variant> list;
  for (const Family& one : family) list.push_back({one.name, one.isa});
  list.insert(list.end(), others);
  return list;
}

/// The variant of that name, or a sentence.
template <class Family>
Result<const Family*> find_variant(std::span<const Family> family, std::string_view name) {
  const auto found = std::find_if(family.begin(), family.end(), [&](const Family& one) { return name == one.name; });
  if (found == family.end()) return Result<const Family*>::failure("There is no variant '" + std::string(name) + "'.");
  return &*found;
}

/// The element-wise kernel that runs expressions beside kernels of an instruction set, or a sentence.
inline Result<const elementwise::Variant*> elementwise_beside(std::string_view isa) {
  const std::string_view wanted = isa == "avx512vnni" ? "avx512" : isa;  // VNNI is for integers
  for (const elementwise::Variant& one : elementwise::variants())
    if (wanted == one.isa) return &one;
  return Result<const elementwise::Variant*>::failure("There is no element-wise kernel for " + std::string(isa) + ".");
}

}  // namespace onnxopt::ops
