// What the drivers of kernels share: memory with a sharp end, random numbers, and running as many random problems as are asked for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

namespace onnxopt::driver {

/// Memory of just that many elements, of which a sanitizer knows the end.
template <class T>
struct Memory {
  explicit Memory(std::int64_t count, T value = {}) : data(new T[static_cast<std::size_t>(count)]), count(count) {
    std::fill_n(data.get(), count, value);
  }
  T& operator[](std::int64_t i) { return data[static_cast<std::size_t>(i)]; }
  const T& operator[](std::int64_t i) const { return data[static_cast<std::size_t>(i)]; }
  T* get() { return data.get(); }
  const T* get() const { return data.get(); }
  std::unique_ptr<T[]> data;
  std::int64_t count;
};

using Floats = Memory<float>;

struct Random {
  explicit Random(unsigned seed) : engine(seed) {}

  std::int64_t between(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(engine);
  }
  int below(int limit) { return std::uniform_int_distribution<int>(0, limit - 1)(engine); }
  bool sometimes(int one_in) { return below(one_in) == 0; }
  /// Whole numbers of at most that magnitude, whose sums are exact.
  Floats whole(std::int64_t count, int largest) {
    Floats made(count);
    for (std::int64_t i = 0; i < count; ++i) made[i] = static_cast<float>(below(2 * largest + 1) - largest);
    return made;
  }

  std::mt19937 engine;
};

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Calls `run(random, number)` for every problem, of which the first argument says how many and the second the seed, until one
/// fails. Returns what the program returns.
template <class Generator = Random, class Run>
int run_problems(int argc, char** argv, const char* what, const Run& run) {
  const int problems = argc > 1 ? std::atoi(argv[1]) : 300;
  const unsigned seed = argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 1;
  Generator generator(seed);
  for (int i = 0; i < problems; ++i)
    if (!run(generator, i)) {
      std::printf("problem %d failed with seed %u\n", i, seed);
      return 1;
    }
  std::printf("%d random %s ran in every variant of this machine\n", problems, what);
  return 0;
}

}  // namespace onnxopt::driver
