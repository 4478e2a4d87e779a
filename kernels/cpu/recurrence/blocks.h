// Steps whose stacked values are summed over the last dim, of state-space models for example: y = sum(exp(d a) h c), each of a
// channel.
//
// The rows of the domain are taken in blocks of as many as a vector has lanes, and a block holds vector after vector, one for each
// element of a row. So what is one number per row lies in memory as a vector that all elements share, what is alike in all rows is
// one splat per element, and a sum over a row adds vectors.
#pragma once

#include <span>

#include "kernels/cpu/elementwise/plan.h"
#include "kernels/cpu/recurrence/recurrence.h"

namespace onnxopt::recurrence {

/// Runs all steps of a problem whose step has one phase without products. `plan` is that of the phase, without data.
void run_in_blocks(const Problem& problem, const elementwise::Plan& plan, const Variant& variant,
                   const elementwise::Variant& elementwise, const ParallelFor& parallel_for);

}  // namespace onnxopt::recurrence
