// Statements of a loop's step as text.
#pragma once

#include <cstddef>
#include <string_view>

#include "kernels/cpu/recurrence/loop.h"

namespace onnxopt::recurrence {

/// Reads a statement over values below `known` and matrices below `matrices` (loop.h describes the language), or says what is
/// wrong.
Result<Statement> read_statement(std::string_view text, std::size_t known, std::size_t matrices);

}  // namespace onnxopt::recurrence
