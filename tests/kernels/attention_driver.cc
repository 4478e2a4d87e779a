// Runs random attention, of floats and of bytes, in every variant that this machine has, for the sanitizers. All memory is as small
// as the interface allows. Results must be those of plain loops in double precision, or near them where bytes are multiplied.
//
//     onnxopt_attention_driver [problems] [seed]
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "csrc/dispatch/cpu.h"
#include "kernels/cpu/attention/attention.h"
#include "kernels/cpu/qattention/qattention.h"
#include "kernels/cuda/attention/attention.h"
#include "tests/kernels/driver.h"

namespace {

using namespace onnxopt;
using attention::Steps;
using driver::Floats;
using driver::Memory;
using driver::Random;

constexpr std::int64_t kMostEmulated = 1 << 18;
constexpr double kFloatError = 2e-5, kByteError = 5e-2;

/// Where elements lie: columns one beside the other, heads side by side, or rows one beside the other.
Steps steps_of(bool turned, std::int64_t heads, std::int64_t rows, std::int64_t columns) {
  const std::int64_t all = heads * rows * columns;
  return turned ? Steps{all, rows * columns, 1, rows} : Steps{all, columns, heads * columns, 1};
}

std::int64_t at(const Steps& steps, std::int64_t batch, std::int64_t head, std::int64_t row, std::int64_t column) {
  return batch * steps.batch + head * steps.head + row * steps.row + column * steps.column;
}

/// A problem and its memory.
struct Case {
  attention::Problem problem;
  Floats q{0}, k{0}, v{0}, cos{0}, sin{0};
  std::vector<Floats> added;
  std::vector<Memory<std::uint8_t>> shown;

  explicit Case(Random& random) {
    const bool large = random.sometimes(8);
    attention::Problem& p = problem;
    p.batch = random.between(0, large ? 1 : 2);
    p.kv_heads = random.between(1, large ? 1 : 2);
    p.heads = p.kv_heads * random.between(1, 3);
    p.rows = random.between(0, large ? 120 : 20);
    p.keys = random.between(1, large ? 600 : 40);
    p.depth = random.between(1, large ? 80 : 20);
    p.width = random.between(1, large ? 80 : 20);
    q = floats(random, p.heads, p.rows, p.depth, p.q);
    k = floats(random, p.kv_heads, p.keys, p.depth, p.k);
    v = floats(random, p.kv_heads, p.keys, p.width, p.v);
    p.y_steps = steps_of(random.sometimes(4), p.heads, p.rows, p.width);
    p.scale = 0.0625f;
    p.cap = random.sometimes(4) ? 2.0f : 0.0f;
    p.nan_to_zero = true;
    if (p.depth > 1 && random.sometimes(3)) rotate(random);
    for (const int masks = random.below(3); p.mask_count < static_cast<std::size_t>(masks); ++p.mask_count)
      p.masks[p.mask_count] = mask(random);
  }

  Floats floats(Random& random, std::int64_t heads, std::int64_t rows, std::int64_t columns, attention::View& view) const {
    Floats made = random.whole(problem.batch * heads * rows * columns, 3);
    view = {made.get(), steps_of(random.sometimes(3), heads, rows, columns)};
    return made;
  }

  void rotate(Random& random) {
    attention::Rotary& rotary = problem.rotary;
    const std::int64_t rows = std::max(problem.rows, problem.keys);
    rotary.width = 2 * random.between(1, problem.depth / 2);
    cos = random.whole(rows * rotary.width, 1);
    sin = random.whole(rows * rotary.width, 1);
    rotary.cos = cos.get();
    rotary.sin = sin.get();
    rotary.cos_steps = rotary.sin_steps = {0, 0, rotary.width, 1};
    rotary.interleaved = random.sometimes(2);
    rotary.of_queries = random.sometimes(2);
    rotary.of_keys = !rotary.of_queries || random.sometimes(2);
  }

  /// A mask of all scores, or one that rows, keys or heads share.
  attention::Mask mask(Random& random) {
    const attention::Problem& p = problem;
    const std::int64_t heads = random.sometimes(2) ? 1 : p.heads, rows = random.sometimes(3) ? 1 : p.rows;
    const std::int64_t keys = random.sometimes(4) ? 1 : p.keys, count = heads * rows * keys;
    attention::Mask made;
    made.steps = {0, heads == 1 ? 0 : rows * keys, rows == 1 ? 0 : keys, keys == 1 ? 0 : 1};
    if (random.sometimes(2)) {
      Floats& terms = added.emplace_back(random.whole(count, 2));
      for (std::int64_t i = 0; i < count; ++i)
        if (random.sometimes(3)) terms[i] = -std::numeric_limits<float>::infinity();
      made.data = terms.get();
      return made;
    }
    Memory<std::uint8_t>& flags = shown.emplace_back(count);
    for (std::int64_t i = 0; i < count; ++i) flags[i] = random.sometimes(2);
    made.data = flags.get();
    made.kind = random.sometimes(2) ? attention::MaskKind::kKeep : attention::MaskKind::kHide;
    made.fill = random.sometimes(2) ? -std::numeric_limits<float>::infinity() : -8.0f;
    return made;
  }
};

/// An element of a row, rotated.
double element(const attention::Rotary& rotary, bool rotates, const attention::View& view, std::int64_t batch, std::int64_t head,
               std::int64_t row, std::int64_t column) {
  const auto value = [&](std::int64_t place) { return static_cast<double>(view.data[at(view.steps, batch, head, row, place)]); };
  if (!rotates || column >= rotary.width) return value(column);
  const std::int64_t half = rotary.width / 2, place = row * rotary.width + column;
  const std::int64_t partner = rotary.interleaved ? column ^ 1 : column < half ? column + half : column - half;
  return value(column) * static_cast<double>(rotary.cos[place]) + value(partner) * static_cast<double>(rotary.sin[place]);
}

double masked(const attention::Mask& mask, double score, std::int64_t place) {
  if (mask.kind == attention::MaskKind::kAdd) return score + static_cast<double>(static_cast<const float*>(mask.data)[place]);
  const bool shows = static_cast<const std::uint8_t*>(mask.data)[place] != 0;
  return shows == (mask.kind == attention::MaskKind::kKeep) ? score : static_cast<double>(mask.fill);
}

/// A row of the result.
std::vector<double> attend(const attention::Problem& p, std::int64_t batch, std::int64_t head, std::int64_t row) {
  const std::int64_t kv_head = head / (p.heads / p.kv_heads);
  std::vector<double> weights, query, result(static_cast<std::size_t>(p.width), 0.0);
  for (std::int64_t d = 0; d < p.depth; ++d) query.push_back(element(p.rotary, p.rotary.of_queries, p.q, batch, head, row, d));
  double largest = -std::numeric_limits<double>::infinity(), sum = 0;
  for (std::int64_t key = 0; key < p.keys; ++key) {
    double score = 0;
    for (std::int64_t d = 0; d < p.depth; ++d)
      score += query[static_cast<std::size_t>(d)] * element(p.rotary, p.rotary.of_keys, p.k, batch, kv_head, key, d);
    score *= static_cast<double>(p.scale);
    if (p.cap != 0.0f) score = static_cast<double>(p.cap) * std::tanh(score / static_cast<double>(p.cap));
    for (std::size_t i = 0; i < p.mask_count; ++i) score = masked(p.masks[i], score, at(p.masks[i].steps, batch, head, row, key));
    weights.push_back(score);
    largest = std::max(largest, score);
  }
  if (std::isinf(largest)) return result;
  for (double& weight : weights) sum += weight = std::exp(weight - largest);
  for (std::int64_t key = 0; key < p.keys; ++key)
    for (std::int64_t d = 0; d < p.width; ++d)
      result[static_cast<std::size_t>(d)] +=
          weights[static_cast<std::size_t>(key)] / sum * static_cast<double>(p.v.data[at(p.v.steps, batch, kv_head, key, d)]);
  return result;
}

bool is_near(const attention::Problem& p, const Floats& wanted, double error, const char* name) {
  for (std::int64_t i = 0; i < wanted.count; ++i)
    if (!(std::fabs(static_cast<double>(p.y[i]) - static_cast<double>(wanted[i])) <= error)) {
      std::printf("%s: element %lld of %lld rows by %lld keys is %g and should be %g\n", name, static_cast<long long>(i),
                  static_cast<long long>(p.rows), static_cast<long long>(p.keys), static_cast<double>(p.y[i]),
                  static_cast<double>(wanted[i]));
      return false;
    }
  return true;
}

bool run_one(Random& random, int) {
  Case one(random);
  attention::Problem& p = one.problem;
  Floats wanted(p.batch * p.heads * p.rows * p.width);
  for (std::int64_t batch = 0; batch < p.batch; ++batch)
    for (std::int64_t head = 0; head < p.heads; ++head)
      for (std::int64_t row = 0; row < p.rows; ++row) {
        const std::vector<double> result = attend(p, batch, head, row);
        for (std::int64_t d = 0; d < p.width; ++d)
          wanted[at(p.y_steps, batch, head, row, d)] = static_cast<float>(result[static_cast<std::size_t>(d)]);
      }
  const auto largest = 3.0;  // of the values
  const auto run = [&](std::span<const attention::Variant> variants, double error) {
    for (const attention::Variant& variant : variants) {
      if (!dispatch::supports(variant.isa)) continue;
      Floats y(wanted.count, std::numeric_limits<float>::quiet_NaN());
      p.y = y.get();
      attention::run(p, variant, ParallelFor::inline_loop());
      if (!is_near(p, wanted, error * largest, variant.name)) return false;
    }
    return true;
  };
  if (!run(attention::variants(), kFloatError) || !run(qattention::variants(), kByteError)) return false;
  if (wanted.count == 0 || wanted.count * p.keys > kMostEmulated) return true;
  Floats y(wanted.count, std::numeric_limits<float>::quiet_NaN());
  p.y = y.get();
  return attention::cuda::emulate(p) && is_near(p, wanted, kFloatError * largest, "attention__cuda_emulated");
}

}  // namespace

int main(int argc, char** argv) { return driver::run_problems(argc, argv, "problems of attention", run_one); }
