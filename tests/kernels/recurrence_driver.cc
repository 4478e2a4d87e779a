// Runs random recurrences in every variant that this machine has, with one and two threads, for the sanitizers. All memory is as
// small as the interface allows. The numbers are whole and small, so that results must be equal to those of plain loops.
//
//     onnxopt_recurrence_driver [recurrences] [seed]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "csrc/dispatch/cpu.h"
#include "kernels/cpu/gemm/panel.h"
#include "kernels/cpu/recurrence/recurrence.h"

namespace {

using namespace onnxopt;

/// Memory of just that many floats, of which a sanitizer knows the end.
struct Floats {
  explicit Floats(std::int64_t count) : data(new float[static_cast<std::size_t>(count)]), count(count) {}
  std::unique_ptr<float[]> data;
  std::int64_t count;
};

class Generator {
 public:
  explicit Generator(unsigned seed) : random_(seed) {}
  int below(int limit) { return std::uniform_int_distribution<int>(0, limit - 1)(random_); }
  Floats whole(std::int64_t count, int largest) {
    Floats made(count);
    for (std::int64_t i = 0; i < count; ++i) made.data[i] = static_cast<float>(below(2 * largest + 1) - largest);
    return made;
  }

 private:
  std::mt19937 random_;
};

/// h = clip(h W + b + x, -8, 8) with a product, else clip(h + x, -8, 8), whose results are stacked.
struct Case {
  std::int64_t steps, rows, width;
  bool product, reverse, reverse_stacked;
  Floats x, h, weights, packed, bias;
};

Case draw(Generator& generator) {
  const bool product = generator.below(3) != 0, large = generator.below(6) == 0;
  const std::int64_t steps = generator.below(6), rows = 1 + generator.below(generator.below(3) == 0 ? 20 : 3);
  const std::int64_t width = 1 + generator.below(large ? 300 : 70);
  constexpr auto panel = static_cast<std::int64_t>(gemm::kPanel);
  Case made{steps,
            rows,
            width,
            product,
            generator.below(2) != 0,
            generator.below(2) != 0,
            generator.whole(steps * rows * width, 3),
            generator.whole(rows * width, 3),
            generator.whole(width * width, 1),
            Floats((width + panel - 1) / panel * panel * width),
            generator.whole(width, 2)};
  std::fill_n(made.packed.data.get(), made.packed.count, 0.0f);
  for (std::int64_t k = 0; k < width; ++k)
    for (std::int64_t j = 0; j < width; ++j)
      made.packed.data[(j / panel * width + k) * panel + j % panel] = made.weights.data[k * width + j];
  return made;
}

/// The stacked results, and the final one behind them.
Floats expected(const Case& one) {
  const std::int64_t size = one.rows * one.width;
  Floats made((one.steps + 1) * size);
  std::vector<float> state(one.h.data.get(), one.h.data.get() + size), next(state.size());
  for (std::int64_t t = 0; t < one.steps; ++t) {
    const float* const x = one.x.data.get() + (one.reverse ? one.steps - 1 - t : t) * size;
    for (std::int64_t i = 0; i < size; ++i) {
      const std::int64_t row = i / one.width * one.width, j = i % one.width;
      float sum = one.product ? one.bias.data[j] : state[static_cast<std::size_t>(i)];
      for (std::int64_t k = 0; one.product && k < one.width; ++k)
        sum += state[static_cast<std::size_t>(row + k)] * one.weights.data[k * one.width + j];
      next[static_cast<std::size_t>(i)] = std::clamp(sum + x[i], -8.0f, 8.0f);
    }
    state = next;
    std::copy(state.begin(), state.end(), made.data.get() + (one.reverse_stacked ? one.steps - 1 - t : t) * size);
  }
  std::copy(state.begin(), state.end(), made.data.get() + one.steps * size);
  return made;
}

void run_threads(void*, std::size_t total, ParallelFor::Task task, void* user) {
  std::vector<std::thread> threads;
  for (std::size_t i = 1; i < total; ++i) threads.emplace_back(task, user, i);
  if (total > 0) task(user, 0);
  for (std::thread& thread : threads) thread.join();
}

bool run_case(const Case& one, const recurrence::Variant& variant, const ParallelFor& parallel_for, const Floats& wanted) {
  const char* const program = "i0:f32 i1:f32 | t0=add(i0,i1) t1=clip(t0,#-0x1p+3:f32,#0x1p+3:f32) | t1:f32";
  const recurrence::Counts counts{1, 1, 1, one.product ? 1u : 0u};
  const std::string text = one.product ? "0@0+2 ! 3 1 ! " + std::string(program) : " ! 0 1 ! " + std::string(program);
  const std::size_t result = one.product ? 4 : 3;
  const auto step = recurrence::parse(text, counts, {result}, {result});
  if (!step) {
    std::printf("%s\n", step.error().c_str());
    return false;
  }
  const auto list = elementwise::variants();
  const auto same_isa = [&](const auto& other) { return std::string_view(other.isa) == variant.isa; };
  const std::int64_t size = one.rows * one.width, bytes = size * static_cast<std::int64_t>(sizeof(float));
  Floats stacked(one.steps * size), last(size);
  const float* const initial[] = {one.h.data.get()};
  const recurrence::Sequence sequences[] = {{reinterpret_cast<const char*>(one.x.data.get()), bytes, one.reverse}};
  const recurrence::Sequence outputs[] = {{reinterpret_cast<const char*>(stacked.data.get()), bytes, one.reverse_stacked}};
  const void* const invariants[] = {one.bias.data.get()};
  const elementwise::Shape shapes[] = {{one.rows, one.width}, {one.width}};
  const float* const matrices[] = {one.packed.data.get()};
  float* const finals[] = {last.data.get()};
  const recurrence::Problem problem{
      &*step, {one.rows, one.width}, one.steps, initial, sequences, invariants, shapes, matrices, finals, outputs};
  if (!recurrence::run(problem, variant, *std::find_if(list.begin(), list.end(), same_isa), parallel_for)) return false;
  for (std::int64_t i = 0; i < wanted.count; ++i) {
    const float actual = i < stacked.count ? stacked.data[i] : last.data[i - stacked.count];
    if (actual == wanted.data[i]) continue;
    std::printf("%s: element %lld is %g and should be %g\n", variant.name, static_cast<long long>(i), static_cast<double>(actual),
                static_cast<double>(wanted.data[i]));
    return false;
  }
  return true;
}

/// h = clip(h + x m + r, -8, 8) with x of each row, m of each column and r of each batch, and the sums of h over the columns.
bool run_sums(Generator& generator, const recurrence::Variant& variant, const ParallelFor& parallel_for) {
  const char* const program =
      "i0:f32 i1:f32 i2:f32 i3:f32 | t0=mul(i1,i2) t1=add(t0,i0) t2=add(t1,i3) t3=clip(t2,#-0x1p+3:f32,#0x1p+3:f32) | t3:f32";
  const std::int64_t steps = generator.below(5), batch = 1 + generator.below(3), channels = 1 + generator.below(80);
  const std::int64_t width = 1 + generator.below(generator.below(4) == 0 ? 120 : 20), rows = batch * channels, size = rows * width;
  const auto step = recurrence::parse(" ! 0 1 2 3 ! " + std::string(program), {1, 2, 1, 0}, {4}, {4}, {true});
  if (!step) return false;
  const Floats h = generator.whole(size, 3), x = generator.whole(steps * rows, 2), r = generator.whole(steps * batch * width, 2);
  const Floats m = generator.whole(width, 2);
  Floats sums(steps * rows), last(size);
  const auto bytes = [](std::int64_t floats) { return floats * static_cast<std::int64_t>(sizeof(float)); };
  const auto chars = [](const Floats& floats) { return reinterpret_cast<const char*>(floats.data.get()); };
  const float* const initial[] = {h.data.get()};
  const recurrence::Sequence sequences[] = {{chars(x), bytes(rows), false}, {chars(r), bytes(batch * width), true}};
  const recurrence::Sequence outputs[] = {{chars(sums), bytes(rows), false}};
  const void* const invariants[] = {m.data.get()};
  // The second sequence is read as i3, the invariant as i2.
  const elementwise::Shape shapes[] = {{batch, channels, 1}, {batch, 1, width}, {width}};
  float* const finals[] = {last.data.get()};
  recurrence::Step changed = *step;
  changed.phases[0].operands = {0, 1, 3, 2};
  const recurrence::Problem problem{&changed, {batch, channels, width}, steps, initial, sequences, invariants, shapes, {}, finals,
                                    outputs};
  const auto list = elementwise::variants();
  const auto same_isa = [&](const auto& other) { return std::string_view(other.isa) == variant.isa; };
  if (!recurrence::run(problem, variant, *std::find_if(list.begin(), list.end(), same_isa), parallel_for)) return false;
  std::vector<float> state(h.data.get(), h.data.get() + size);
  for (std::int64_t t = 0; t < steps; ++t)
    for (std::int64_t row = 0; row < rows; ++row) {
      float sum = 0;
      for (std::int64_t i = 0; i < width; ++i) {
        float& one = state[static_cast<std::size_t>(row * width + i)];
        const float added = r.data[((steps - 1 - t) * batch + row / channels) * width + i];
        one = std::clamp(one + x.data[t * rows + row] * m.data[i] + added, -8.0f, 8.0f);
        sum += one;
      }
      if (sum == sums.data[t * rows + row]) continue;
      std::printf("%s: the sum of row %lld is %g and should be %g\n", variant.name, static_cast<long long>(row),
                  static_cast<double>(sums.data[t * rows + row]), static_cast<double>(sum));
      return false;
    }
  return std::equal(state.begin(), state.end(), last.data.get());
}

}  // namespace

int main(int argc, char** argv) {
  const int count = argc > 1 ? std::atoi(argv[1]) : 1000;
  const unsigned seed = argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 1;
  Generator generator(seed);
  for (int i = 0; i < count; ++i) {
    const Case one = draw(generator);
    const Floats wanted = expected(one);
    for (const recurrence::Variant& variant : recurrence::variants())
      if (dispatch::supports(variant.isa) &&
          !(run_case(one, variant, ParallelFor::inline_loop(), wanted) && run_case(one, variant, {run_threads, nullptr}, wanted) &&
            run_sums(generator, variant, ParallelFor::inline_loop()) && run_sums(generator, variant, {run_threads, nullptr}))) {
        std::printf("recurrence %d of seed %u\n", i, seed);
        return 1;
      }
  }
  std::printf("%d random recurrences ran in every variant of this machine\n", count);
  return 0;
}
