// The Python module `onnxopt._native`: the library's registry, CPU features, and running one kernel on arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <thread>

#include "csrc/dispatch/cpu.h"
#include "csrc/registry.h"
#include "kernels/cpu/elementwise/elementwise.h"

namespace py = pybind11;

extern "C" const OnnxOptRegistry* onnxopt_registry();

namespace {

using namespace onnxopt;
using elementwise::DType;

constexpr std::size_t kMaxThreads = 256;

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

py::list ops() {
  max_isa();
  const auto list = variants();
  const elementwise::Variant* chosen = dispatch::choose(list);
  py::list described;
  for (const elementwise::Variant& variant : list) {
    py::dict one;
    one["name"] = variant.name;
    one["isa"] = variant.isa;
    one["usable"] = dispatch::usable(variant.isa);
    one["chosen"] = &variant == chosen;
    described.append(one);
  }
  py::dict op;
  op["op"] = "FusedElementwise";
  op["domain"] = "ai.onnxopt";
  op["device"] = "cpu";
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

py::list run(const std::string& op, const std::vector<py::array>& inputs, const py::dict& attributes,
             const std::optional<std::string>& variant_name, std::size_t threads) {
  if (op != "FusedElementwise") throw py::value_error("There is no kernel of the op '" + op + "'.");
  if (threads == 0 || threads > kMaxThreads) throw py::value_error("threads should be between 1 and 256.");
  if (!attributes.contains("expr")) throw py::value_error("FusedElementwise needs the attribute 'expr'.");
  const Result<elementwise::Program> program = elementwise::Program::parse(attributes["expr"].cast<std::string>());
  if (!program) throw py::value_error(program.error());
  const elementwise::Variant& variant = find_variant(variant_name);
  if (inputs.size() != program->inputs().size()) throw py::value_error("The expression has another number of inputs.");
  std::vector<py::array> held;
  std::vector<std::vector<std::int64_t>> shapes;
  std::vector<const void*> data;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].dtype().is(numpy_type(program->inputs()[i])) && !inputs[i].dtype().equal(numpy_type(program->inputs()[i])))
      throw py::value_error("Input " + std::to_string(i) + " should be " + std::string(elementwise::name_of(program->inputs()[i])) +
                            ".");
    held.push_back(py::array::ensure(inputs[i], py::array::c_style));
    shapes.emplace_back(held[i].shape(), held[i].shape() + held[i].ndim());
    data.push_back(held[i].data());
  }
  std::vector<std::span<const std::int64_t>> input_shapes(shapes.begin(), shapes.end());
  const Result<std::vector<elementwise::Shape>> output_shapes = elementwise::output_shapes(*program, input_shapes);
  if (!output_shapes) throw py::value_error(output_shapes.error());
  py::list results;
  std::vector<void*> outputs;
  for (std::size_t i = 0; i < output_shapes->size(); ++i) {
    py::array result(numpy_type(program->outputs()[i]), (*output_shapes)[i]);
    outputs.push_back(result.mutable_data());
    results.append(result);
  }
  const elementwise::Arguments arguments{data, input_shapes, outputs, *output_shapes};
  const Result<bool> done = [&] {
    py::gil_scoped_release release;
    return elementwise::run(*program, variant, arguments, threads > 1 ? threads_of(threads) : ParallelFor::inline_loop());
  }();
  if (!done) throw py::value_error(done.error());
  return results;
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
}
