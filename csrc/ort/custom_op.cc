#include "csrc/ort/custom_op.h"

#include <algorithm>
#include <deque>
#include <exception>
#include <memory>

#include "csrc/ops/op.h"
#include "csrc/ort/adapter.h"

namespace onnxopt::ort {

namespace {

#if defined(ONNXOPT_HAVE_CUDA)
constexpr bool kHasCuda = true;
#else
constexpr bool kHasCuda = false;
#endif

/// A description that knows the op it describes, and the device.
struct Description : CustomOp {
  const ops::Op* op;
  bool cuda;
};

const Description& of(const CustomOp* op) { return *static_cast<const Description*>(op); }

struct State {
  const Description* description;
  std::unique_ptr<ops::Kernel> kernel;
  std::vector<ops::Tensor> constants;
};

OrtStatus* create(const CustomOp* self, const void*, const OrtKernelInfo* info, void** state) try {
  const Description& description = of(self);
  Result<std::unique_ptr<ops::Kernel>> kernel = ops::create(*description.op, description.cuda, NodeAttributes(info));
  if (!kernel) return failure(description.op->name, kernel.error());
  *state = new State{&description, std::move(*kernel), constant_inputs(info)};
  return nullptr;
} catch (const std::exception& error) {
  return failure(of(self).op->name, error.what(), kFail);
}

/// Runs a kernel that finds the shapes of its outputs itself; what it made is copied into onnxruntime's memory.
OrtStatus* make(const char* name, const ops::Kernel& kernel, const std::vector<ops::Tensor>& tensors, OrtKernelContext* context) {
  const Result<std::vector<ops::Made>> made = kernel.make(tensors, ops::Execution{thread_pool(context)});
  if (!made) return failure(name, made.error());
  const std::vector<ops::TensorType> types(made->begin(), made->end());
  const Result<std::vector<void*>> memory = outputs(context, types);
  if (!memory) return failure(name, memory.error(), kFail);
  for (std::size_t i = 0; i < types.size(); ++i)
    std::copy((*made)[i].bytes.begin(), (*made)[i].bytes.end(), static_cast<std::byte*>((*memory)[i]));
  return nullptr;
}

OrtStatus* compute(void* state, OrtKernelContext* context) {
  const State& self = *static_cast<const State*>(state);
  const char* name = self.description->op->name;
  try {
    const std::vector<ops::Tensor> tensors = inputs(context, self.constants);
    if (self.kernel->shapes_by_run()) return make(name, *self.kernel, tensors, context);
    const Result<std::vector<ops::TensorType>> types = self.kernel->outputs(tensors);
    if (!types) return failure(name, types.error());
    const Result<std::vector<void*>> memory = outputs(context, *types);
    if (!memory) return failure(name, memory.error(), kFail);
    ops::Execution execution{thread_pool(context)};
    if (self.description->cuda) {
      const std::optional<void*> stream = gpu_stream(context);
      if (!stream) return failure(name, "onnxruntime gives no CUDA stream.", kFail);
      execution.stream = *stream;
    }
    const Result<bool> done = self.kernel->run(tensors, *types, *memory, execution);
    return done ? nullptr : failure(name, done.error());
  } catch (const std::exception& error) {
    return failure(name, error.what(), kFail);
  }
}

void destroy(void* state) { delete static_cast<State*>(state); }

OrtStatus* infer(const CustomOp* self, OrtShapeInferContext* context) try {
  const std::optional<std::vector<ops::InferredType>> known = inferred_inputs(context);
  if (!known) return nullptr;
  const std::vector<std::optional<ops::InferredType>> types = ops::infer(*of(self).op, InferenceAttributes(context), *known);
  for (std::size_t i = 0; i < types.size(); ++i)
    if (types[i]) set_inferred_output(context, i, *types[i]);
  return nullptr;
} catch (const std::exception&) {
  return nullptr;  // what cannot be inferred is checked when the kernel runs
}

/// All inputs are one variadic input of any types, and so are the outputs: kernels check them, with better sentences.
Description describe(const ops::Op& op, bool cuda) {
  Description made{};
  made.op = &op;
  made.cuda = cuda;
  made.version = kApiVersion;
  made.GetName = [](const CustomOp* self) { return of(self).op->name; };
  made.GetExecutionProviderType = [](const CustomOp* self) -> const char* {
    return of(self).cuda ? "CUDAExecutionProvider" : nullptr;
  };
  made.GetInputType = [](const CustomOp*, std::size_t) -> int { return ops::kUndefined; };
  made.GetInputTypeCount = [](const CustomOp*) -> std::size_t { return 1; };
  made.GetOutputType = [](const CustomOp*, std::size_t) -> int { return ops::kUndefined; };
  made.GetOutputTypeCount = [](const CustomOp*) -> std::size_t { return 1; };
  made.GetInputCharacteristic = [](const CustomOp*, std::size_t) -> int { return kVariadic; };
  made.GetOutputCharacteristic = [](const CustomOp*, std::size_t) -> int { return kVariadic; };
  made.GetInputMemoryType = [](const CustomOp*, std::size_t) { return 0; };
  made.GetVariadicInputMinArity = [](const CustomOp*) { return 1; };
  made.GetVariadicInputHomogeneity = [](const CustomOp*) { return 0; };
  made.GetVariadicOutputMinArity = [](const CustomOp*) { return 1; };
  made.GetVariadicOutputHomogeneity = [](const CustomOp*) { return 0; };
  made.CreateKernelV2 = create;
  made.KernelComputeV2 = compute;
  made.KernelDestroy = destroy;
  made.InferOutputShapeFn = infer;
  made.GetStartVersion = [](const CustomOp*) { return 1; };
  made.GetEndVersion = [](const CustomOp*) { return 2147483647; };
  if (op.in_place) {
    made.GetMayInplace = [](int** inputs, int** outputs) -> std::size_t {
      static int first = 0;
      *inputs = *outputs = &first;
      return 1;
    };
    made.ReleaseMayInplace = [](int*, int*) {};
  }
  return made;
}

}  // namespace

bool add_ops(OrtCustomOpDomain* domain, std::span<const ops::Op* const> list) {
  // They live as long as the process: sessions keep plain pointers to them.
  static std::deque<Description> descriptions;
  const auto add = [&](const ops::Op& op, bool cuda) {
    return succeeded(api().CustomOpDomain_Add(domain, &descriptions.emplace_back(describe(op, cuda))));
  };
  return std::all_of(list.begin(), list.end(), [&](const ops::Op* op) {
    const std::vector<ops::Variant> variants = ops::variants(*op);
    const auto runs_on = [&](bool cuda) {
      return std::any_of(variants.begin(), variants.end(), [&](const ops::Variant& one) {
        return one.is_cuda() == cuda && (!cuda || kHasCuda || one.external != nullptr);
      });
    };
    // onnxruntime takes the schema of the first of a name.
    return (!runs_on(false) || add(*op, false)) && (!runs_on(true) || add(*op, true));
  });
}

}  // namespace onnxopt::ort
