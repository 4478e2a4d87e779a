// Runs random products of bytes in every variant that this machine has, for the sanitizers. All memory is as small as the interface
// allows. Sums are exact, so results must be equal to those of plain loops.
//
//     onnxopt_qgemm_driver [problems] [seed]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "csrc/dispatch/cpu.h"
#include "kernels/cpu/qgemm/qgemm.h"

namespace {

using namespace onnxopt;

/// Memory of just that many elements, of which a sanitizer knows the end.
template <class T>
struct Memory {
  explicit Memory(std::int64_t count) : data(new T[static_cast<std::size_t>(count)]()), count(count) {}
  T& operator[](std::int64_t i) { return data[static_cast<std::size_t>(i)]; }
  std::unique_ptr<T[]> data;
  std::int64_t count;
};

struct Random {
  std::mt19937 engine;
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(engine);
  }
};

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

bool run_problem(Random& random) {
  constexpr auto panel = static_cast<std::int64_t>(qgemm::kPanel), group = static_cast<std::int64_t>(qgemm::kGroup);
  const bool large = random.between(0, 7) == 0;
  const std::int64_t rows = random.between(0, large ? 300 : 30), depth = random.between(0, large ? 1500 : 50);
  const std::int64_t columns = random.between(1, large ? 200 : 60), groups = ceil_div(depth, group);
  const bool floats = random.between(0, 1) == 0;
  Memory<std::uint8_t> bytes(rows * depth);
  Memory<float> numbers(floats ? rows * depth : 0), scales(columns), bias(columns), c(rows * columns);
  Memory<std::int8_t> plain(depth * columns), packed(ceil_div(columns, panel) * groups * panel * group);
  Memory<std::int32_t> sums(columns);
  qgemm::Problem problem{};
  problem.zero = static_cast<std::int32_t>(random.between(0, 255));
  problem.scale = 0.5f;
  for (std::int64_t i = 0; i < bytes.count; ++i) {
    bytes[i] = static_cast<std::uint8_t>(random.between(0, 255));
    if (floats) numbers[i] = 0.5f * static_cast<float>(bytes[i] - problem.zero);
  }
  for (std::int64_t k = 0; k < depth; ++k)
    for (std::int64_t j = 0; j < columns; ++j) {
      const auto weight = static_cast<std::int8_t>(random.between(-128, 127));
      plain[k * columns + j] = weight;
      packed[((j / panel * groups + k / group) * panel + j % panel) * group + k % group] = weight;
      sums[j] += weight;
    }
  for (std::int64_t j = 0; j < columns; ++j) {
    scales[j] = static_cast<float>(random.between(1, 9));
    bias[j] = static_cast<float>(random.between(-9, 9));
  }
  problem.a = floats ? static_cast<const void*>(numbers.data.get()) : bytes.data.get();
  problem.source = floats ? qgemm::Source::kFloat : qgemm::Source::kUint8;
  problem.rows = rows;
  problem.depth = depth;
  problem.columns = columns;
  problem.weights = packed.data.get();
  problem.weight_scales = scales.data.get();
  problem.sums = sums.data.get();
  problem.bias = bias.data.get();
  problem.c = c.data.get();
  for (const qgemm::Variant& variant : qgemm::variants()) {
    if (!dispatch::supports(variant.isa)) continue;
    qgemm::run(problem, variant, ParallelFor::inline_loop());
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t j = 0; j < columns; ++j) {
        std::int64_t sum = 0;
        for (std::int64_t k = 0; k < depth; ++k) sum += (bytes[i * depth + k] - problem.zero) * plain[k * columns + j];
        const float wanted = static_cast<float>(sum) * (0.5f * scales[j]) + bias[j], found = c[i * columns + j];
        if (found != wanted) {
          std::printf("%s: row %lld, column %lld of %lld x %lld x %lld is %g and should be %g\n", variant.name,
                      static_cast<long long>(i), static_cast<long long>(j), static_cast<long long>(rows),
                      static_cast<long long>(depth), static_cast<long long>(columns), static_cast<double>(found),
                      static_cast<double>(wanted));
          return false;
        }
      }
    Memory<std::uint8_t> made(rows * columns);
    problem.c = nullptr;
    problem.bytes = made.data.get();
    qgemm::run(problem, variant, ParallelFor::inline_loop());
    problem.c = c.data.get();
    problem.bytes = nullptr;
    for (std::int64_t i = 0; i < made.count; ++i) {
      const float kept = std::nearbyint(std::min(std::max(c[i], 0.0f), 255.0f));
      if (made[i] != static_cast<std::uint8_t>(kept)) {
        std::printf("%s: element %lld is the byte %d and should be %g\n", variant.name, static_cast<long long>(i), made[i],
                    static_cast<double>(kept));
        return false;
      }
    }
    problem.source = floats ? qgemm::Source::kFloatRows : problem.source;  // of which only memory is watched
    qgemm::run(problem, variant, ParallelFor::inline_loop());
    problem.source = floats ? qgemm::Source::kFloat : problem.source;
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const int problems = argc > 1 ? std::atoi(argv[1]) : 300;
  Random random{std::mt19937(argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 1)};
  for (int i = 0; i < problems; ++i)
    if (!run_problem(random)) return 1;
  std::printf("%d random products of bytes ran in every variant of this machine\n", problems);
  return 0;
}
