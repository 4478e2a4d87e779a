// Runs random products of bytes in every variant that this machine has, for the sanitizers. All memory is as small as the interface
// allows. Sums are exact, so results must be equal to those of plain loops.
//
//     onnxopt_qgemm_driver [problems] [seed]
#include <cmath>
#include <cstdio>

#include "csrc/dispatch/cpu.h"
#include "kernels/cpu/qgemm/qgemm.h"
#include "kernels/cuda/qgemm/qgemm.h"
#include "tests/kernels/driver.h"

namespace {

using namespace onnxopt;
using driver::ceil_div;
using driver::Memory;
using driver::Random;

constexpr std::int64_t kMostMultiplied = 1 << 20;

/// The kernel for CUDA devices, on fibers of the host: what the others made before, once more. Matrix instructions exchange values
/// between fibers, which takes its time.
bool run_emulated(const qgemm::Problem& problem) {
  if (problem.rows == 0 || problem.rows * problem.depth * problem.columns > kMostMultiplied) return true;
  const auto zero = static_cast<std::uint8_t>(problem.zero);
  Memory<float> c(problem.rows * problem.columns);
  qgemm::cuda::Problem emulated;
  emulated.a = problem.a;
  emulated.source = problem.source;
  emulated.of_a = {&problem.scale, &zero};
  emulated.rows = problem.rows;
  emulated.depth = problem.depth;
  emulated.columns = problem.columns;
  emulated.weights = problem.weights;
  emulated.weight_scales = problem.weight_scales;
  emulated.sums = problem.sums;
  emulated.bias = problem.bias;
  emulated.c = c.data.get();
  if (!qgemm::cuda::emulate(emulated)) return false;
  const bool same = std::equal(c.data.get(), c.data.get() + c.count, problem.c);
  if (!same) std::printf("qgemm__cuda_emulated makes other numbers\n");
  return same;
}

bool run_one(Random& random, int) {
  constexpr auto panel = static_cast<std::int64_t>(qgemm::kPanel), group = static_cast<std::int64_t>(qgemm::kGroup);
  const bool large = random.sometimes(8);
  const std::int64_t rows = random.between(0, large ? 300 : 30), depth = random.between(0, large ? 1500 : 50);
  const std::int64_t columns = random.between(1, large ? 200 : 60), groups = ceil_div(depth, group);
  const bool floats = random.sometimes(2);
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
  if (floats) problem.source = qgemm::Source::kFloatRows;  // what the results are of
  return run_emulated(problem);
}

}  // namespace

int main(int argc, char** argv) { return driver::run_problems(argc, argv, "products of bytes", run_one); }
