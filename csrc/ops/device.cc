#include "csrc/ops/device.h"

#include "kernels/cuda/copies.h"

namespace onnxopt::ops {

namespace {

std::size_t bytes_of(const TensorType& type) {
  std::size_t bytes = size_of(type.type);
  for (const std::int64_t size : type.shape) bytes *= static_cast<std::size_t>(size);
  return bytes;
}

/// Tensors of the host as memory that is copied.
struct Copied {
  std::vector<cuda::Source> sources;
  std::vector<cuda::Target> targets;

  Copied(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs) {
    for (const Tensor& input : inputs) sources.push_back({input.data, bytes_of(input)});
    for (std::size_t i = 0; i < types.size(); ++i) targets.push_back({outputs[i], bytes_of(types[i])});
  }
};

/// The same tensors, elsewhere.
std::vector<Tensor> moved(std::span<const Tensor> inputs, std::span<const void* const> addresses) {
  std::vector<Tensor> copies(inputs.begin(), inputs.end());
  for (std::size_t i = 0; i < copies.size(); ++i) copies[i].data = addresses[i];
  return copies;
}

}  // namespace

Result<bool> run_on_device(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                           const Execution& execution, const StartOnDevice& start) {
  if (!execution.host_memory) return start(inputs, outputs, execution.stream);
  const Copied copied(inputs, types, outputs);
  return cuda::run_on_copies(copied.sources, copied.targets, [&](auto addresses, auto memory, void* stream) {
    return start(moved(inputs, addresses), memory, stream);
  });
}

Result<std::vector<double>> time_on_device(const Kernel& kernel, std::span<const Tensor> inputs, std::span<const TensorType> types,
                                           std::span<void* const> outputs, const cuda::Rounds& rounds) {
  const Copied copied(inputs, types, outputs);
  return cuda::time_on_copies(copied.sources, copied.targets, rounds, [&](auto addresses, auto memory, void* stream) {
    Execution execution{ParallelFor::inline_loop()};
    execution.stream = stream;
    return kernel.run(moved(inputs, addresses), types, memory, execution);
  });
}

}  // namespace onnxopt::ops
