#include "kernels/cpu/qgemm/qgemm.h"

#include <algorithm>

#include "kernels/cpu/gemm/blocks.h"
#include "kernels/cpu/rounding.h"
#include "kernels/cpu/scratch.h"

namespace onnxopt::qgemm {

#define QGEMM_VARIANT(name, isa)                                                                       \
  namespace name {                                                                                     \
  void quantize(const Problem&, std::int64_t row, std::uint8_t* to, float* scale, std::int32_t* zero); \
  void run(const Problem&, const Operand&, const Blocking&, std::int64_t row, std::int64_t column);    \
  std::int64_t occupy(std::int64_t rounds);                                                            \
  }
#include "kernels/cpu/qgemm/variants.inc"
#undef QGEMM_VARIANT

std::span<const Variant> variants() {
  static constexpr Variant list[] = {
#define QGEMM_VARIANT(name, isa) {"qgemm__" #name, isa, name::quantize, name::run, name::occupy},
#include "kernels/cpu/qgemm/variants.inc"
#undef QGEMM_VARIANT
  };
  return list;
}

namespace {

/// A multiple of the micro-kernel's rows in every variant, and one of its columns.
constexpr std::int64_t kRowStep = 12, kColumnStep = 32;
/// Bytes of A that stay in the second-level cache while a block walks over its columns.
constexpr std::int64_t kCachedRows = 384 << 10;
/// Bytes of B that stay there while blocks of rows walk past.
constexpr std::int64_t kCachedColumns = 384 << 10;
/// Multiplications of a task: about 30 us of one core.
constexpr double kTask = 6e6;
constexpr double kMostTasks = 512;
/// Multiplications below which a second thread costs more than it saves.
constexpr double kGrain = 6e5;
/// Floats that a task quantizes.
constexpr std::int64_t kQuantized = 32 << 10;
/// Rows of a power of two bytes would fall into few sets of the first-level cache.
constexpr std::int64_t kSetDistance = 1024, kPadding = 64;

Blocking blocking_of(const Problem& problem) {
  const double work = static_cast<double>(problem.rows) * static_cast<double>(problem.columns) * static_cast<double>(problem.depth);
  const auto tasks = static_cast<std::int64_t>(std::clamp(work / kTask, work < kGrain ? 1.0 : 2.0, kMostTasks));
  const std::int64_t most_rows = std::max(kCachedRows / std::max<std::int64_t>(problem.depth, 1) / kRowStep * kRowStep, kRowStep);
  Blocking blocking{std::min(problem.rows, most_rows), problem.columns};
  const bool weights_fit = problem.columns * problem.depth <= kCachedColumns;
  if (weights_fit || problem.rows > 4 * most_rows)
    blocking.rows = std::min(round_up(ceil_div(problem.rows, tasks), kRowStep), most_rows);
  const std::int64_t row_blocks = ceil_div(problem.rows, blocking.rows);
  if (row_blocks < tasks) blocking.columns = round_up(ceil_div(problem.columns, ceil_div(tasks, row_blocks)), kColumnStep);
  return blocking;
}

/// The rows of A as bytes, in memory of the calling thread.
struct Rows {
  const Problem* problem;
  const Variant* variant;
  std::uint8_t* data;
  std::int64_t row_step, together;
  float* scales;
  std::int32_t* zeros;

  /// Whether A is what the products read, as it is.
  static bool as_they_are(const Problem& problem) {
    const auto group = static_cast<std::int64_t>(kGroup);
    return problem.source == Source::kUint8 && problem.depth % group == 0 && problem.depth % kSetDistance != 0;
  }

  static void quantize(void* user, std::size_t index) {
    const Rows& rows = *static_cast<const Rows*>(user);
    const std::int64_t begin = static_cast<std::int64_t>(index) * rows.together;
    for (std::int64_t row = begin; row < std::min(begin + rows.together, rows.problem->rows); ++row)
      rows.variant->quantize(*rows.problem, row, rows.data + row * rows.row_step, rows.scales + row, rows.zeros + row);
  }
};

/// A without a copy, and the same scale and zero point for every row.
Operand in_place(const Problem& problem) {
  const auto count = static_cast<std::size_t>(problem.rows);
  auto* const scales = reinterpret_cast<float*>(scratch(2 * count * sizeof(float), ScratchOwner::kQgemm));
  auto* const zeros = reinterpret_cast<std::int32_t*>(scales + count);
  std::fill_n(scales, count, problem.scale);
  std::fill_n(zeros, count, problem.zero);
  return {static_cast<const std::uint8_t*>(problem.a), problem.depth, scales, zeros};
}

Operand quantized(const Problem& problem, const Variant& variant, const ParallelFor& parallel_for) {
  if (Rows::as_they_are(problem)) return in_place(problem);
  std::int64_t step = round_up(std::max<std::int64_t>(problem.depth, 1), kGroup);
  if (step % kSetDistance == 0) step += kPadding;
  const auto count = static_cast<std::size_t>(problem.rows);
  const std::size_t numbers = static_cast<std::size_t>(round_up(problem.rows, 16)) * sizeof(float);
  // A vector of bytes may be written behind the last row's end.
  char* const memory = scratch(2 * numbers + count * static_cast<std::size_t>(step) + kPadding, ScratchOwner::kQgemm);
  Rows rows{&problem,
            &variant,
            reinterpret_cast<std::uint8_t*>(memory + 2 * numbers),
            step,
            std::max<std::int64_t>(kQuantized / step, 1),
            reinterpret_cast<float*>(memory),
            reinterpret_cast<std::int32_t*>(memory + numbers)};
  const auto tasks = static_cast<std::size_t>(ceil_div(problem.rows, rows.together));
  if (tasks == 1)
    Rows::quantize(&rows, 0);
  else
    parallel_for(tasks, Rows::quantize, &rows);
  return {rows.data, step, rows.scales, rows.zeros};
}

struct Job {
  const Problem* problem;
  const Operand* a;
  const Variant* variant;
  gemm::Blocks<Blocking> blocks;
};

void run_task(void* user, std::size_t index) {
  const Job& job = *static_cast<const Job*>(user);
  const gemm::Block block = job.blocks.at(index);
  job.variant->run(*job.problem, *job.a, job.blocks.blocking, block.row, block.column);
}

}  // namespace

void run(const Problem& problem, const Variant& variant, const ParallelFor& parallel_for) {
  if (problem.rows == 0 || problem.columns == 0) return;
  const Operand a = quantized(problem, variant, parallel_for);
  Job job{&problem, &a, &variant, gemm::blocks_of(problem, blocking_of(problem))};
  if (job.blocks.count() == 1)
    run_task(&job, 0);
  else
    parallel_for(job.blocks.count(), run_task, &job);
}

}  // namespace onnxopt::qgemm
