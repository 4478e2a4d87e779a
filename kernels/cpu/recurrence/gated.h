// Gated updates whose results are summed over a row, as state-space models have them: h = exp(d a) h + d b x, y = sum(h c).
//
// Such a step needs no interpreter of its program: the products, the gate and the sum happen in registers.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "kernels/cpu/recurrence/recurrence.h"

namespace onnxopt::recurrence {

/// h = gate h + update, or with `exponential` h = exp(gate) h + update, and y = sum(h read): products of values from outside, in
/// the order in which they are multiplied.
struct GatedStep {
  std::vector<std::size_t> gate, update, read;
  bool exponential = false;
};

/// The step as such an update, if it is one.
std::optional<GatedStep> find_gated(const Step& step);

}  // namespace onnxopt::recurrence
