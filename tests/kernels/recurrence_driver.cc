// Runs random recurrences in every variant that this machine has, with one and two threads, for the sanitizers. All memory is as
// small as the interface allows. The numbers are whole and small, so that results must be equal to those of plain loops.
//
//     onnxopt_recurrence_driver [recurrences] [seed]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "csrc/dispatch/cpu.h"
#include "kernels/cpu/gemm/panel.h"
#include "kernels/cpu/recurrence/loop.h"
#include "kernels/cpu/recurrence/recurrence.h"
#include "kernels/cuda/recurrence/recurrence.h"
#include "tests/kernels/driver.h"

namespace {

using namespace onnxopt;
using driver::Floats;
using driver::Random;

/// h = clip(h W + b + x, -8, 8) with a product, else clip(h + x, -8, 8), whose results are stacked.
struct Case {
  std::int64_t steps, rows, width;
  bool product, reverse, reverse_stacked;
  Floats x, h, weights, packed, bias;
};

Case draw(Random& random) {
  const bool product = random.below(3) != 0, large = random.below(6) == 0;
  const std::int64_t steps = random.below(6), rows = 1 + random.below(random.below(3) == 0 ? 20 : 3);
  const std::int64_t width = 1 + random.below(large ? 300 : 70);
  constexpr auto panel = static_cast<std::int64_t>(gemm::kPanel);
  Case made{steps,
            rows,
            width,
            product,
            random.below(2) != 0,
            random.below(2) != 0,
            random.whole(steps * rows * width, 3),
            random.whole(rows * width, 3),
            random.whole(width * width, 1),
            Floats(driver::ceil_div(width, panel) * panel * width),
            random.whole(width, 2)};
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

struct Runner {
  const char* name;
  std::function<Result<bool>(const recurrence::Problem&)> run;
};

const elementwise::Variant& same_isa(const recurrence::Variant& variant) {
  const auto list = elementwise::variants();
  return *std::find_if(list.begin(), list.end(), [&](const auto& other) { return std::string_view(other.isa) == variant.isa; });
}

bool run_case(const Case& one, const Runner& runner, const Floats& wanted) {
  const char* const program = "i0:f32 i1:f32 | t0=add(i0,i1) t1=clip(t0,#-0x1p+3:f32,#0x1p+3:f32) | t1:f32";
  const recurrence::Counts counts{1, 1, 1, one.product ? 1u : 0u};
  const std::string text = one.product ? "0@0+2 ! 3 1 ! " + std::string(program) : " ! 0 1 ! " + std::string(program);
  const std::size_t result = one.product ? 4 : 3;
  const auto step = recurrence::parse(text, counts, {result}, {result});
  if (!step) {
    std::printf("%s\n", step.error().c_str());
    return false;
  }
  const std::int64_t size = one.rows * one.width, bytes = size * static_cast<std::int64_t>(sizeof(float));
  Floats stacked(one.steps * size, NAN), last(size, NAN);
  const float* const initial[] = {one.h.data.get()};
  const recurrence::Sequence sequences[] = {{reinterpret_cast<const char*>(one.x.data.get()), bytes, one.reverse}};
  const recurrence::Sequence outputs[] = {{reinterpret_cast<const char*>(stacked.data.get()), bytes, one.reverse_stacked}};
  const void* const invariants[] = {one.bias.data.get()};
  const elementwise::Shape shapes[] = {{one.rows, one.width}, {one.width}};
  const float* const matrices[] = {one.packed.data.get()};
  float* const finals[] = {last.data.get()};
  const recurrence::Problem problem{
      &*step, {one.rows, one.width}, one.steps, initial, sequences, invariants, shapes, matrices, finals, outputs};
  if (!runner.run(problem)) return false;
  for (std::int64_t i = 0; i < wanted.count; ++i) {
    const float actual = i < stacked.count ? stacked.data[i] : last.data[i - stacked.count];
    if (actual == wanted.data[i]) continue;
    std::printf("%s: element %lld is %g and should be %g\n", runner.name, static_cast<long long>(i), static_cast<double>(actual),
                static_cast<double>(wanted.data[i]));
    return false;
  }
  return true;
}

/// h = clip(h + x m + r, -8, 8) with x of each row, m of each column and r of each batch, and the sums of h over the columns; or a
/// gated update, h = x h + x m, and the sums of h r.
bool run_sums(Random& random, const Runner& runner, bool gated) {
  const char* const program =
      gated
          ? "i0:f32 i1:f32 i2:f32 i3:f32 | t0=mul(i1,i0) t1=mul(i1,i2) t2=add(t0,t1) t3=mul(t2,i3) | t2:f32 t3:f32"
          : "i0:f32 i1:f32 i2:f32 i3:f32 | t0=mul(i1,i2) t1=add(t0,i0) t2=add(t1,i3) t3=clip(t2,#-0x1p+3:f32,#0x1p+3:f32) | t3:f32";
  const std::int64_t steps = random.below(5), batch = 1 + random.below(3), channels = 1 + random.below(80);
  const std::int64_t width = 1 + random.below(random.below(4) == 0 ? 120 : 20), rows = batch * channels, size = rows * width;
  const auto step = recurrence::parse(" ! 0 1 2 3 ! " + std::string(program), {1, 2, 1, 0}, {4}, {gated ? 5u : 4u}, {true});
  if (!step) return false;
  const Floats h = random.whole(size, 3), x = random.whole(steps * rows, 2), r = random.whole(steps * batch * width, 2);
  const Floats m = random.whole(width, 2);
  Floats sums(steps * rows, NAN), last(size, NAN);
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
  if (!runner.run(problem)) return false;
  std::vector<float> state(h.data.get(), h.data.get() + size);
  for (std::int64_t t = 0; t < steps; ++t)
    for (std::int64_t row = 0; row < rows; ++row) {
      float sum = 0;
      for (std::int64_t i = 0; i < width; ++i) {
        float& one = state[static_cast<std::size_t>(row * width + i)];
        const float given = x.data[t * rows + row], added = r.data[((steps - 1 - t) * batch + row / channels) * width + i];
        one = gated ? given * one + given * m.data[i] : std::clamp(one + given * m.data[i] + added, -8.0f, 8.0f);
        sum += gated ? one * added : one;
      }
      if (sum == sums.data[t * rows + row]) continue;
      std::printf("%s: the sum of row %lld is %g and should be %g\n", runner.name, static_cast<long long>(row),
                  static_cast<double>(sums.data[t * rows + row]), static_cast<double>(sum));
      return false;
    }
  return std::equal(state.begin(), state.end(), last.data.get());
}

/// h = clip(h W + b, -8, 8) until the sum of h is below a bound, all h being stacked.
bool run_loop(const Case& one, Random& random, const recurrence::Variant& variant, const ParallelFor& parallel_for) {
  const std::int64_t size = one.rows * one.width, limit = random.below(6);
  const float bound = static_cast<float>(random.below(40) - 20);
  const std::string text =
      "product 1 0 2; map 4 ! i0:f32 | t0=clip(i0,#-0x1p+3:f32,#0x1p+3:f32) | t0:f32; sum 5 0; map 6 3 ! i0:f32 i1:f32 | "
      "t0=greater_equal(i0,i1) | t0:bool";
  recurrence::LoopStep given{1, 2, 1, {}, {5}, {5}, {}, 7, 0};
  const auto step = recurrence::parse_loop(text, std::move(given));
  if (!step) return false;
  using elementwise::DType;
  const recurrence::LoopInput carried[] = {{DType::f32, {one.rows, one.width}, one.h.data.get()}};
  const recurrence::LoopInput invariants[] = {{DType::f32, {one.width}, one.bias.data.get()}, {DType::f32, {}, &bound}};
  const recurrence::Matrix matrices[] = {{one.packed.data.get(), one.width, one.width}};
  const auto made = recurrence::run_loop({&*step, limit, true, carried, invariants, matrices},
                                         *recurrence::variants_of(variant.name), parallel_for);
  if (!made) return false;
  std::vector<float> state(one.h.data.get(), one.h.data.get() + size), next(state.size()), stacked;
  float total = bound;
  for (std::int64_t t = 0; t < limit && total >= bound; ++t) {
    total = 0;
    for (std::int64_t i = 0; i < size; ++i) {
      float sum = one.bias.data[i % one.width];
      for (std::int64_t k = 0; k < one.width; ++k)
        sum += state[static_cast<std::size_t>(i / one.width * one.width + k)] * one.weights.data[k * one.width + i % one.width];
      next[static_cast<std::size_t>(i)] = std::clamp(sum, -8.0f, 8.0f);
      total += next[static_cast<std::size_t>(i)];
    }
    state = next;
    stacked.insert(stacked.end(), state.begin(), state.end());
  }
  const auto equal = [](const recurrence::LoopOutput& output, const std::vector<float>& wanted) {
    const std::size_t bytes = wanted.size() * sizeof(float);
    return output.bytes.size() == bytes && (bytes == 0 || std::memcmp(output.bytes.data(), wanted.data(), bytes) == 0);
  };
  if (equal((*made)[0], state) && equal((*made)[1], stacked)) return true;
  std::printf("%s: a loop computed something else\n", variant.name);
  return false;
}

/// One step of `run_statements`: s [rows, width] and an element become clip(the largest of s e' in each row, plus for each column
/// the sum of the rows of s that hold the largest elements of e, plus e, plus the largest of each row of e).
std::vector<float> next_state(const Case& one, const std::vector<float>& state, const float* e) {
  const auto at = [&](std::int64_t i, std::int64_t j) { return static_cast<std::size_t>(i * one.width + j); };
  std::vector<float> sums(static_cast<std::size_t>(one.width), 0.0f), next(state.size());
  for (std::int64_t j = 0; j < one.width; ++j) {
    std::int64_t best = 0;
    for (std::int64_t i = 1; i < one.rows; ++i)
      if (e[at(i, j)] > e[at(best, j)]) best = i;
    for (std::int64_t k = 0; k < one.width; ++k) sums[static_cast<std::size_t>(k)] += state[at(best, k)];
  }
  for (std::int64_t i = 0; i < one.rows; ++i) {
    float largest = -INFINITY, top = -INFINITY;
    for (std::int64_t other = 0; other < one.rows; ++other) {
      float product = 0;
      for (std::int64_t k = 0; k < one.width; ++k) product += state[at(i, k)] * e[at(other, k)];
      largest = std::max(largest, product);
    }
    for (std::int64_t j = 0; j < one.width; ++j) top = std::max(top, e[at(i, j)]);
    for (std::int64_t j = 0; j < one.width; ++j)
      next[at(i, j)] = std::clamp(largest + sums[static_cast<std::size_t>(j)] + e[at(i, j)] + top, -8.0f, 8.0f);
  }
  return next;
}

/// What statements do that move elements, over a sequence.
bool run_statements(const Case& one, const recurrence::Variant& variant, const ParallelFor& parallel_for) {
  using elementwise::DType;
  const std::string width = std::to_string(one.width), twice = std::to_string(2 * one.width);
  const std::string text =
      std::string("element 2 0 ") + (one.reverse ? "1" : "0") +
      "; transpose 3 1 0; matmul 1 4; max 5 1 1; argmax 3 0 0; gather 1 0 7; sum 8 0 0; concat 1 1 3; slice 10 1 " + width + " " +
      twice +
      " 1; topk 11 1 1 1; map 6 9 11 12 ! i0:f32 i1:f32 i2:f32 i3:f32 | t0=add(i0,i1) t1=add(t0,i2) t2=add(t1,i3) "
      "t3=clip(t2,#-0x1p+3:f32,#0x1p+3:f32) | t3:f32";
  recurrence::LoopStep given{1, 1, 0, {}, {13}, {13}, {}, {}, 0};
  const auto step = recurrence::parse_loop(text, std::move(given));
  if (!step) {
    std::printf("%s\n", step.error().c_str());
    return false;
  }
  const recurrence::LoopInput carried[] = {{DType::f32, {one.rows, one.width}, one.h.data.get()}};
  const recurrence::LoopInput invariants[] = {{DType::f32, {one.steps, one.rows, one.width}, one.x.data.get()}};
  const auto made = recurrence::run_loop({&*step, one.steps, true, carried, invariants, {}}, *recurrence::variants_of(variant.name),
                                         parallel_for);
  if (!made) {
    std::printf("%s\n", made.error().c_str());
    return false;
  }
  const std::int64_t size = one.rows * one.width;
  std::vector<float> state(one.h.data.get(), one.h.data.get() + size);
  for (std::int64_t t = 0; t < one.steps; ++t) {
    state = next_state(one, state, one.x.data.get() + (one.reverse ? one.steps - 1 - t : t) * size);
    const std::size_t bytes = state.size() * sizeof(float);
    if (std::memcmp((*made)[1].bytes.data() + static_cast<std::size_t>(t) * bytes, state.data(), bytes) == 0) continue;
    std::printf("%s: statements computed something else in step %lld\n", variant.name, static_cast<long long>(t));
    return false;
  }
  return (*made)[0].bytes.size() == state.size() * sizeof(float);
}

/// s becomes clip(a convolution along its rows, which are channels or each for itself, plus the elements of this step and the next,
/// -8, 8).
bool run_windows(const Case& one, Random& random, const recurrence::Variant& variant, const ParallelFor& parallel_for) {
  const bool alone = random.below(2) != 0;
  const std::int64_t kernel = 1 + random.below(4), dilation = 1 + random.below(3), reach = (kernel - 1) * dilation;
  const std::int64_t before = random.below(reach + 1), channels = alone ? 1 : one.rows, size = one.rows * one.width;
  const std::string numbers = std::to_string(alone ? one.rows : 1) + " 1 " + std::to_string(dilation) + " " +
                              std::to_string(before) + " " + std::to_string(reach - before);
  const std::string text =
      "map 0 ! i0:i64 | t0=add(i0,#2:i64) | t0:i64; slice_at 2 0 0 4 1; sum 5 0 0; unsqueeze 1 0; conv 1 " + numbers +
      " 7 3; map 8 6 ! i0:f32 i1:f32 | t0=add(i0,i1) t1=clip(t0,#-0x1p+3:f32,#0x1p+3:f32) | t1:f32; squeeze 9 0";
  recurrence::LoopStep given{1, 2, 0, {}, {10}, {}, {}, {}, 0};
  const auto step = recurrence::parse_loop(text, std::move(given));
  if (!step) {
    std::printf("%s\n", step.error().c_str());
    return false;
  }
  const Floats weights = random.whole(one.rows * channels * kernel, 2);
  using elementwise::DType;
  const recurrence::LoopInput carried[] = {{DType::f32, {one.rows, one.width}, one.h.data.get()}};
  const recurrence::LoopInput invariants[] = {{DType::f32, {one.steps, one.rows, one.width}, one.x.data.get()},
                                              {DType::f32, {one.rows, channels, kernel}, weights.data.get()}};
  const auto made = recurrence::run_loop({&*step, one.steps, true, carried, invariants, {}}, *recurrence::variants_of(variant.name),
                                         parallel_for);
  if (!made) {
    std::printf("%s\n", made.error().c_str());
    return false;
  }
  std::vector<float> state(one.h.data.get(), one.h.data.get() + size), next(state.size());
  for (std::int64_t t = 0; t < one.steps; ++t, state = next)
    for (std::int64_t i = 0; i < size; ++i) {
      float sum = one.x.data[t * size + i] + (t + 1 < one.steps ? one.x.data[(t + 1) * size + i] : 0.0f);
      for (std::int64_t tap = 0; tap < channels * kernel; ++tap) {
        const std::int64_t channel = alone ? i / one.width : tap / kernel, at = i % one.width + tap % kernel * dilation - before;
        if (at >= 0 && at < one.width)
          sum += weights.data[i / one.width * channels * kernel + tap] * state[static_cast<std::size_t>(channel * one.width + at)];
      }
      next[static_cast<std::size_t>(i)] = std::clamp(sum, -8.0f, 8.0f);
    }
  if (std::memcmp((*made)[0].bytes.data(), state.data(), state.size() * sizeof(float)) == 0) return true;
  std::printf("%s: windows computed something else\n", variant.name);
  return false;
}

/// s gets a row of the sums of its columns.
bool run_growing(const Case& one, const recurrence::Variant& variant, const ParallelFor& parallel_for) {
  recurrence::LoopStep given{1, 0, 0, {}, {3}, {2}, {0}, {}, 0};
  const auto step = recurrence::parse_loop("sum 1 1 0; concat 0 1 2", std::move(given));
  if (!step) return false;
  const recurrence::LoopInput carried[] = {{elementwise::DType::f32, {one.rows, one.width}, one.h.data.get()}};
  const auto made =
      recurrence::run_loop({&*step, one.steps, true, carried, {}, {}}, *recurrence::variants_of(variant.name), parallel_for);
  if (!made) return false;
  std::vector<float> state(one.h.data.get(), one.h.data.get() + one.rows * one.width);
  for (std::int64_t t = 0; t < one.steps; ++t) {
    std::vector<float> sums(static_cast<std::size_t>(one.width), 0.0f);
    for (std::size_t i = 0; i < state.size(); ++i) sums[i % sums.size()] += state[i];
    state.insert(state.end(), sums.begin(), sums.end());
  }
  const recurrence::LoopOutput& last = (*made)[0];
  if (last.bytes.size() == state.size() * sizeof(float) && std::memcmp(last.bytes.data(), state.data(), last.bytes.size()) == 0)
    return true;
  std::printf("%s: a growing value is something else\n", variant.name);
  return false;
}

bool run_one(Random& random, int) {
  const Case one = draw(random);
  const Floats wanted = expected(one);
  for (const recurrence::Variant& variant : recurrence::variants())
    if (dispatch::supports(variant.isa))
      for (const ParallelFor& parallel_for : {ParallelFor::inline_loop(), ParallelFor{run_threads, nullptr}}) {
        const Runner runner{
            variant.name, [&](const auto& problem) { return recurrence::run(problem, variant, same_isa(variant), parallel_for); }};
        if (!run_case(one, runner, wanted) || !run_sums(random, runner, false) || !run_sums(random, runner, true) ||
            !run_loop(one, random, variant, parallel_for) || !run_statements(one, variant, parallel_for) ||
            !run_windows(one, random, variant, parallel_for) || !run_growing(one, variant, parallel_for))
          return false;
      }
  const Runner emulated{"recurrence__cuda_emulated", recurrence::cuda::emulate};
  return run_case(one, emulated, wanted) && run_sums(random, emulated, false) && run_sums(random, emulated, true);
}

}  // namespace

int main(int argc, char** argv) { return driver::run_problems(argc, argv, "recurrences", run_one); }
