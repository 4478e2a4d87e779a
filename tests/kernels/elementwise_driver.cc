// Runs random programs over random shapes in every variant that this machine has, for the sanitizers, and compares the variants.
//
//     onnxopt_kernel_driver [programs] [seed]
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>

#include "csrc/dispatch/cpu.h"
#include "kernels/cpu/elementwise/elementwise.h"

namespace {

using namespace onnxopt;
using elementwise::Shape;

constexpr const char* kUnary[] = {"neg", "abs",  "sqrt",     "exp",  "log",  "sigmoid", "tanh",
                                  "erf", "relu", "softplus", "gelu", "silu", "mish",    "floor"};
constexpr const char* kBinary[] = {"add", "sub", "mul", "div", "min", "max"};

class Generator {
 public:
  explicit Generator(unsigned seed) : random_(seed) {}

  int below(int limit) { return std::uniform_int_distribution<int>(0, limit - 1)(random_); }

  float value() {
    static const float special[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1e-40f, 3e38f, -3e38f};
    return below(20) == 0 ? special[below(8)] : std::normal_distribution<float>(0, 3)(random_);
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

  Shape domain() {
    Shape shape;
    for (int rank = below(5); rank > 0; --rank) shape.push_back(below(12) == 0 ? 0 : 1 + below(below(4) ? 9 : 700));
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

  std::mt19937 random_;
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

bool run_one(Generator& generator, int number) {
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
  std::vector<std::vector<float>> reference;
  for (const auto& variant : elementwise::variants()) {
    if (!dispatch::supports(variant.isa)) continue;
    std::vector<std::vector<float>> results;
    std::vector<void*> targets;
    for (const Shape& shape : *outputs) results.emplace_back(count_of(shape));
    for (auto& one : results) targets.push_back(one.data());
    const auto done = elementwise::run(*program, variant, {sources, views, targets, *outputs}, ParallelFor::inline_loop());
    if (!done) return false;
    if (reference.empty()) reference = results;
    if (number % 4 == 0)
      for (std::size_t i = 0; i < results.size(); ++i)
        for (std::size_t k = 0; k < results[i].size(); ++k)
          if (text.find("floor") == text.npos && text.find("exp") == text.npos && text.find("log") == text.npos &&
              text.find("div") == text.npos && !alike(results[i][k], reference[i][k])) {
            std::printf("program %d (%s): %s gives %g, %s gives %g\n", number, text.c_str(), variant.name, results[i][k],
                        elementwise::variants()[0].name, reference[i][k]);
            return false;
          }
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const int programs = argc > 1 ? std::atoi(argv[1]) : 300;
  const unsigned seed = argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 1;
  Generator generator(seed);
  for (int i = 0; i < programs; ++i)
    if (!run_one(generator, i)) {
      std::printf("failed with seed %u\n", seed);
      return 1;
    }
  std::printf("%d random programs ran in every variant of this machine\n", programs);
  return 0;
}
