#include "csrc/dispatch/tuning.h"

#include <cstdlib>
#include <fstream>

namespace onnxopt::dispatch {

namespace {

std::string_view trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(" \t\r");
  return first == std::string_view::npos ? std::string_view{} : text.substr(first, text.find_last_not_of(" \t\r") + 1 - first);
}

/// The text between quotes; empty where there is none.
std::string_view quoted(std::string_view text) {
  const std::size_t last = text.rfind('"');
  return text.size() > 1 && text.front() == '"' && last > 0 ? text.substr(1, last - 1) : std::string_view{};
}

}  // namespace

Result<std::string> tuned_variant(std::string_view op) {
  const char* path = std::getenv("ONNXOPT_TUNING");
  if (path == nullptr || *path == '\0') return std::string();
  std::ifstream file(path);
  std::string text;
  bool inside = false;
  while (std::getline(file, text)) {
    const std::string_view line = trimmed(text);
    if (line.starts_with('[')) inside = line == "[variants]";
    const std::size_t equals = line.find('=');
    if (inside && equals != std::string_view::npos && trimmed(line.substr(0, equals)) == op)
      return std::string(quoted(trimmed(line.substr(equals + 1))));
  }
  if (!file.eof())
    return Result<std::string>::failure(std::string("ONNXOPT_TUNING names the file '") + path + "', which cannot be read.");
  return std::string();
}

}  // namespace onnxopt::dispatch
