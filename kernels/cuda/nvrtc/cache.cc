#include "kernels/cuda/nvrtc/cache.h"

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>

namespace onnxopt::cuda {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kMagic = "onnxopt cache 1\n";

/// FNV-1a.
std::uint64_t sum_of(std::string_view text, std::uint64_t sum = 0xcbf29ce484222325u) {
  for (const char c : text) sum = (sum ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return sum;
}

std::string bytes_of(std::uint64_t number) {
  std::string bytes(sizeof number, '\0');
  std::memcpy(bytes.data(), &number, sizeof number);
  return bytes;
}

std::uint64_t number_at(std::string_view text, std::size_t at) {
  std::uint64_t number = 0;
  std::memcpy(&number, text.data() + at, sizeof number);
  return number;
}

const char* variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' ? value : nullptr;
}

}  // namespace

std::optional<Cache> Cache::of_user() {
  if (const char* folder = variable("ONNXOPT_CACHE_DIR"))
    return std::string_view(folder) == "off" ? std::nullopt : std::optional<Cache>(fs::path(folder));
  if (const char* folder = variable("XDG_CACHE_HOME"); folder != nullptr && *folder == '/')
    return Cache(fs::path(folder) / "onnxopt");
  if (const char* home = variable("HOME")) return Cache(fs::path(home) / ".cache" / "onnxopt");
  return std::nullopt;
}

fs::path Cache::path_of(std::string_view key) const {
  char name[24];
  std::snprintf(name, sizeof name, "%016llx.bin", static_cast<unsigned long long>(sum_of(key)));
  return folder_ / name;
}

std::optional<std::string> Cache::find(std::string_view key) const {
  std::ifstream file(path_of(key), std::ios::binary);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  const std::size_t number = sizeof(std::uint64_t), head = kMagic.size() + number + key.size();
  if (!file || text.size() < head + number || text.compare(0, kMagic.size(), kMagic) != 0) return std::nullopt;
  if (number_at(text, kMagic.size()) != key.size() || text.compare(kMagic.size() + number, key.size(), key) != 0)
    return std::nullopt;
  const std::size_t end = text.size() - number;
  if (number_at(text, end) != sum_of(std::string_view(text).substr(0, end))) return std::nullopt;
  return text.substr(head, end - head);
}

bool Cache::keep(std::string_view key, std::string_view value) const {
  static std::atomic<unsigned> count{0};
  std::error_code error;
  fs::create_directories(folder_, error);
  const fs::path target = path_of(key);
  fs::path made = target;
  made += "." + std::to_string(getpid()) + "." + std::to_string(count++);
  std::string text(kMagic);
  text.append(bytes_of(key.size())).append(key).append(value);
  text.append(bytes_of(sum_of(text)));
  std::ofstream file(made, std::ios::binary);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  file.close();
  if (file) fs::rename(made, target, error);
  if (file && !error) return true;
  fs::remove(made, error);
  return false;
}

}  // namespace onnxopt::cuda
