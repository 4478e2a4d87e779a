#include "csrc/dispatch/gpu.h"

#include <charconv>
#include <cstdlib>
#include <limits>

namespace onnxopt::dispatch {

namespace {

constexpr std::string_view kPrefix = "sm_";

/// A whole number above 0, and nothing else.
std::optional<int> number_of(std::string_view text) {
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc{} && end == text.data() + text.size() && number > 0 ? std::optional(number) : std::nullopt;
}

}  // namespace

std::optional<int> sm_of(std::string_view isa) {
  if (isa == "cuda") return kOldestSm;
  return isa.starts_with(kPrefix) ? number_of(isa.substr(kPrefix.size())) : std::nullopt;
}

Result<int> max_sm() {
  const char* value = std::getenv("ONNXOPT_MAX_SM");
  if (value == nullptr || *value == '\0') return std::numeric_limits<int>::max();
  std::string_view text(value);
  if (text.starts_with(kPrefix)) text.remove_prefix(kPrefix.size());
  const std::optional<int> number = number_of(text);
  if (!number)
    return Result<int>::failure(std::string("ONNXOPT_MAX_SM is '") + value +
                                "' and should be an architecture such as 80 or sm_90.");
  return *number;
}

}  // namespace onnxopt::dispatch
