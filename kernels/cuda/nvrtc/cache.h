// Results that are kept on disk, by the text that they were made of.
//
// An entry is a file that appears whole or not at all, and that tells its whole key and a sum of its bytes: what another text,
// another version or a broken disk left there is not taken.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace onnxopt::cuda {

class Cache {
 public:
  explicit Cache(std::filesystem::path folder) : folder_(std::move(folder)) {}

  /// The folder that ONNXOPT_CACHE_DIR names, else `onnxopt` in XDG_CACHE_HOME or in `.cache` of HOME; nothing where
  /// ONNXOPT_CACHE_DIR is "off", or no folder is known.
  static std::optional<Cache> of_user();

  std::optional<std::string> find(std::string_view key) const;

  /// Keeps a value; false where the folder cannot be written, which is no error.
  bool keep(std::string_view key, std::string_view value) const;

 private:
  std::filesystem::path path_of(std::string_view key) const;

  std::filesystem::path folder_;
};

}  // namespace onnxopt::cuda
