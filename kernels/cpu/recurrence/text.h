// Texts of steps: lists and numbers.
#pragma once

#include <charconv>
#include <cstddef>
#include <string_view>
#include <vector>

namespace onnxopt::recurrence {

inline std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const std::size_t end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

/// A number below `limit`.
inline bool read_number(std::string_view text, std::size_t limit, std::size_t& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size() && number < limit;
}

}  // namespace onnxopt::recurrence
