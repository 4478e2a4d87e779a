#include "kernels/cuda/elementwise/embedded.h"

namespace onnxopt::elementwise::cuda {

Result<bool> with_planned(const Bound* bound, const Surroundings& surroundings,
                          const std::function<Result<bool>(const Planned*)>& use) {
  if (bound == nullptr) return use(nullptr);
  return for_each_plan(*bound->program, bound->arguments, [&](const Plan& plan) {
    const Planned planned{&plan, assemble(*bound->program, output_statements(*bound->program, plan), surroundings)};
    return use(&planned);
  });
}

}  // namespace onnxopt::elementwise::cuda
