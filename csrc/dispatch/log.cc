#include "csrc/dispatch/log.h"

#include <cstdio>
#include <mutex>
#include <set>

namespace onnxopt::dispatch {

void log_once(const std::string& sentence) {
  static std::mutex mutex;
  static std::set<std::string> said;
  const std::lock_guard<std::mutex> lock(mutex);
  if (said.insert(sentence).second) std::fprintf(stderr, "onnxopt: %s\n", sentence.c_str());
}

}  // namespace onnxopt::dispatch
