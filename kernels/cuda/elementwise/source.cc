#include "kernels/cuda/elementwise/source.h"

#include <algorithm>
#include <bit>

namespace onnxopt::elementwise::cuda {

namespace {

/// Registers for what a thread reads and writes at once, of the 255 that it may have.
constexpr std::size_t kMostRegisters = 128;
/// Operations of a thread's code, of which each is written once for every element: more take seconds to compile.
constexpr std::size_t kMostOperations = 256;

const char* stored_type(DType type) {
  constexpr const char* names[] = {"float", "std::uint16_t", "std::int32_t", "std::int64_t", "std::uint8_t", "std::uint16_t"};
  return names[static_cast<std::size_t>(type)];
}

const char* computed_type(DType type) {
  constexpr const char* names[] = {"float", "float", "std::int32_t", "std::int64_t", "bool", "float"};
  return names[static_cast<std::size_t>(type)];
}

std::string call(const char* function, const std::string& argument) { return std::string(function) + "(" + argument + ")"; }

/// What functions of a type of two bytes are called; empty for other types.
std::string two_bytes(DType type) { return type == DType::f16 ? "half" : type == DType::bf16 ? "brain" : ""; }

/// Calls that function of a type of two bytes; values of other types stay as they are.
std::string converted(const std::string& prefix, DType type, const std::string& value) {
  const std::string name = two_bytes(type);
  return name.empty() ? value : call((prefix + name).c_str(), value);
}

/// A stored value as it is computed with, and the other way round.
std::string loaded(DType type, const std::string& value) {
  return type == DType::boolean ? value + " != 0" : converted("from_", type, value);
}
std::string stored(DType type, const std::string& value) { return converted("to_", type, value); }

/// Every bit of a float is kept.
std::string text_of(float value) { return call("bits<float>", std::to_string(std::bit_cast<std::uint32_t>(value)) + "u"); }

std::string text_of(const Literal& literal) {
  switch (literal.type) {
    case DType::i64: return call("static_cast<std::int64_t>", std::to_string(static_cast<std::uint64_t>(literal.i64)) + "u");
    case DType::i32: return call("static_cast<std::int32_t>", std::to_string(static_cast<std::uint32_t>(literal.i32)) + "u");
    case DType::boolean: return literal.b ? "true" : "false";
    default: return text_of(literal.f);
  }
}

std::string name_of(char kind, std::size_t index) { return kind + std::to_string(index); }

class Writer {
 public:
  Writer(const Program& program, std::span<const std::uint16_t> outputs) : program_(program) {
    source_.outputs.assign(outputs.begin(), outputs.end());
    find_needed();
    choose_elements();
    source_.large = source_.inputs.size() > SmallTensors::kInputs || outputs.size() > SmallTensors::kOutputs;
  }

  Source run() {
    line("#include \"kernels/cuda/elementwise/tensors.h\"");
    line("using namespace onnxopt::elementwise::cuda;");
    line(std::string("using Domain = ") + (source_.large ? "LargeTensors;" : "SmallTensors;"));
    line("constexpr int kElements = " + std::to_string(source_.elements) + ";");
    line("extern \"C\" __global__ void __launch_bounds__(" + std::to_string(kThreads) + ") " + Source::kKernel +
         "(const Domain __grid_constant__ domain) {");
    line("  const std::int64_t threads = static_cast<std::int64_t>(gridDim.x) * blockDim.x;");
    line("  std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kElements;");
    line("  for (; first < domain.elements; first += threads * kElements) {");
    line("    const int count = count_from<kElements>(first, domain.elements);");
    for (std::size_t i = 0; i < source_.inputs.size(); ++i)
      line("    const auto in" + std::to_string(i) + " = read_input<" + stored_type(input_type(i)) + ", kElements>(domain, " +
           std::to_string(i) + ", first, count);");
    for (std::size_t i = 0; i < source_.outputs.size(); ++i)
      line(std::string("    Vector<") + stored_type(output_type(i)) + ", kElements> out" + std::to_string(i) + ";");
    line("    ONNXOPT_UNROLL for (int k = 0; k < kElements; ++k) {");
    for (std::size_t i = 0; i < source_.inputs.size(); ++i)
      define(computed_type(input_type(i)), name_of('i', source_.inputs[i]),
             loaded(input_type(i), "in" + std::to_string(i) + ".values[k]"));
    for (std::size_t i = 0; i < needed_.size(); ++i)
      if (needed_[i]) compute(i);
    for (std::size_t i = 0; i < source_.outputs.size(); ++i)
      line("      out" + std::to_string(i) + ".values[k] = " + stored(output_type(i), name_of('t', source_.outputs[i])) + ";");
    line("    }");
    for (std::size_t i = 0; i < source_.outputs.size(); ++i)
      line("    write_elements(domain.outputs[" + std::to_string(i) + "], first, count, out" + std::to_string(i) + ");");
    line("  }");
    line("}");
    return std::move(source_);
  }

 private:
  DType input_type(std::size_t i) const { return program_.inputs()[source_.inputs[i]]; }
  DType output_type(std::size_t i) const { return program_.instructions()[source_.outputs[i]].result; }

  void line(const std::string& text) { source_.text.append(text).push_back('\n'); }

  void define(const char* type, const std::string& name, const std::string& value) {
    line("      const " + std::string(type) + " " + name + " = " + value + ";");
  }

  void find_needed() {
    needed_.assign(program_.instructions().size(), false);
    std::vector<bool> read(program_.inputs().size(), false);
    for (const std::uint16_t output : source_.outputs) needed_[output] = true;
    for (std::size_t i = needed_.size(); i-- > 0;) {
      if (!needed_[i]) continue;
      for (const Operand& operand : program_.instructions()[i].operands) {
        if (operand.kind == Operand::kTemporary) needed_[operand.index] = true;
        if (operand.kind == Operand::kInput) read[operand.index] = true;
      }
    }
    for (std::size_t i = 0; i < read.size(); ++i)
      if (read[i]) source_.inputs.push_back(static_cast<std::uint16_t>(i));
  }

  /// As many elements as 16 bytes have of the usual type, or of the widest where all are narrow, and the registers suffice for.
  void choose_elements() {
    std::size_t widest = 0, registers = 0;
    const auto add = [&](DType type) {
      widest = std::max(widest, size_of(type));
      registers += size_of(type) > 4 ? 2 : 1;
    };
    for (std::size_t i = 0; i < source_.inputs.size(); ++i) add(input_type(i));
    for (std::size_t i = 0; i < source_.outputs.size(); ++i) add(output_type(i));
    const auto operations = static_cast<std::size_t>(std::count(needed_.begin(), needed_.end(), true));
    std::size_t elements = widest <= 2 ? Narrow::kCount : Usual::kCount;
    while (elements > 1 && (elements * registers > kMostRegisters || elements * operations > kMostOperations)) elements /= 2;
    source_.elements = static_cast<int>(elements);
  }

  void compute(std::size_t index) {
    const Instruction& instruction = program_.instructions()[index];
    const OpInfo& info = op_table()[static_cast<std::size_t>(instruction.op)];
    std::string arguments;
    const auto add = [&](const std::string& text) { arguments.append(arguments.empty() ? "" : ", ").append(text); };
    for (int k = 0; k < info.operands; ++k) add(operand(instruction.operands[k]));
    for (int k = 0; k < info.literals; ++k) add(text_of(instruction.parameters[k]));
    const std::string value = "op_" + std::string(info.name) + "(" + arguments + ")";
    define(computed_type(instruction.result), name_of('t', index), converted("round_to_", instruction.result, value));
  }

  std::string operand(const Operand& operand) const {
    if (operand.kind == Operand::kLiteral) return text_of(program_.literals()[operand.index]);
    return name_of(operand.kind == Operand::kInput ? 'i' : 't', operand.index);
  }

  const Program& program_;
  std::vector<bool> needed_;
  Source source_;
};

}  // namespace

Source source_of(const Program& program, std::span<const std::uint16_t> outputs) { return Writer(program, outputs).run(); }

std::vector<Source> sources_of(const Program& program) {
  const auto statements = program.output_statements();
  std::vector<Source> sources{source_of(program, statements)};
  for (std::size_t i = 0; i < statements.size(); ++i) {
    std::vector<std::uint16_t> alike;
    bool first = true;
    for (std::size_t k = 0; k < statements.size(); ++k) {
      if (program.dependencies(k) != program.dependencies(i)) continue;
      first = first && k >= i;
      alike.push_back(statements[k]);
    }
    if (first && alike.size() < statements.size()) sources.push_back(source_of(program, alike));
  }
  return sources;
}

std::span<const onnxopt::cuda::nvrtc::SourceFile> headers() {
  static constexpr onnxopt::cuda::nvrtc::SourceFile list[] = {
#include "onnxopt_device_headers.inc"
  };
  return list;
}

}  // namespace onnxopt::elementwise::cuda
