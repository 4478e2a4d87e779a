// The Python module `onnxopt._native`: the library's registry, CPU features, and running one kernel on arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <functional>
#include <thread>

#include "csrc/dispatch/cpu.h"
#include "csrc/registry.h"
#include "kernels/cpu/elementwise/elementwise.h"
#include "kernels/cuda/elementwise/elementwise.h"

namespace py = pybind11;

extern "C" const OnnxOptRegistry* onnxopt_registry();

namespace {

using namespace onnxopt;
using elementwise::DType;

constexpr std::size_t kMaxThreads = 256;
constexpr const char* kCudaVariant = "elementwise__cuda";
/// The code of the CUDA kernel on the host: for tests, never chosen.
constexpr const char* kEmulatedVariant = "elementwise__cuda_emulated";

py::dtype numpy_type(DType type) {
  switch (type) {
    case DType::f32: return py::dtype("float32");
    case DType::f16: return py::dtype("float16");
    case DType::i32: return py::dtype("int32");
    case DType::i64: return py::dtype("int64");
    case DType::boolean: return py::dtype("bool");
  }
  throw py::value_error("unknown element type");
}

std::span<const elementwise::Variant> variants() {
  const OnnxOptRegistry* registry = onnxopt_registry();
  return {registry->elementwise, registry->elementwise_count};
}

std::string_view max_isa() {
  const Result<std::string_view> isa = dispatch::max_isa();
  if (!isa) throw py::value_error(isa.error());
  return *isa;
}

/// Why the CUDA kernels cannot run here; empty when they can.
std::string cuda_problem() {
  const auto* interpreter = onnxopt_registry()->elementwise_on_cuda;
  return interpreter == nullptr ? "This build of onnxopt has no CUDA kernels." : interpreter->problem();
}

py::dict describe_variant(const char* name, const char* isa, const char* device, bool chosen, const std::string& problem) {
  py::dict one;
  one["name"] = name;
  one["isa"] = isa;
  one["device"] = device;
  one["usable"] = problem.empty();
  one["chosen"] = chosen;
  one["problem"] = problem;
  return one;
}

py::list ops() {
  max_isa();
  const auto list = variants();
  const elementwise::Variant* chosen = dispatch::choose(list);
  py::list described;
  for (const elementwise::Variant& variant : list) {
    const char* problem = dispatch::usable(variant.isa)     ? ""
                          : dispatch::supports(variant.isa) ? "ONNXOPT_MAX_ISA excludes it."
                                                            : "This processor cannot run it.";
    described.append(describe_variant(variant.name, variant.isa, "cpu", &variant == chosen, problem));
  }
  const std::string problem = cuda_problem();
  described.append(describe_variant(kCudaVariant, "cuda", "cuda", problem.empty(), problem));
  py::dict op;
  op["op"] = "FusedElementwise";
  op["domain"] = "ai.onnxopt";
  op["attributes"] = py::make_tuple("expr");
  op["variants"] = described;
  py::list all;
  all.append(op);
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

const elementwise::Variant& find_variant(const std::optional<std::string>& name) {
  const auto list = variants();
  if (!name) {
    max_isa();
    return *dispatch::choose(list);
  }
  for (const elementwise::Variant& variant : list)
    if (*name == variant.name) {
      if (!dispatch::supports(variant.isa)) throw py::value_error("This processor cannot run the variant '" + *name + "'.");
      return variant;
    }
  throw py::value_error("There is no variant '" + *name + "'.");
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

/// Runs a parsed program on tensors.
using Executor = std::function<Result<bool>(const elementwise::Program&, const elementwise::Arguments&)>;

Executor executor(const std::optional<std::string>& variant_name, std::size_t threads) {
  if (variant_name == kEmulatedVariant) return elementwise::cuda::emulate;
  if (variant_name == kCudaVariant) {
    if (const std::string problem = cuda_problem(); !problem.empty()) throw py::value_error(problem);
    return onnxopt_registry()->elementwise_on_cuda->run_on_copies;
  }
  const elementwise::Variant& variant = find_variant(variant_name);
  return [&variant, threads](const elementwise::Program& program, const elementwise::Arguments& arguments) {
    std::size_t count = threads;
    return elementwise::run(program, variant, arguments, count > 1 ? threads_of(count) : ParallelFor::inline_loop());
  };
}

elementwise::Program parse(const std::string& op, const py::dict& attributes) {
  if (op != "FusedElementwise") throw py::value_error("There is no kernel of the op '" + op + "'.");
  if (!attributes.contains("expr")) throw py::value_error("FusedElementwise needs the attribute 'expr'.");
  Result<elementwise::Program> program = elementwise::Program::parse(attributes["expr"].cast<std::string>());
  if (!program) throw py::value_error(program.error());
  return std::move(*program);
}

std::vector<elementwise::Shape> shapes_of_outputs(const elementwise::Program& program,
                                                  const std::vector<std::span<const std::int64_t>>& inputs) {
  Result<std::vector<elementwise::Shape>> shapes = elementwise::output_shapes(program, inputs);
  if (!shapes) throw py::value_error(shapes.error());
  return std::move(*shapes);
}

void check_type(const py::dtype& type, DType expected, const std::string& tensor) {
  if (!type.equal(numpy_type(expected)))
    throw py::value_error(tensor + " should be " + std::string(elementwise::name_of(expected)) + ".");
}

py::list run(const std::string& op, const std::vector<py::array>& inputs, const py::dict& attributes,
             const std::optional<std::string>& variant, std::size_t threads) {
  if (threads == 0 || threads > kMaxThreads) throw py::value_error("threads should be between 1 and 256.");
  const elementwise::Program program = parse(op, attributes);
  const Executor execute = executor(variant, threads);
  if (inputs.size() != program.inputs().size()) throw py::value_error("The expression has another number of inputs.");
  std::vector<py::array> held;
  std::vector<elementwise::Shape> shapes;
  std::vector<const void*> data;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    check_type(inputs[i].dtype(), program.inputs()[i], "Input " + std::to_string(i));
    held.push_back(py::array::ensure(inputs[i], py::array::c_style));
    shapes.emplace_back(held[i].shape(), held[i].shape() + held[i].ndim());
    data.push_back(held[i].data());
  }
  const std::vector<std::span<const std::int64_t>> input_shapes(shapes.begin(), shapes.end());
  const std::vector<elementwise::Shape> output_shapes = shapes_of_outputs(program, input_shapes);
  py::list results;
  std::vector<void*> outputs;
  for (std::size_t i = 0; i < output_shapes.size(); ++i) {
    py::array result(numpy_type(program.outputs()[i]), output_shapes[i]);
    outputs.push_back(result.mutable_data());
    results.append(result);
  }
  const Result<bool> done = [&] {
    py::gil_scoped_release release;
    return execute(program, {data, input_shapes, outputs, output_shapes});
  }();
  if (!done) throw py::value_error(done.error());
  return results;
}

/// A tensor of the device that another library owns, by the protocol `__cuda_array_interface__`.
struct DeviceArray {
  void* data;
  elementwise::Shape shape;
};

DeviceArray device_array(const py::handle& object, DType type, bool written, const std::string& name) {
  if (!py::hasattr(object, "__cuda_array_interface__")) throw py::value_error(name + " has no __cuda_array_interface__.");
  const py::dict interface = object.attr("__cuda_array_interface__");
  check_type(py::dtype(interface["typestr"].cast<std::string>()), type, name);
  DeviceArray array{nullptr, interface["shape"].cast<elementwise::Shape>()};
  const auto [address, read_only] = interface["data"].cast<std::pair<std::uintptr_t, bool>>();
  array.data = reinterpret_cast<void*>(address);
  if (written && read_only) throw py::value_error(name + " cannot be written.");
  if (!interface.contains("strides") || interface["strides"].is_none()) return array;
  const auto strides = interface["strides"].cast<elementwise::Shape>();
  auto step = static_cast<std::int64_t>(elementwise::size_of(type));
  for (std::size_t axis = array.shape.size(); axis-- > 0; step *= array.shape[axis])
    if (array.shape[axis] != 1 && strides[axis] != step) throw py::value_error(name + " is not contiguous.");
  return array;
}

void run_on_device(const std::string& op, const py::sequence& inputs, const py::sequence& outputs, const py::dict& attributes,
                   std::uintptr_t stream) {
  const elementwise::Program program = parse(op, attributes);
  if (inputs.size() != program.inputs().size() || outputs.size() != program.outputs().size())
    throw py::value_error("The expression has another number of inputs or outputs.");
  std::vector<elementwise::Shape> shapes;
  std::vector<const void*> sources;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    DeviceArray array = device_array(inputs[i], program.inputs()[i], false, "Input " + std::to_string(i));
    sources.push_back(array.data);
    shapes.push_back(std::move(array.shape));
  }
  const std::vector<std::span<const std::int64_t>> input_shapes(shapes.begin(), shapes.end());
  const std::vector<elementwise::Shape> output_shapes = shapes_of_outputs(program, input_shapes);
  std::vector<void*> targets;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const std::string name = "Output " + std::to_string(i);
    const DeviceArray array = device_array(outputs[i], program.outputs()[i], true, name);
    if (array.shape != output_shapes[i]) throw py::value_error(name + " has another shape than the expression gives.");
    targets.push_back(array.data);
  }
  if (const std::string problem = cuda_problem(); !problem.empty()) throw py::value_error(problem);
  const Result<bool> done = onnxopt_registry()->elementwise_on_cuda->run(program, {sources, input_shapes, targets, output_shapes},
                                                                         reinterpret_cast<void*>(stream));
  if (!done) throw py::value_error(done.error());
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "The native side of onnxopt: kernels on arrays, and what this machine can run.";
  module.def("cpu_features", [] { return dispatch::instruction_sets(); }, "Instruction sets that this machine runs, best first.");
  module.def("max_isa", &max_isa, "The best instruction set that may be chosen (ONNXOPT_MAX_ISA caps it).");
  module.def("ops", &ops, "Every custom op with its kernel variants.");
  module.def("elementwise_ops", &elementwise_ops, "The operations of FusedElementwise: name, operands, literals, domain, result.");
  module.def("run", &run, py::arg("op"), py::arg("inputs"), py::arg("attributes"), py::arg("variant") = py::none(),
             py::arg("threads") = 1, "Run one kernel on numpy arrays and return its outputs.");
  module.def("cuda_problem", &cuda_problem, "Why the CUDA kernels cannot run here; empty when they can.");
  module.def("run_on_device", &run_on_device, py::arg("op"), py::arg("inputs"), py::arg("outputs"), py::arg("attributes"),
             py::arg("stream") = 0,
             "Start the CUDA kernel on arrays that have __cuda_array_interface__. It runs on `stream`, an address, in the order of "
             "what was started there before; 0 is CUDA's default stream.");
}
