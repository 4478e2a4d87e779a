// Quotients rounded up, and multiples that hold a size. Every file has these for itself, those of an instruction set included.
#pragma once

#include <cstdint>

namespace onnxopt {
namespace {

inline constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
inline constexpr std::int64_t round_up(std::int64_t a, std::int64_t step) { return ceil_div(a, step) * step; }

}  // namespace
}  // namespace onnxopt
