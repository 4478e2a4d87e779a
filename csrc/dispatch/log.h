// What a user should know though it is no error.
#pragma once

#include <string>

namespace onnxopt::dispatch {

/// Writes a line to the standard error stream, once for each sentence in the life of the process.
void log_once(const std::string& sentence);

}  // namespace onnxopt::dispatch
