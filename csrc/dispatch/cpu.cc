#include "csrc/dispatch/cpu.h"

#include <algorithm>
#include <cstdlib>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace onnxopt::dispatch {

namespace {

constexpr std::string_view kOrder[] = {"avx512vnni", "avx512", "avx2", "scalar"};

struct Features {
  bool avx2 = false, avx512 = false, avx512vnni = false;
};

#if defined(__x86_64__)
/// Registers that the operating system saves on a context switch.
unsigned long long saved_state() {
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<unsigned long long>(high) << 32 | low;
}

Features detect() {
  Features features;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return features;
  const bool osxsave = c >> 27 & 1, fma = c >> 12 & 1, f16c = c >> 29 & 1;
  if (!osxsave || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return features;
  const unsigned long long state = saved_state();
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6;
  features.avx2 = ymm && fma && f16c && (b >> 5 & 1);
  const bool f = b >> 16 & 1, dq = b >> 17 & 1, bw = b >> 30 & 1, vl = b >> 31 & 1;
  features.avx512 = features.avx2 && zmm && f && dq && bw && vl;
  features.avx512vnni = features.avx512 && (c >> 11 & 1);
  return features;
}
#else
Features detect() { return {}; }
#endif

std::size_t rank_of(std::string_view isa) {
  return static_cast<std::size_t>(std::find(std::begin(kOrder), std::end(kOrder), isa) - std::begin(kOrder));
}

}  // namespace

std::vector<std::string_view> instruction_sets() {
  std::vector<std::string_view> found;
  std::copy_if(std::begin(kOrder), std::end(kOrder), std::back_inserter(found), supports);
  return found;
}

bool supports(std::string_view isa) {
  static const Features features = detect();
  if (isa == "avx2") return features.avx2;
  if (isa == "avx512") return features.avx512;
  if (isa == "avx512vnni") return features.avx512vnni;
  return isa == "scalar";
}

Result<std::string_view> max_isa() {
  const char* text = std::getenv("ONNXOPT_MAX_ISA");
  if (text == nullptr || *text == '\0') return instruction_sets().front();
  const std::size_t rank = rank_of(text);
  if (rank == std::size(kOrder))
    return Result<std::string_view>::failure(std::string("ONNXOPT_MAX_ISA is '") + text +
                                             "' and should be scalar, avx2, avx512 or avx512vnni.");
  return kOrder[rank];
}

bool usable(std::string_view isa) {
  const Result<std::string_view> cap = max_isa();
  return supports(isa) && (!cap || rank_of(isa) >= rank_of(*cap));
}

}  // namespace onnxopt::dispatch
