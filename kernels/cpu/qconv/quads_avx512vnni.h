// Four rows of a depthwise window at once, with AVX-512 VNNI. Registers are half as wide as they could be: channels are often few.
#pragma once

#include "kernels/cpu/qgemm/dot_avx512vnni.h"
// The vectors come first.
#include "kernels/cpu/qconv/quads_x86.h"

namespace onnxopt::qconv {
namespace {

/// Channels, of each four bytes of one column, and their sums.
struct Quads : InterleavedQuads {
  static Sums add(Sums sums, __m256i x, const std::int8_t* weights) {
    // For the reason that Dot::add gives.
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(x), "vm"(*reinterpret_cast<const __m256i*>(weights)));
    return sums;
  }
};

}  // namespace
}  // namespace onnxopt::qconv
