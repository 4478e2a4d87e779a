// The Python module `onnxopt._native`: the library's registry, CPU features, and running one kernel on arrays.
#include <dlfcn.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <iterator>
#include <thread>

#include "csrc/dispatch/cpu.h"
#include "csrc/dispatch/gpu.h"
#include "csrc/ops/op.h"
#include "csrc/python/dlpack.h"
#include "csrc/python/panels.h"
#include "csrc/python/products.h"
#include "csrc/registry.h"
#include "python/onnxopt/include/onnxopt/kernel.h"

namespace py = pybind11;

extern "C" const OnnxOptRegistry* onnxopt_registry();

namespace {

using namespace onnxopt;

constexpr std::size_t kMaxThreads = 256;

struct NumpyType {
  int type;
  const char* name;
};
constexpr NumpyType kNumpyTypes[] = {{ops::kFloat, "float32"},   {ops::kUint8, "uint8"},   {ops::kInt8, "int8"},
                                     {ops::kInt32, "int32"},     {ops::kInt64, "int64"},   {ops::kBool, "bool"},
                                     {ops::kFloat16, "float16"}, {ops::kDouble, "float64"}};

/// Whether a type is one of ml_dtypes, which numpy does not know by itself.
bool is_foreign(const py::dtype& type, const char* name) { return py::str(type.attr("name")).equal(py::str(name)); }

py::dtype numpy_type(int type) {
  if (type == ops::kBfloat16) return py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16"));
  for (const NumpyType& one : kNumpyTypes)
    if (one.type == type) return py::dtype(one.name);
  throw py::value_error("numpy has no type for elements of type " + ops::name_of(type) + ".");
}

/// The type of an array's elements, or -1 for one that no kernel takes.
int element_type(const py::dtype& type) {
  for (const NumpyType& one : kNumpyTypes)
    if (type.equal(py::dtype(one.name))) return one.type;
  return is_foreign(type, "bfloat16") ? static_cast<int>(ops::kBfloat16) : -1;
}

/// Whether an array has the elements of ml_dtypes' int4, of which it keeps one in a byte.
bool is_int4(const py::array& array) { return is_foreign(array.dtype(), "int4"); }

/// Two integers of 4 bits in a byte, as ONNX keeps them.
py::array halves_of(const py::array& array) {
  const auto* const numbers = static_cast<const std::uint8_t*>(array.data());
  const py::ssize_t count = array.size();
  py::array_t<std::uint8_t> made((count + 1) / 2);
  std::uint8_t* const bytes = made.mutable_data();
  for (py::ssize_t i = 0; i < count; i += 2)
    bytes[i / 2] = static_cast<std::uint8_t>((numbers[i] & 15) | (i + 1 < count ? numbers[i + 1] << 4 : 0));
  return made;
}

/// The attributes of a call, by name.
class Attributes final : public ops::Attributes {
 public:
  explicit Attributes(const py::dict& values) : values_(values) {}
  std::optional<std::string> string(const char* name) const override { return get<std::string>(name); }
  std::optional<std::int64_t> integer(const char* name) const override { return get<std::int64_t>(name); }
  std::optional<float> real(const char* name) const override { return get<float>(name); }
  std::optional<std::vector<std::int64_t>> integers(const char* name) const override {
    return get<std::vector<std::int64_t>>(name);
  }

 private:
  template <typename T>
  std::optional<T> get(const char* name) const {
    return values_.contains(name) ? std::optional(values_[name].cast<T>()) : std::nullopt;
  }

  const py::dict& values_;
};

std::string_view max_isa() {
  const Result<std::string_view> isa = dispatch::max_isa();
  if (!isa) throw py::value_error(isa.error());
  return *isa;
}

/// `chosen` are those for the processor and for the CUDA device.
py::dict describe(const ops::Variant& variant, const Result<ops::Variant>& chosen, const Result<ops::Variant>& chosen_on_device) {
  const std::string problem = onnxopt_registry()->problem_of(variant);
  py::dict one;
  one["name"] = variant.name;
  one["isa"] = variant.isa;
  const Result<ops::Variant>& best = variant.is_cuda() ? chosen_on_device : chosen;
  one["device"] = variant.is_cuda() ? "cuda" : "cpu";
  one["usable"] = problem.empty();
  one["chosen"] = problem.empty() && best && std::string_view(best->name) == variant.name;
  one["problem"] = problem;
  return one;
}

py::list describe_ops() {
  max_isa();
  py::list all;
  for (const ops::Op* op : onnxopt_registry()->all()) {
    const Result<ops::Variant> chosen = onnxopt_registry()->choose(*op), on_device = onnxopt_registry()->choose_cuda(*op);
    py::list variants;
    for (const ops::Variant& variant : onnxopt_registry()->variants(*op)) variants.append(describe(variant, chosen, on_device));
    py::dict one;
    one["op"] = op->name;
    one["domain"] = op->domain;
    one["attributes"] = py::tuple(py::cast(std::vector<std::string>(op->attributes.begin(), op->attributes.end())));
    one["variants"] = variants;
    all.append(one);
  }
  return all;
}

py::list elementwise_ops() {
  const OnnxOptRegistry* registry = onnxopt_registry();
  py::list all;
  for (std::size_t i = 0; i < registry->elementwise_op_count; ++i) {
    const elementwise::OpInfo& info = registry->elementwise_ops[i];
    all.append(py::make_tuple(info.name, info.operands, info.literals, info.domain, info.result));
  }
  return all;
}

const ops::Op& find_op(const std::string& name) {
  for (const ops::Op* op : onnxopt_registry()->all())
    if (name == op->name) return *op;
  throw py::value_error("There is no op '" + name + "'.");
}

/// The variant of that name, or what this processor and ONNXOPT_MAX_ISA choose; a listed one has to run here.
ops::Variant find_variant(const ops::Op& op, const std::optional<std::string>& name) {
  if (!name) {
    max_isa();
    const Result<ops::Variant> chosen = onnxopt_registry()->choose(op);
    if (!chosen) throw py::value_error(chosen.error());
    return *chosen;
  }
  for (const ops::Variant& variant : onnxopt_registry()->variants(op)) {
    if (*name != variant.name) continue;
    if (!variant.is_cuda() && !dispatch::supports(variant.isa))
      throw py::value_error("This processor cannot run the variant '" + *name + "'.");
    const std::string problem = variant.external    ? onnxopt_registry()->problem_of(variant)
                                : variant.is_cuda() ? onnxopt_registry()->cuda_problem()
                                                    : "";
    if (!problem.empty()) throw py::value_error(problem);
    return variant;
  }
  return {name->c_str(), "scalar"};  // what tests alone know
}

Result<std::unique_ptr<ops::Kernel>> try_kernel(const std::string& op, const py::dict& attributes,
                                                const std::optional<std::string>& variant) {
  const ops::Op& found = find_op(op);
  return onnxopt_registry()->create(found, find_variant(found, variant), Attributes(attributes));
}

std::unique_ptr<ops::Kernel> make_kernel(const std::string& op, const py::dict& attributes,
                                         const std::optional<std::string>& variant) {
  Result<std::unique_ptr<ops::Kernel>> kernel = try_kernel(op, attributes, variant);
  if (!kernel) throw py::value_error(kernel.error());
  return std::move(*kernel);
}

std::string refusal(const std::string& op, const py::dict& attributes, const std::string& variant) {
  const Result<std::unique_ptr<ops::Kernel>> kernel = try_kernel(op, attributes, variant);
  return kernel ? "" : kernel.error();
}

void load_kernels(const std::string& path) {
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw py::value_error(dlerror());
  auto* const kernels = reinterpret_cast<decltype(&onnxopt_kernels)>(dlsym(library, "onnxopt_kernels"));
  const Result<bool> added =
      kernels ? onnxopt_registry()->add(*kernels()) : Result<bool>::failure("It has no kernels: ONNXOPT_KERNELS defines them.");
  if (added) return;  // it stays loaded
  dlclose(library);
  throw py::value_error(added.error());
}

/// Threads made for one call: good enough for tests and benchmarks, where onnxruntime's pool is not at hand.
ParallelFor threads_of(std::size_t& count) {
  return {[](void* pool, std::size_t total, ParallelFor::Task task, void* user) {
            std::atomic<std::size_t> next{0};
            auto work = [&] {
              for (std::size_t i = next++; i < total; i = next++) task(user, i);
            };
            std::vector<std::thread> others;
            for (std::size_t i = 1; i < *static_cast<std::size_t*>(pool); ++i) others.emplace_back(work);
            work();
            for (std::thread& thread : others) thread.join();
          },
          &count};
}

std::vector<ops::TensorType> types_of_outputs(const ops::Kernel& kernel, const std::vector<ops::Tensor>& inputs) {
  Result<std::vector<ops::TensorType>> types = kernel.outputs(inputs);
  if (!types) throw py::value_error(types.error());
  return std::move(*types);
}

void run_kernel(const ops::Kernel& kernel, const std::vector<ops::Tensor>& inputs, const std::vector<ops::TensorType>& types,
                const std::vector<void*>& outputs, const ops::Execution& execution) {
  const Result<bool> done = [&] {
    py::gil_scoped_release release;
    return kernel.run(inputs, types, outputs, execution);
  }();
  if (!done) throw py::value_error(done.error());
}

std::vector<ops::Made> make_outputs(const ops::Kernel& kernel, const std::vector<ops::Tensor>& inputs,
                                    const ops::Execution& execution) {
  Result<std::vector<ops::Made>> made = [&] {
    py::gil_scoped_release release;
    return kernel.make(inputs, execution);
  }();
  if (!made) throw py::value_error(made.error());
  return std::move(*made);
}

/// What is given to one call: tensors, and the objects that own their memory.
class Inputs {
 public:
  void add(const py::object& object, const std::string& name) {
    if (object.is_none()) {
      tensors_.emplace_back();
    } else if (!py::isinstance<py::array>(object) && python::exports_tensor(object)) {
      tensors_.push_back(borrowed_.emplace_back(object, name, false).tensor());
    } else {
      add(py::array::ensure(object, py::array::c_style), name);
    }
  }

  const std::vector<ops::Tensor>& tensors() const { return tensors_; }

 private:
  void add(const py::array& array, const std::string& name) {
    if (!array) throw py::value_error(name + " is no array.");
    const py::array& one = held_.emplace_back(array);
    ops::Tensor tensor;
    tensor.type = element_type(one.dtype());
    tensor.shape.assign(one.shape(), one.shape() + one.ndim());
    tensor.data = one.data();
    if (is_int4(one)) {
      tensor.type = ops::kInt4;
      tensor.data = held_.emplace_back(halves_of(one)).data();
    }
    tensors_.push_back(std::move(tensor));
  }

  std::vector<py::array> held_;
  std::vector<python::Borrowed> borrowed_;
  std::vector<ops::Tensor> tensors_;
};

py::list run(const std::string& op, const std::vector<py::object>& inputs, const py::dict& attributes,
             const std::optional<std::string>& variant, std::size_t threads) {
  if (threads == 0 || threads > kMaxThreads) throw py::value_error("threads should be between 1 and 256.");
  const std::unique_ptr<ops::Kernel> kernel = make_kernel(op, attributes, variant);
  Inputs given;
  for (std::size_t i = 0; i < inputs.size(); ++i) given.add(inputs[i], "Input " + std::to_string(i));
  const std::vector<ops::Tensor>& tensors = given.tensors();
  py::list results;
  ops::Execution execution{threads > 1 ? threads_of(threads) : ParallelFor::inline_loop()};
  execution.host_memory = true;
  if (kernel->shapes_by_run()) {
    for (const ops::Made& made : make_outputs(*kernel, tensors, execution)) {
      py::array result(numpy_type(made.type), made.shape);
      std::copy(made.bytes.begin(), made.bytes.end(), static_cast<std::byte*>(result.mutable_data()));
      results.append(result);
    }
    return results;
  }
  const std::vector<ops::TensorType> types = types_of_outputs(*kernel, tensors);
  std::vector<void*> outputs;
  for (const ops::TensorType& type : types) {
    py::array result(numpy_type(type.type), type.shape);
    outputs.push_back(result.mutable_data());
    results.append(result);
  }
  run_kernel(*kernel, tensors, types, outputs, execution);
  return results;
}

std::int64_t occupy(const std::string& op, std::int64_t rounds, const std::optional<std::string>& variant) {
  if (rounds < 1) throw py::value_error("rounds should be positive.");
  const ops::Op& found = find_op(op);
  if (found.occupy == nullptr) throw py::value_error(op + " has no loop of registers alone.");
  const ops::Variant chosen = find_variant(found, variant);
  const py::gil_scoped_release release;
  return found.occupy(chosen.name, rounds);
}

/// A tensor of the device that another library owns, by the protocol `__cuda_array_interface__`.
ops::Tensor device_tensor(const py::handle& object, bool written, const std::string& name) {
  const py::dict interface = object.attr("__cuda_array_interface__");
  const py::dtype type(interface["typestr"].cast<std::string>());
  ops::Tensor tensor;
  tensor.type = element_type(type);
  const auto shape = interface["shape"].cast<std::vector<std::int64_t>>();
  tensor.shape.assign(shape.begin(), shape.end());
  const auto [address, read_only] = interface["data"].cast<std::pair<std::uintptr_t, bool>>();
  tensor.data = reinterpret_cast<void*>(address);
  if (written && read_only) throw py::value_error(name + " cannot be written.");
  if (!interface.contains("strides") || interface["strides"].is_none()) return tensor;
  const auto strides = interface["strides"].cast<std::vector<std::int64_t>>();
  auto step = static_cast<std::int64_t>(type.itemsize());
  for (std::size_t axis = tensor.shape.size(); axis-- > 0; step *= tensor.shape[axis])
    if (tensor.shape[axis] != 1 && strides[axis] != step) throw py::value_error(name + " is not contiguous.");
  return tensor;
}

void run_on_device(const std::string& op, const py::sequence& inputs, const py::sequence& outputs, const py::dict& attributes,
                   std::uintptr_t stream) {
  const ops::Op& found = find_op(op);
  std::vector<python::Borrowed> borrowed;
  const auto tensor_of = [&](const py::handle& object, bool written, const std::string& name) {
    if (py::hasattr(object, "__cuda_array_interface__")) return device_tensor(object, written, name);
    if (!python::exports_tensor(object)) throw py::value_error(name + " has no __cuda_array_interface__ and no __dlpack__.");
    return borrowed.emplace_back(object, name, true, stream).tensor();
  };
  std::vector<ops::Tensor> sources, targets;
  for (std::size_t i = 0; i < inputs.size(); ++i) sources.push_back(tensor_of(inputs[i], false, "Input " + std::to_string(i)));
  for (std::size_t i = 0; i < outputs.size(); ++i) targets.push_back(tensor_of(outputs[i], true, "Output " + std::to_string(i)));
  // What is wrong with the arrays is told on every machine, also by the kernel for the processor.
  const std::vector<ops::TensorType> types = types_of_outputs(*make_kernel(op, attributes, std::nullopt), sources);
  if (types.size() != targets.size()) throw py::value_error("The op makes another number of outputs.");
  std::vector<void*> memory;
  for (std::size_t i = 0; i < types.size(); ++i) {
    if (targets[i].type != types[i].type)
      throw py::value_error("Output " + std::to_string(i) + " should be " + ops::name_of(types[i].type) + ".");
    if (targets[i].shape != types[i].shape)
      throw py::value_error("Output " + std::to_string(i) + " should have the shape " + ops::text_of(types[i].shape) + ".");
    memory.push_back(const_cast<void*>(targets[i].data));
  }
  const Result<ops::Variant> variant = onnxopt_registry()->choose_cuda(found);
  if (!variant) throw py::value_error(variant.error());
  ops::Execution execution{ParallelFor::inline_loop()};
  execution.stream = reinterpret_cast<void*>(stream);
  run_kernel(*make_kernel(op, attributes, variant->name), sources, types, memory, execution);
}

template <class T>
T value_or_error(Result<T> result) {
  if (!result) throw py::value_error(result.error());
  return std::move(*result);
}

const ops::CudaSourceTools& cuda_source() { return *onnxopt_registry()->cuda_source; }

std::string cuda_choice(const std::string& op, int sm) {
  return value_or_error(onnxopt_registry()->choose_for_sm(find_op(op), sm)).name;
}

ops::Tensor tensor_of(const py::array& array) {
  if (!(array.flags() & py::array::c_style)) throw py::value_error("An array is not contiguous.");
  ops::Tensor tensor;
  tensor.type = element_type(array.dtype());
  tensor.shape.assign(array.shape(), array.shape() + array.ndim());
  tensor.data = array.data();
  return tensor;
}

py::list cuda_launches(const std::string& expression, const std::vector<py::array>& inputs, const std::vector<py::array>& outputs) {
  std::vector<ops::Tensor> sources, targets;
  std::transform(inputs.begin(), inputs.end(), std::back_inserter(sources), tensor_of);
  std::transform(outputs.begin(), outputs.end(), std::back_inserter(targets), tensor_of);
  py::list list;
  for (const ops::CudaLaunch& launch : value_or_error(cuda_source().launches(expression, sources, targets)))
    list.append(py::make_tuple(launch.source, py::bytes(launch.parameter), launch.blocks, launch.threads));
  return list;
}

py::tuple nvrtc() {
  const ops::CudaCompiler compiler = value_or_error(cuda_source().compiler());
  return py::make_tuple(py::make_tuple(compiler.major, compiler.minor), compiler.architectures);
}

py::bytes compile_cuda(const std::string& source, int sm) { return value_or_error(cuda_source().compile(source, sm)); }

void check_device() {
  if (const std::string problem = onnxopt_registry()->cuda_problem(); !problem.empty()) throw py::value_error(problem);
}

py::dict device_limits() {
  check_device();
  const cuda::Limits limits = value_or_error(onnxopt_registry()->device_limits());
  py::dict made;
  made["name"] = limits.name;
  made["cache_bytes"] = limits.cache_bytes;
  made["copying"] = limits.copying;
  made["float32"] = limits.float32;
  return made;
}

py::tuple time_on_device(const std::string& op, const std::vector<py::array>& inputs, const py::dict& attributes,
                         const std::string& variant, int sets, int bursts, int starts) {
  check_device();
  if (sets < 1 || bursts < 1 || starts < 1) throw py::value_error("sets, bursts and starts should be at least 1.");
  const std::unique_ptr<ops::Kernel> kernel = make_kernel(op, attributes, variant);
  std::vector<ops::Tensor> tensors;
  std::transform(inputs.begin(), inputs.end(), std::back_inserter(tensors), tensor_of);
  const std::vector<ops::TensorType> types = types_of_outputs(*kernel, tensors);
  py::list results;
  std::vector<void*> outputs;
  for (const ops::TensorType& type : types) {
    py::array result(numpy_type(type.type), type.shape);
    outputs.push_back(result.mutable_data());
    results.append(result);
  }
  return py::make_tuple(
      results, value_or_error(onnxopt_registry()->time_on_device(*kernel, tensors, types, outputs, {sets, bursts, starts})));
}

/// Constants [columns, rows, taps] of any strides.
panels::Source panels_source(const py::array& array, std::size_t width) {
  constexpr py::ssize_t kAxes = 3;
  if (array.ndim() != kAxes || width == 0) throw py::value_error("Panels are made of [columns, rows, taps] and have a width.");
  if (!panels::takes(static_cast<std::size_t>(array.itemsize()))) throw py::value_error("Elements of that size are not moved.");
  const auto size = [&](int axis) { return static_cast<std::size_t>(array.shape(axis)); };
  return {static_cast<const std::byte*>(array.data()),
          static_cast<std::size_t>(array.itemsize()),
          size(0),
          size(1),
          size(2),
          array.strides(0),
          array.strides(1),
          array.strides(2)};
}

py::array make_panels(const py::array& array, std::size_t width) {
  const panels::Source source = panels_source(array, width);
  const panels::Layout layout(source, width);
  py::array result(array.dtype(), std::vector<std::size_t>{layout.panels, source.taps, source.rows, width});
  auto* target = static_cast<std::byte*>(result.mutable_data());
  const py::gil_scoped_release release;
  panels::fill(source, layout, target);
  return result;
}

void write_panels(int file, const py::array& array, std::size_t width, std::size_t block_bytes, std::size_t threads) {
  const panels::Source source = panels_source(array, width);
  const panels::Layout layout(source, width);
  const int error = [&] {
    const py::gil_scoped_release release;
    return panels::append(source, layout, file, block_bytes, threads);
  }();
  if (error == 0) return;
  errno = error;
  PyErr_SetFromErrno(PyExc_OSError);
  throw py::error_already_set();
}

/// The axes of weights, and how a factor that broadcasts to them goes along.
std::vector<products::Axis> broadcast_axes(const py::array& weights, const py::array& factor) {
  const py::ssize_t extra = weights.ndim() - factor.ndim();
  if (extra < 0) throw py::value_error("The factor has more axes than the weights.");
  std::vector<products::Axis> axes(static_cast<std::size_t>(weights.ndim()));
  std::size_t step = 1;
  for (py::ssize_t axis = weights.ndim() - 1; axis >= 0; --axis) {
    const py::ssize_t size = axis < extra ? 1 : factor.shape(axis - extra);
    if (size != 1 && size != weights.shape(axis)) throw py::value_error("The factor does not broadcast to the weights.");
    axes[static_cast<std::size_t>(axis)] = {static_cast<std::size_t>(weights.shape(axis)), size == 1 ? 0 : step};
    step *= static_cast<std::size_t>(size);
  }
  return axes;
}

py::object multiply_weights(const py::array& weights, const py::array_t<double, py::array::c_style>& factor) {
  const auto usual = py::dtype::of<float>();
  if (!weights.dtype().is(usual) && !weights.dtype().equal(usual)) throw py::value_error("The weights are not float32.");
  if (!(weights.flags() & py::array::c_style)) throw py::value_error("The weights do not lie in order.");
  const std::vector<products::Axis> axes = products::merged(broadcast_axes(weights, factor));
  py::array result(usual, std::vector<py::ssize_t>(weights.shape(), weights.shape() + weights.ndim()));
  const auto* source = static_cast<const std::byte*>(weights.data());
  auto* target = static_cast<float*>(result.mutable_data());
  const bool finite = [&] {
    const py::gil_scoped_release release;
    return weights.size() == 0 || products::multiply(source, factor.data(), axes, target);
  }();
  return finite ? py::object(result) : py::none();
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "The native side of onnxopt: kernels on arrays, and what this machine can run.";
  module.def("cpu_features", [] { return dispatch::instruction_sets(); }, "Instruction sets that this machine runs, best first.");
  module.def("max_isa", &max_isa, "The best instruction set that may be chosen (ONNXOPT_MAX_ISA caps it).");
  module.def("ops", &describe_ops, "Every custom op with its kernel variants.");
  module.def("elementwise_ops", &elementwise_ops, "The operations of expressions: name, operands, literals, domain, result.");
  module.def(
      "run", &run, py::arg("op"), py::arg("inputs"), py::arg("attributes"), py::arg("variant") = py::none(), py::arg("threads") = 1,
      "Run one kernel on arrays of numpy, or of others that export them by DLPack (None leaves an input out), and return its "
      "outputs, which are numpy's.");
  module.def("cuda_choice", &cuda_choice, py::arg("op"), py::arg("sm"),
             "The variant of an op for CUDA devices of an architecture (90 is sm_90), under ONNXOPT_MAX_SM and ONNXOPT_TF32.");
  module.def(
      "cuda_sources", [](const std::string& expr) { return value_or_error(cuda_source().sources(expr)); }, py::arg("expr"),
      "An expression as CUDA source: the kernel of all outputs first.");
  module.def(
      "cuda_launches", &cuda_launches, py::arg("expr"), py::arg("inputs"), py::arg("outputs"),
      "How the kernels of `cuda_sources` are launched for arrays: (source, bytes of the parameter, blocks, threads) for each.");
  module.def("nvrtc", &nvrtc, "The version of the NVRTC that compiles expressions, and the architectures that it knows.");
  module.def("compile_cuda", &compile_cuda, py::arg("source"), py::arg("sm"),
             "What NVRTC makes of a source for devices of an architecture: machine code, or PTX where it is older.");
  module.def("device_limits", &device_limits, "The current CUDA device: its name, its cache, and what it does at most.");
  module.def(
      "time_on_device", &time_on_device, py::arg("op"), py::arg("inputs"), py::arg("attributes"), py::arg("variant"),
      py::arg("sets"), py::arg("bursts"), py::arg("starts"),
      "Copy arrays to the device in several sets, run one kernel on them in turn, and return its outputs and the milliseconds "
      "of a run in each burst.");
  module.def("occupy", &occupy, py::arg("op"), py::arg("rounds"), py::arg("variant") = py::none(),
             "Multiply registers alone with a variant's instructions and return the number of products, 0 where that says nothing: "
             "over its time, the ceiling of the op's kernel.");
  module.def("refusal", &refusal, py::arg("op"), py::arg("attributes"), py::arg("variant"),
             "Why a variant takes no node of such attributes; empty where it does.");
  module.def("load_kernels", &load_kernels, py::arg("path"), "Make the kernels of a library of the user's known, for good.");
  module.def(
      "multiply_weights", &multiply_weights, py::arg("weights"), py::arg("factor"),
      "Weights of float32 times a factor that broadcasts to them, multiplied in float64 and rounded once; None where a product "
      "is not finite.");
  module.def("make_panels", &make_panels, py::arg("array"), py::arg("width"),
             "Constants [columns, rows, taps] as panels [ceil(columns / width), taps, rows, width], missing columns being zero.");
  module.def("write_panels", &write_panels, py::arg("file"), py::arg("array"), py::arg("width"), py::arg("block_bytes"),
             py::arg("threads"),
             "Append what make_panels makes to an open file, block by block; each thread needs the memory of one block.");
  module.def(
      "cuda_problem", [] { return onnxopt_registry()->cuda_problem(); },
      "Why the CUDA kernels cannot run here; empty when they can.");
  module.def("run_on_device", &run_on_device, py::arg("op"), py::arg("inputs"), py::arg("outputs"), py::arg("attributes"),
             py::arg("stream") = 0,
             "Start the CUDA kernel on arrays that have __cuda_array_interface__ or export themselves by DLPack. It runs on "
             "`stream`, an address, in the order of "
             "what was started there before; 0 is CUDA's default stream.");
}
