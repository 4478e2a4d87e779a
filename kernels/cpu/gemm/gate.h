// What a gate makes of a vector. Included after the vectors of an instruction set.
#pragma once

#include "kernels/cpu/gemm/panel.h"
#include "kernels/cpu/simd/functions.h"

namespace onnxopt::gemm {
namespace {

inline simd::V::F gated(const Gate& gate, simd::V::F x) {
  using simd::V;
  const V::F sloped = V::add(V::mul(x, V::set1(gate.alpha)), V::set1(gate.beta));
  const V::F open = V::min(V::set1(1.0f), V::max(V::set1(0.0f), sloped));
  return V::add(V::mul(V::set1(gate.scale), V::mul(x, open)), V::set1(gate.shift));
}

}  // namespace
}  // namespace onnxopt::gemm
