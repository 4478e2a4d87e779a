// Runs random programs over random shapes in every variant that this machine has, for the sanitizers, and compares the variants;
// the code of the CUDA kernel runs on the host.
//
//     onnxopt_kernel_driver [programs] [seed]
#include <cmath>
#include <cstring>
#include <string>

#include "csrc/dispatch/cpu.h"
#include "kernels/cpu/elementwise/elementwise.h"
#include "kernels/cuda/elementwise/elementwise.h"
#include "kernels/cuda/elementwise/pack.h"
#include "tests/kernels/driver.h"

namespace {

using namespace onnxopt;
using elementwise::Shape;

constexpr const char* kUnary[] = {"neg", "abs",  "sqrt",     "exp",  "log",  "sigmoid", "tanh",
                                  "erf", "relu", "softplus", "gelu", "silu", "mish",    "floor"};
constexpr const char* kBinary[] = {"add", "sub", "mul", "div", "min", "max"};

class Generator : public driver::Random {
 public:
  using Random::Random;

  float value() {
    static const float special[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1e-40f, 3e38f, -3e38f};
    return below(20) == 0 ? special[below(8)] : std::normal_distribution<float>(0, 3)(engine);
  }

  std::string program(int inputs, int statements) {
    std::string text;
    for (int i = 0; i < inputs; ++i) text += "i" + std::to_string(i) + ":f32 ";
    text += "|";
    for (int i = 0; i < statements; ++i) {
      text += " t" + std::to_string(i) + "=";
      if (below(2))
        text += std::string(kUnary[below(std::size(kUnary))]) + "(" + operand(inputs, i) + ")";
      else
        text += std::string(kBinary[below(std::size(kBinary))]) + "(" + operand(inputs, i) + "," + operand(inputs, i) + ")";
    }
    return text + " | t" + std::to_string(statements - 1) + ":f32 t" + std::to_string(below(statements)) + ":f32";
  }

  /// At most two dims are long, so that memory suffices.
  Shape domain() {
    Shape shape;
    int long_dims = 2;
    for (int rank = below(5); rank > 0; --rank) {
      const bool is_long = below(4) == 0 && long_dims-- > 0;
      shape.push_back(below(12) == 0 ? 0 : 1 + below(is_long ? 700 : 9));
    }
    return shape;
  }

  /// A shape that broadcasts to `domain`.
  Shape operand_shape(const Shape& domain) {
    Shape shape(domain.begin() + below(static_cast<int>(domain.size()) + 1), domain.end());
    for (auto& dim : shape)
      if (below(3) == 0) dim = 1;
    return shape;
  }

 private:
  std::string operand(int inputs, int statements) {
    const int choice = below(inputs + statements + 1);
    if (choice < inputs) return "i" + std::to_string(choice);
    return choice < inputs + statements ? "t" + std::to_string(choice - inputs) : "#0x1.8p+0:f32";
  }
};

std::size_t count_of(const Shape& shape) {
  std::size_t count = 1;
  for (auto dim : shape) count *= static_cast<std::size_t>(dim);
  return count;
}

/// Whether two results of different arithmetic agree: they may round differently, and what is discontinuous may differ by a step.
bool alike(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return true;
  return a == b || std::fabs(a - b) <= 1e-2f * std::max(1.0f, std::max(std::fabs(a), std::fabs(b))) || std::fabs(a) > 1e5f;
}

/// Whether a program has no operation that makes a large difference of a small one.
bool is_smooth(const std::string& text) {
  constexpr const char* steep[] = {"floor", "exp", "log", "div"};
  return std::none_of(std::begin(steep), std::end(steep), [&](const char* op) { return text.find(op) != text.npos; });
}

/// Dividing by multiplying, as the CUDA kernel does.
bool divides_exactly(Generator& generator) {
  constexpr int largest = 2147483647;
  const int size = generator.below(2) ? 1 + generator.below(largest) : 1 + generator.below(1000);
  const elementwise::cuda::Dim dim = elementwise::cuda::dim_of(size);
  for (std::int64_t n :
       {0, generator.below(largest), size - 1, size, largest - largest % size - 1, largest - largest % size, largest})
    if (elementwise::cuda::divide(n, dim, true) != n / size) {
      std::printf("%lld / %d is wrong\n", static_cast<long long>(n), size);
      return false;
    }
  return true;
}

/// Domains too large for a test find their elements as small ones do, only with slower divisions.
struct SameOffsets {
  template <class L, class Code>
  Result<bool> operator()(const Code& code, unsigned) const {
    Code wide = code;
    wide.narrow = false;
    for (std::int64_t element = 0; element < code.elements; element += 7)
      for (int i = 0; i < code.statement_count; ++i) {
        const auto& statement = code.statements[i];
        if (statement.kind != statement.kLoad) continue;
        const auto& input = code.inputs[statement.tensor];
        if (offset_of(code, input, element) != offset_of(wide, input, element))
          return Result<bool>::failure("An element is looked for in two places.");
      }
    return true;
  }
};

/// No slot of a thread of a block overlaps another one.
struct SlotsLieApart {
  template <class L, class Code>
  Result<bool> operator()() const {
    using namespace elementwise::cuda;
    constexpr unsigned threads = 64, slots = 5;
    std::vector<Chunk<16>> memory(sizeof(L) * threads * slots / sizeof(Chunk<16>));
    const auto value = [](unsigned slot, unsigned thread, int k) {
      return static_cast<typename L::Word>((slot * threads + thread) * L::kCount + static_cast<unsigned>(k));
    };
    const auto for_each_place = [&](const auto& visit) {
      for (unsigned slot = 0; slot < slots; ++slot)
        for (unsigned thread = 0; thread < threads; ++thread) visit(Slots<L>{memory.data(), thread, threads}, slot, thread);
    };
    for_each_place([&](const Slots<L>& of_thread, unsigned slot, unsigned thread) {
      L lanes;
      for (int k = 0; k < L::kCount; ++k) lanes.words[k] = value(slot, thread, k);
      of_thread.put(slot, lanes);
    });
    bool same = true;
    for_each_place([&](const Slots<L>& of_thread, unsigned slot, unsigned thread) {
      const L lanes = of_thread.get(slot);
      for (int k = 0; k < L::kCount; ++k) same = same && lanes.words[k] == value(slot, thread, k);
    });
    return same ? Result<bool>(true) : Result<bool>::failure("Slots of threads overlap.");
  }
};

bool run_program(Generator& generator, int number) {
  const int inputs = 1 + generator.below(4);
  const std::string text = generator.program(inputs, 1 + generator.below(12));
  const auto program = elementwise::Program::parse(text);
  if (!program) {
    std::printf("program %d does not parse: %s\n", number, program.error().c_str());
    return false;
  }
  const Shape domain = generator.domain();
  std::vector<Shape> shapes;
  std::vector<std::vector<float>> data;
  for (int i = 0; i < inputs; ++i) {
    shapes.push_back(generator.operand_shape(domain));
    data.emplace_back(count_of(shapes.back()));
    for (float& value : data.back()) value = generator.value();
  }
  std::vector<std::span<const std::int64_t>> views(shapes.begin(), shapes.end());
  const auto outputs = elementwise::output_shapes(*program, views);
  if (!outputs) return false;
  std::vector<const void*> sources;
  for (const auto& one : data) sources.push_back(one.data());
  const auto execute = [&](const auto& run) {
    std::vector<std::vector<float>> results;
    std::vector<void*> targets;
    for (const Shape& shape : *outputs) results.emplace_back(count_of(shape));
    for (auto& one : results) targets.push_back(one.data());
    const Result<bool> done = run(elementwise::Arguments{sources, views, targets, *outputs});
    return done ? results : std::vector<std::vector<float>>{};
  };
  std::vector<std::vector<float>> reference;
  const auto agree = [&](const std::vector<std::vector<float>>& results, const char* name) {
    if (results.empty()) return false;
    if (reference.empty()) reference = results;
    if (number % 4 != 0 || !is_smooth(text)) return true;
    for (std::size_t i = 0; i < results.size(); ++i)
      for (std::size_t k = 0; k < results[i].size(); ++k)
        if (!alike(results[i][k], reference[i][k])) {
          std::printf("program %d (%s): %s gives %g, %s gives %g\n", number, text.c_str(), name, results[i][k],
                      elementwise::variants()[0].name, reference[i][k]);
          return false;
        }
    return true;
  };
  for (const auto& variant : elementwise::variants()) {
    if (!dispatch::supports(variant.isa)) continue;
    const auto run = [&](const auto& arguments) {
      return elementwise::run(*program, variant, arguments, ParallelFor::inline_loop());
    };
    if (!agree(execute(run), variant.name)) return false;
  }
  const auto emulate = [&](const auto& arguments) { return elementwise::cuda::emulate(*program, arguments); };
  if (!agree(execute(emulate), "elementwise__cuda_emulated")) return false;
  const auto look = [&](const elementwise::Plan& plan) { return elementwise::cuda::with_code(*program, plan, SameOffsets{}); };
  const auto offsets = [&](const auto& arguments) { return elementwise::for_each_plan(*program, arguments, look); };
  if (execute(offsets).empty()) {
    std::printf("program %d looks for an element in two places\n", number);
    return false;
  }
  return true;
}

bool run_one(Generator& generator, int number) { return run_program(generator, number) && divides_exactly(generator); }

}  // namespace

int main(int argc, char** argv) {
  if (const Result<bool> apart = elementwise::cuda::for_each_form(SlotsLieApart{}); !apart) {
    std::printf("%s\n", apart.error().c_str());
    return 1;
  }
  return driver::run_problems<Generator>(argc, argv, "programs", run_one);
}
