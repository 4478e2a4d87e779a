#include "kernels/cpu/qattention/qattention.h"

namespace onnxopt::qattention {

#define QATTENTION_VARIANT(name, isa)                           \
  namespace name {                                              \
  void run(const attention::Problem&, const attention::Range&); \
  }
#include "kernels/cpu/qattention/variants.inc"
#undef QATTENTION_VARIANT

std::span<const attention::Variant> variants() {
  static constexpr attention::Variant list[] = {
#define QATTENTION_VARIANT(name, isa) {"qattention__" #name, isa, name::run},
#include "kernels/cpu/qattention/variants.inc"
#undef QATTENTION_VARIANT
  };
  return list;
}

}  // namespace onnxopt::qattention
