#include "csrc/ops/external.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <deque>
#include <map>
#include <mutex>

#include "python/onnxopt/include/onnxopt/kernel.h"

namespace onnxopt::ops::external {

namespace {

constexpr std::string_view kIsas[] = {"scalar", "avx2", "avx512", "avx512vnni", "cuda"};

/// Everything that libraries brought. Ops stay where they are: sessions keep pointers to them.
struct Known {
  std::mutex mutex;
  std::vector<const OnnxOptKernelLibrary*> libraries;
  std::deque<Op> ops;
};

Known& known() {
  static Known one;
  return one;
}

std::span<const OnnxOptKernel> kernels_of(const OnnxOptKernelLibrary& library) { return {library.kernels, library.count}; }

/// How the node's attributes are shown to a kernel; what was asked for is kept until it is made.
class Shown : public OnnxOptAttributes {
 public:
  explicit Shown(const Attributes& attributes) : attributes_(attributes) {
    integer = [](const OnnxOptAttributes* self, const char* name, std::int64_t* value) {
      return put(of(self).attributes_.integer(name), value);
    };
    real = [](const OnnxOptAttributes* self, const char* name, float* value) {
      return put(of(self).attributes_.real(name), value);
    };
    string = [](const OnnxOptAttributes* self, const char* name) -> const char* {
      const std::optional<std::string> value = of(self).attributes_.string(name);
      return value ? of(self).texts_.emplace_back(*value).c_str() : nullptr;
    };
    integers = [](const OnnxOptAttributes* self, const char* name, std::size_t* count) -> const std::int64_t* {
      std::optional<std::vector<std::int64_t>> values = of(self).attributes_.integers(name);
      if (!values) return nullptr;
      *count = values->size();
      values->push_back(0);  // so that an empty list has an address too
      return of(self).lists_.emplace_back(std::move(*values)).data();
    };
  }

 private:
  static const Shown& of(const OnnxOptAttributes* self) { return *static_cast<const Shown*>(self); }
  template <class T>
  static int put(const std::optional<T>& from, T* to) {
    if (from) *to = *from;
    return from ? 1 : 0;
  }

  const Attributes& attributes_;
  mutable std::deque<std::string> texts_;
  mutable std::deque<std::vector<std::int64_t>> lists_;
};

struct Taken : OnnxOptOutputs {
  Taken() {
    add = [](OnnxOptOutputs* self, std::int32_t type, const std::int64_t* shape, std::size_t rank) {
      static_cast<Taken*>(self)->types.push_back({type, Shape(shape, shape + rank)});
    };
  }
  std::vector<TensorType> types;
};

struct Threads : OnnxOptExecution {
  explicit Threads(const Execution& execution) : OnnxOptExecution{}, own(execution.parallel_for) {
    stream = execution.stream;
    parallel_for = [](const OnnxOptExecution* self, std::size_t total, ParallelFor::Task task, void* user) {
      static_cast<const Threads*>(self)->own(total, task, user);
    };
  }
  const ParallelFor& own;
};

OnnxOptTensor shown(const TensorType& type, const void* data) {
  return {const_cast<void*>(data), type.shape.data(), type.shape.size(), type.type};
}

class ExternalKernel final : public Kernel {
 public:
  ExternalKernel(const OnnxOptKernel& kernel, void* state) : kernel_(kernel), state_(state) {}
  ExternalKernel(const ExternalKernel&) = delete;
  ~ExternalKernel() override {
    if (kernel_.destroy) kernel_.destroy(state_);
  }

  Result<std::vector<TensorType>> outputs(std::span<const Tensor> inputs) const override {
    using Types = Result<std::vector<TensorType>>;
    std::vector<OnnxOptTensor> tensors;
    for (const Tensor& input : inputs) tensors.push_back(shown(input, input.data));
    Taken taken;
    if (const char* sentence = kernel_.outputs(state_, tensors.data(), tensors.size(), &taken)) return Types::failure(sentence);
    return std::move(taken.types);
  }

  Result<bool> run(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                   const Execution& execution) const override {
    if (execution.host_memory && std::string_view(kernel_.isa) == "cuda")
      return Result<bool>::failure("It takes arrays of the device, not of the host.");
    std::vector<OnnxOptTensor> sources, targets;
    for (const Tensor& input : inputs) sources.push_back(shown(input, input.data));
    for (std::size_t i = 0; i < types.size(); ++i) targets.push_back(shown(types[i], outputs[i]));
    const Threads threads(execution);
    const char* sentence = kernel_.run(state_, sources.data(), sources.size(), targets.data(), targets.size(), &threads);
    return sentence ? Result<bool>::failure(sentence) : Result<bool>(true);
  }

 private:
  const OnnxOptKernel& kernel_;
  void* state_;
};

const Op* find_in(std::span<const Op* const> list, std::string_view name) {
  const auto found = std::find_if(list.begin(), list.end(), [&](const Op* op) { return name == op->name; });
  return found == list.end() ? nullptr : *found;
}

bool given(const char* text) { return text != nullptr && *text != '\0'; }

/// What is wrong with a kernel alone; empty where nothing is.
std::string problem_in(const OnnxOptKernel& kernel) {
  if (!given(kernel.domain) || !given(kernel.op) || !given(kernel.variant) || !given(kernel.isa))
    return "A kernel has no domain, op, variant or instruction set.";
  const std::string name = "The kernel '" + std::string(kernel.variant) + "'";
  if (kernel.create == nullptr || kernel.outputs == nullptr || kernel.run == nullptr)
    return name + " lacks 'create', 'outputs' or 'run'.";
  if (std::find(std::begin(kIsas), std::end(kIsas), kernel.isa) == std::end(kIsas))
    return name + " needs the instruction set '" + kernel.isa + "', and should need scalar, avx2, avx512, avx512vnni or cuda.";
  if (std::string_view(kernel.domain) == kDomain && find_in(ours(), kernel.op) == nullptr)
    return name + " is for the op '" + kernel.op + "', which onnxopt does not have.";
  if (std::string_view(kernel.domain) != kDomain && find_in(ours(), kernel.op) != nullptr)
    return "The op '" + std::string(kernel.op) + "' is onnxopt's own, in the domain " + kDomain + ".";
  return "";
}

/// What is wrong with a library beside those that are known; empty where nothing is.
std::string problem_in(const OnnxOptKernelLibrary& library, const std::vector<const OnnxOptKernelLibrary*>& others) {
  std::map<std::string, std::string> domain_of;
  std::map<std::string, int> variants;
  for (const Op* op : ours())
    for (const Variant& variant : op->variants) ++variants[op->name + std::string(" ") + variant.name];
  for (const OnnxOptKernelLibrary* other : others)
    for (const OnnxOptKernel& kernel : kernels_of(*other)) {
      domain_of[kernel.op] = kernel.domain;
      ++variants[kernel.op + std::string(" ") + kernel.variant];
    }
  for (const OnnxOptKernel& kernel : kernels_of(library)) {
    if (std::string problem = problem_in(kernel); !problem.empty()) return problem;
    const std::string& domain = domain_of.try_emplace(kernel.op, kernel.domain).first->second;
    if (domain != kernel.domain) return "The op '" + std::string(kernel.op) + "' is there already, in the domain " + domain + ".";
    if (++variants[kernel.op + std::string(" ") + kernel.variant] > 1)
      return "The op '" + std::string(kernel.op) + "' has a variant '" + kernel.variant + "' already.";
    for (const OnnxOptKernelLibrary* other : others)
      for (const OnnxOptKernel& theirs : kernels_of(*other))
        if (std::string_view(kernel.domain) != kDomain && std::string_view(kernel.domain) == theirs.domain)
          return "Another library has kernels of the domain " + domain + ", which belongs to one library.";
  }
  return "";
}

/// Keeps a library loaded for as long as the process lives: onnxruntime closes the ones that it opened.
bool keep(const OnnxOptKernelLibrary& library) {
  Dl_info info;
  link_map* map = nullptr;
  if (dladdr1(&library, &info, reinterpret_cast<void**>(&map), RTLD_DL_LINKMAP) == 0) return false;
  const bool is_program = *map->l_name == '\0';
  return is_program || dlopen(map->l_name, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE) != nullptr;
}

}  // namespace

Result<bool> add(const OnnxOptKernelLibrary& library) {
  using Added = Result<bool>;
  if (library.abi != ONNXOPT_KERNEL_ABI)
    return Added::failure("It was built for version " + std::to_string(library.abi) +
                          " of the interface of kernels, and this onnxopt has " + std::to_string(ONNXOPT_KERNEL_ABI) +
                          ": build it again.");
  Known& all = known();
  const std::lock_guard lock(all.mutex);
  if (std::find(all.libraries.begin(), all.libraries.end(), &library) != all.libraries.end()) return true;
  if (std::string problem = problem_in(library, all.libraries); !problem.empty()) return Added::failure(std::move(problem));
  if (!keep(library)) return Added::failure("It cannot be kept loaded.");
  all.libraries.push_back(&library);
  for (const OnnxOptKernel& kernel : kernels_of(library)) {
    const auto is_this = [&](const Op& op) { return std::string_view(kernel.op) == op.name; };
    if (std::string_view(kernel.domain) == kDomain || std::any_of(all.ops.begin(), all.ops.end(), is_this)) continue;
    Op& op = all.ops.emplace_back();
    op.name = kernel.op;
    op.domain = kernel.domain;
  }
  return true;
}

std::vector<const Op*> ops(const OnnxOptKernelLibrary* library) {
  Known& all = known();
  const std::lock_guard lock(all.mutex);
  std::vector<const Op*> list;
  for (const Op& op : all.ops) {
    const auto has_it = [&](const OnnxOptKernel& kernel) { return std::string_view(kernel.op) == op.name; };
    if (library == nullptr || std::any_of(library->kernels, library->kernels + library->count, has_it)) list.push_back(&op);
  }
  return list;
}

std::vector<Variant> variants(std::string_view op) {
  Known& all = known();
  const std::lock_guard lock(all.mutex);
  std::vector<Variant> list;
  for (const OnnxOptKernelLibrary* library : all.libraries)
    for (const OnnxOptKernel& kernel : kernels_of(*library))
      if (op == kernel.op) list.push_back({kernel.variant, kernel.isa, &kernel});
  return list;
}

Result<std::unique_ptr<Kernel>> create(const OnnxOptKernel& kernel, const Attributes& attributes) {
  const Shown shown(attributes);
  void* state = nullptr;
  if (const char* sentence = kernel.create(&shown, &state)) return Result<std::unique_ptr<Kernel>>::failure(sentence);
  return std::unique_ptr<Kernel>(std::make_unique<ExternalKernel>(kernel, state));
}

std::string problem_of(const OnnxOptKernel& kernel) {
  const char* const sentence = kernel.problem ? kernel.problem() : nullptr;
  return sentence ? sentence : "";
}

}  // namespace onnxopt::ops::external
