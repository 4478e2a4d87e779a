#include "csrc/ops/device.h"

#include "kernels/cuda/copies.h"

namespace onnxopt::ops {

namespace {

std::size_t bytes_of(const TensorType& type) {
  std::size_t bytes = size_of(type.type);
  for (const std::int64_t size : type.shape) bytes *= static_cast<std::size_t>(size);
  return bytes;
}

}  // namespace

Result<bool> run_on_device(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                           const Execution& execution, const StartOnDevice& start) {
  if (!execution.host_memory) return start(inputs, outputs, execution.stream);
  std::vector<cuda::Source> sources;
  std::vector<cuda::Target> targets;
  for (const Tensor& input : inputs) sources.push_back({input.data, bytes_of(input)});
  for (std::size_t i = 0; i < types.size(); ++i) targets.push_back({outputs[i], bytes_of(types[i])});
  return cuda::run_on_copies(sources, targets, [&](auto addresses, auto memory, void* stream) {
    std::vector<Tensor> copies(inputs.begin(), inputs.end());
    for (std::size_t i = 0; i < copies.size(); ++i) copies[i].data = addresses[i];
    return start(copies, memory, stream);
  });
}

}  // namespace onnxopt::ops
