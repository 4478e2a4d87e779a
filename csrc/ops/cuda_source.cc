#include "csrc/ops/cuda_source.h"

#include "csrc/dispatch/gpu.h"
#include "kernels/cuda/elementwise/source.h"
#include "kernels/cuda/nvrtc/nvrtc.h"

namespace onnxopt::ops {

namespace {

using elementwise::Program;
namespace source = elementwise::cuda;
namespace nvrtc = cuda::nvrtc;

Result<std::vector<std::string>> sources(const std::string& expression) {
  using Texts = std::vector<std::string>;
  const Result<Program> program = Program::parse(expression);
  if (!program) return Result<Texts>::failure(program.error());
  Texts texts;
  for (source::Source& one : source::sources_of(*program)) texts.push_back(std::move(one.text));
  return texts;
}

Result<std::vector<CudaLaunch>> launches(const std::string& expression, std::span<const Tensor> inputs,
                                         std::span<const Tensor> outputs) {
  using Launches = std::vector<CudaLaunch>;
  const Result<Program> program = Program::parse(expression);
  if (!program) return Result<Launches>::failure(program.error());
  const std::vector<source::Source> made = source::sources_of(*program);
  std::vector<const void*> data;
  std::vector<std::span<const std::int64_t>> shapes;
  for (const Tensor& input : inputs) {
    data.push_back(input.data);
    shapes.emplace_back(input.shape);
  }
  std::vector<void*> memory;
  std::vector<Shape> output_shapes;
  for (const Tensor& output : outputs) {
    memory.push_back(const_cast<void*>(output.data));
    output_shapes.push_back(output.shape);
  }
  Launches list;
  const auto add = [&](std::size_t index, const source::SourceLaunch& launch) {
    list.push_back(
        {index, std::string(static_cast<const char*>(launch.parameter), launch.parameter_bytes), launch.blocks, launch.threads});
  };
  const Result<bool> done = elementwise::for_each_plan(*program, {data, shapes, memory, output_shapes}, [&](const auto& plan) {
    return source::with_source(made, *program, plan, add) ? Result<bool>(true)
                                                          : Result<bool>::failure("No source makes these outputs together.");
  });
  return done ? Result<Launches>(std::move(list)) : Result<Launches>::failure(done.error());
}

Result<CudaCompiler> compiler() {
  const Result<nvrtc::Compiler> found = nvrtc::compiler();
  if (!found) return Result<CudaCompiler>::failure(found.error());
  return CudaCompiler{found->major, found->minor, found->architectures};
}

Result<std::string> compile(const std::string& text, int capability) {
  using Code = Result<std::string>;
  const Result<nvrtc::Compiler> found = nvrtc::compiler();
  if (!found) return Code::failure(found.error());
  const Result<int> most = dispatch::max_sm();
  if (!most) return Code::failure(most.error());
  const Result<nvrtc::Target> target = nvrtc::target_for(*found, capability, *most);
  return target ? nvrtc::compile(text, source::headers(), *target) : Code::failure(target.error());
}

}  // namespace

const CudaSourceTools& cuda_source_tools() {
  static constexpr CudaSourceTools instance{sources, launches, compiler, compile};
  return instance;
}

}  // namespace onnxopt::ops
