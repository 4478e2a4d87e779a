// An expression as the CUDA source of one kernel: straight code in registers in place of an interpreter.
//
// The source depends on the expression alone. Shapes, and how tensors are walked through, are the kernel's parameter, so that it is
// compiled once, when a session starts.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/cpu/elementwise/plan.h"
#include "kernels/cuda/elementwise/pack.h"
#include "kernels/cuda/nvrtc/nvrtc.h"

namespace onnxopt::elementwise::cuda {

/// The kernel that makes a set of outputs.
struct Source {
  static constexpr const char* kKernel = "fused_elementwise";

  std::string text;
  std::vector<std::uint16_t> outputs;  // statements of the program
  std::vector<std::uint16_t> inputs;   // the numbers of those that are read
  int elements;                        // of a thread
  bool large;                          // the parameter is `LargeTensors`, else `SmallTensors`
};

/// `outputs` are statements of the program.
Source source_of(const Program& program, std::span<const std::uint16_t> outputs);

/// The kernels for the sets of outputs that nearly all runs make together: all of them, and those that read the same inputs.
std::vector<Source> sources_of(const Program& program);

/// A launch of a source's kernel, but for its stream.
struct SourceLaunch {
  const void* parameter;
  std::size_t parameter_bytes;
  std::int64_t blocks;  // one for each set of elements that a block takes at once
  unsigned threads;
};

/// Calls `use(index, launch)` for the source that makes a plan's outputs; nothing when none does, or its parameter has not the
/// room.
template <class Use>
bool with_source(std::span<const Source> sources, const Program& program, const Plan& plan, const Use& use) {
  const std::vector<std::uint16_t> outputs = output_statements(program, plan);
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const Source& source = sources[i];
    if (source.outputs != outputs) continue;
    const auto launch = [&](auto& tensors) {
      if (!pack_tensors(source.inputs, plan, source.elements, tensors)) return false;
      const std::int64_t block = std::int64_t{kThreads} * source.elements;
      use(i, SourceLaunch{&tensors, sizeof tensors, (plan.elements + block - 1) / block, kThreads});
      return true;
    };
    if (source.large) return launch(*std::make_unique<LargeTensors>());
    SmallTensors tensors{};
    return launch(tensors);
  }
  return false;
}

/// The headers that sources include.
std::span<const onnxopt::cuda::nvrtc::SourceFile> headers();

}  // namespace onnxopt::elementwise::cuda
