// Parsing and checking of programs, and the shapes of their outputs.
#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <numeric>
#include <optional>

#include "kernels/cpu/elementwise/plan.h"

namespace onnxopt::elementwise {

namespace {

constexpr OpInfo kOps[] = {
#define ELEMENTWISE_OP(name, operands, literals, domain, result, cost) {#name, operands, literals, #domain, #result, cost},
#include "kernels/cpu/elementwise/ops.inc"
#undef ELEMENTWISE_OP
};

constexpr std::string_view kTypeNames[] = {"f32", "f16", "i32", "i64", "bool", "bf16"};

bool is_float(DType type) { return type == DType::f32 || type == DType::f16 || type == DType::bf16; }

bool accepts(std::string_view domain, DType type) {
  if (domain == "A") return true;
  if (domain == "B") return type == DType::boolean;
  if (domain == "F") return is_float(type);
  if (domain == "FF") return type == DType::f32;
  return type != DType::boolean;
}

std::optional<DType> type_named(std::string_view name) {
  for (std::size_t i = 0; i < std::size(kTypeNames); ++i)
    if (kTypeNames[i] == name) return static_cast<DType>(i);
  return std::nullopt;
}

/// The start of a text for a sentence, of which every runtime and language can read every byte.
std::string quoted(std::string_view text) {
  std::string result(1, '\'');
  for (char c : text.substr(0, 80)) result.push_back(c >= ' ' && c <= '~' ? c : '?');
  result.push_back('\'');
  return result;
}

}  // namespace

std::string text_of(std::span<const std::int64_t> shape) {
  std::string text(1, '[');
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i) text.push_back(',');
    text.append(std::to_string(shape[i]));
  }
  text.push_back(']');
  return text;
}

std::size_t size_of(DType type) {
  constexpr std::size_t sizes[] = {4, 2, 4, 8, 1, 2};
  return sizes[static_cast<std::size_t>(type)];
}

std::string_view name_of(DType type) { return kTypeNames[static_cast<std::size_t>(type)]; }

std::span<const OpInfo> op_table() { return kOps; }

/// Reads the text from left to right; the first problem ends it with a sentence.
class Parser {
 public:
  explicit Parser(std::string_view text) : rest_(text) {}

  Result<Program> run() {
    if (!parse_inputs() || !parse_statements() || !parse_outputs())
      return Result<Program>::failure("The expression is malformed: " + error_);
    find_dependencies();
    std::vector<std::size_t> outputs(program_.outputs_.size());
    std::iota(outputs.begin(), outputs.end(), std::size_t{0});
    program_.schedule_ = std::make_shared<const Schedule>(make_schedule(program_, outputs));
    return std::move(program_);
  }

 private:
  bool fail(std::string sentence) {
    error_ = std::move(sentence);
    return false;
  }

  /// The next item of a section; empty at its end, which '|' or the end of the text marks.
  std::string_view next() {
    while (!rest_.empty() && rest_.front() == ' ') rest_.remove_prefix(1);
    if (rest_.empty() || rest_.front() == '|') return {};
    std::size_t end = rest_.find_first_of(" |");
    std::string_view item = rest_.substr(0, end);
    rest_.remove_prefix(item.size());
    return item;
  }

  bool end_of_section() {
    if (rest_.empty() || rest_.front() != '|') return fail("a section ends without '|'.");
    rest_.remove_prefix(1);
    return true;
  }

  bool parse_inputs() {
    for (std::string_view item = next(); !item.empty(); item = next()) {
      std::size_t colon = item.find(':');
      auto type = colon == item.npos ? std::nullopt : type_named(item.substr(colon + 1));
      if (!type || item.substr(0, colon) != "i" + std::to_string(program_.inputs_.size()))
        return fail("input " + quoted(item) + " should be i" + std::to_string(program_.inputs_.size()) + " with a type.");
      if (program_.inputs_.size() == Program::kMaxInputs) return fail("it has more than 32 inputs.");
      program_.inputs_.push_back(*type);
    }
    return end_of_section();
  }

  bool parse_statements() {
    for (std::string_view item = next(); !item.empty(); item = next()) {
      if (program_.instructions_.size() == Program::kMaxStatements) return fail("it has more than 256 statements.");
      if (!parse_statement(item)) return false;
    }
    if (program_.instructions_.empty()) return fail("it has no statement.");
    return end_of_section();
  }

  bool parse_statement(std::string_view item) {
    std::string name = "t" + std::to_string(program_.instructions_.size()) + "=";
    std::size_t open = item.find('(');
    if (item.substr(0, name.size()) != name || open == item.npos || item.back() != ')')
      return fail("statement " + quoted(item) + " should read " + name + "op(operands).");
    std::string_view op_name = item.substr(name.size(), open - name.size());
    auto info = std::find_if(std::begin(kOps), std::end(kOps), [&](const OpInfo& op) { return op.name == op_name; });
    if (info == std::end(kOps)) return fail("there is no operation " + quoted(op_name) + ".");
    return parse_operands(item.substr(open + 1, item.size() - open - 2), *info, item);
  }

  bool parse_operands(std::string_view list, const OpInfo& info, std::string_view item) {
    Instruction instruction{static_cast<Op>(&info - kOps), DType::f32, DType::f32, {}, {0, 0}};
    DType types[3] = {};
    int count = 0;
    while (!list.empty()) {
      std::size_t comma = list.find(',');
      std::string_view token = list.substr(0, comma);
      list = comma == list.npos ? std::string_view{} : list.substr(comma + 1);
      if (count < info.operands) {
        if (!parse_operand(token, instruction.operands[count], types[count])) return false;
      } else if (count < info.operands + info.literals) {
        Literal literal;
        if (!parse_literal(token, literal)) return false;
        if (!is_float(literal.type)) return fail("parameter " + quoted(token) + " should be a float.");
        instruction.parameters[count - info.operands] = literal.f;
      }
      ++count;
    }
    if (count != info.operands + info.literals)
      return fail(quoted(item) + " has " + std::to_string(count) + " operands and should have " +
                  std::to_string(info.operands + info.literals) + ".");
    return check_types(instruction, info, types, item);
  }

  bool check_types(Instruction& instruction, const OpInfo& info, const DType* types, std::string_view item) {
    int first = 0;
    if (instruction.op == Op::k_where) {
      if (types[0] != DType::boolean) return fail("the condition of " + quoted(item) + " should be bool.");
      first = 1;
    }
    instruction.type = types[first];
    for (int i = first; i < info.operands; ++i) {
      if (types[i] != types[first]) return fail("the operands of " + quoted(item) + " have different types.");
      if (!accepts(info.domain, types[i]))
        return fail(quoted(item) + " is not defined for " + std::string(name_of(types[i])) + ".");
    }
    if (info.result == "same")
      instruction.result = instruction.type;
    else
      instruction.result = *type_named(info.result == "boolean" ? "bool" : info.result);
    program_.instructions_.push_back(instruction);
    return true;
  }

  bool parse_operand(std::string_view token, Operand& operand, DType& type) {
    if (!token.empty() && token.front() == '#') {
      Literal literal;
      if (!parse_literal(token, literal)) return false;
      operand = {Operand::kLiteral, static_cast<std::uint16_t>(program_.literals_.size())};
      type = literal.type;
      program_.literals_.push_back(literal);
      return true;
    }
    std::optional<std::size_t> index = parse_index(token);
    bool input = index && token.front() == 'i';
    if (!index || *index >= (input ? program_.inputs_.size() : program_.instructions_.size()))
      return fail("operand " + quoted(token) + " is neither an input, nor an earlier statement, nor a literal.");
    operand = {input ? Operand::kInput : Operand::kTemporary, static_cast<std::uint16_t>(*index)};
    type = input ? program_.inputs_[*index] : program_.instructions_[*index].result;
    return true;
  }

  static std::optional<std::size_t> parse_index(std::string_view token) {
    if (token.size() < 2 || token.size() > 4 || (token[0] != 'i' && token[0] != 't')) return std::nullopt;
    std::size_t index = 0;
    for (char digit : token.substr(1)) {
      if (digit < '0' || digit > '9') return std::nullopt;
      index = index * 10 + static_cast<std::size_t>(digit - '0');
    }
    return index;
  }

  bool parse_literal(std::string_view token, Literal& literal) {
    std::size_t colon = token.find(':');
    auto type = colon == token.npos ? std::nullopt : type_named(token.substr(colon + 1));
    if (!type || token.front() != '#' || colon < 2) return fail("literal " + quoted(token) + " should read #value:type.");
    literal.type = *type;
    literal.i64 = 0;
    std::string number(token.substr(1, colon - 1));
    char* end = nullptr;
    errno = 0;
    if (*type == DType::boolean) {
      literal.b = number == "true";
      if (number != "true" && number != "false") return fail("literal " + quoted(token) + " should be true or false.");
      return true;
    }
    if (is_float(*type))
      literal.f = std::strtof(number.c_str(), &end);
    else
      literal.i64 = std::strtoll(number.c_str(), &end, 10);
    bool overflow = errno == ERANGE && !is_float(*type);
    overflow |= *type == DType::i32 && literal.i64 != static_cast<std::int32_t>(literal.i64);
    if (end != number.c_str() + number.size() || overflow)
      return fail("literal " + quoted(token) + " is not a number of its type.");
    if (*type == DType::i32) literal.i32 = static_cast<std::int32_t>(literal.i64);
    return true;
  }

  bool parse_outputs() {
    for (std::string_view item = next(); !item.empty(); item = next()) {
      std::size_t colon = item.find(':');
      auto index = colon == item.npos || item.front() != 't' ? std::nullopt : parse_index(item.substr(0, colon));
      auto type = colon == item.npos ? std::nullopt : type_named(item.substr(colon + 1));
      if (!index || *index >= program_.instructions_.size() || type != program_.instructions_[*index].result)
        return fail("output " + quoted(item) + " should be a statement with its type.");
      if (program_.outputs_.size() == Program::kMaxOutputs) return fail("it has more than 16 outputs.");
      program_.outputs_.push_back(static_cast<std::uint16_t>(*index));
      program_.output_types_.push_back(*type);
    }
    if (!rest_.empty()) return fail("something follows the outputs: " + quoted(rest_) + ".");
    return program_.outputs_.empty() ? fail("it has no output.") : true;
  }

  void find_dependencies() {
    std::vector<std::uint32_t> reads(program_.instructions_.size(), 0);
    for (std::size_t i = 0; i < reads.size(); ++i)
      for (const Operand& operand : program_.instructions_[i].operands) {
        if (operand.kind == Operand::kInput) reads[i] |= 1u << operand.index;
        if (operand.kind == Operand::kTemporary) reads[i] |= reads[operand.index];
      }
    for (std::uint16_t output : program_.outputs_) program_.dependencies_.push_back(reads[output]);
  }

  std::string_view rest_;
  Program program_;
  std::string error_;
};

Result<Program> Program::parse(std::string_view text) { return Parser(text).run(); }

bool Program::is_for_devices() const {
  const auto is_brain = [](const Instruction& one) { return one.type == DType::bf16 || one.result == DType::bf16; };
  return std::any_of(instructions_.begin(), instructions_.end(), is_brain) ||
         std::any_of(inputs_.begin(), inputs_.end(), [](DType type) { return type == DType::bf16; });
}

Result<std::vector<Shape>> output_shapes(const Program& program, std::span<const std::span<const std::int64_t>> inputs) {
  std::vector<Shape> shapes;
  for (std::size_t output = 0; output < program.outputs().size(); ++output) {
    Shape shape;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (!(program.dependencies(output) >> i & 1)) continue;
      if (inputs[i].size() > shape.size()) shape.insert(shape.begin(), inputs[i].size() - shape.size(), 1);
      std::size_t skip = shape.size() - inputs[i].size();
      for (std::size_t axis = 0; axis < inputs[i].size(); ++axis) {
        std::int64_t& dim = shape[skip + axis];
        std::int64_t size = inputs[i][axis];
        if (dim != size && dim != 1 && size != 1)
          return Result<std::vector<Shape>>::failure("Input " + std::to_string(i) + " of shape " + text_of(inputs[i]) +
                                                     " cannot be broadcast with the inputs before it, of shape " + text_of(shape) +
                                                     " together.");
        if (dim == 1) dim = size;
      }
    }
    shapes.push_back(std::move(shape));
  }
  return shapes;
}

#define ELEMENTWISE_VARIANT(space, isa)                              \
  namespace space {                                                  \
  void run(const Plan&, std::int64_t begin, std::int64_t end);       \
  void run_tile(const Schedule&, const Place* table, std::size_t n); \
  }
#include "kernels/cpu/elementwise/variants.inc"
#undef ELEMENTWISE_VARIANT

std::span<const Variant> variants() {
  static constexpr Variant kVariants[] = {
#define ELEMENTWISE_VARIANT(space, isa) {"elementwise__" #space, isa, &space::run, &space::run_tile},
#include "kernels/cpu/elementwise/variants.inc"
#undef ELEMENTWISE_VARIANT
  };
  return kVariants;
}

}  // namespace onnxopt::elementwise
