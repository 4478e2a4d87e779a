// Weights times factors, as folding constants into weights needs them.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace onnxopt::products {

/// One axis of the weights: its elements, and by how many doubles the factor steps along it (0 where it is broadcast).
struct Axis {
  std::size_t size;
  std::size_t step;
};

/// The axes that remain when those along which the factor goes on as the weights do are taken as one. The last is the innermost.
std::vector<Axis> merged(std::span<const Axis> axes);

/// Write float32 weights times a factor, multiplied in double and rounded once, to `target`; whether all results are finite. The
/// weights are in order and need not be aligned.
bool multiply(const std::byte* weights, const double* factor, std::span<const Axis> axes, float* target);

}  // namespace onnxopt::products
