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

/// The micro-kernel's rows and columns in every variant, or a multiple of them.
constexpr std::int64_t kRowStep = 12, kColumnStep = 32;
/// Bytes of A that stay in the second-level cache while a block walks over its columns.
constexpr std::int64_t kCachedRows = 384 << 10;
/// Bytes of B that stay there while blocks of rows walk past.
constexpr std::int64_t kCachedColumns = 384 << 10;
/// Multiplications of a task: about 30 us of one core.
constexpr double kTask = 6e6;
constexpr double kMostTasks = 512;
/// Tasks are a multiple of so many, where they are more than two: no processor computes one of few tasks while others have none.
constexpr std::int64_t kEven = 4;
/// Multiplications below which a second thread costs more than it saves.
constexpr double kGrain = 6e5;
/// Floats that a task quantizes.
constexpr std::int64_t kQuantized = 32 << 10;
/// Rows of a power of two bytes would fall into few sets of the first-level cache.
constexpr std::int64_t kSetDistance = 1024, kPadding = 64;

std::int64_t tasks_of(const Problem& problem) {
  const double work = static_cast<double>(problem.rows) * static_cast<double>(problem.columns) * static_cast<double>(problem.depth);
  const auto tasks = static_cast<std::int64_t>(std::clamp(work / kTask, work < kGrain ? 1.0 : 2.0, kMostTasks));
  return tasks > 2 ? round_up(tasks, kEven) : tasks;
}

/// Blocks of nearly the same number of rows each.
Blocking blocking_of(const Problem& problem) {
  const std::int64_t tasks = tasks_of(problem);
  const std::int64_t most_rows = std::max(kCachedRows / std::max<std::int64_t>(problem.depth, 1) / kRowStep * kRowStep, kRowStep);
  std::int64_t row_blocks = ceil_div(problem.rows, most_rows);
  const bool weights_fit = problem.columns * problem.depth <= kCachedColumns;
  if (weights_fit || problem.rows > 4 * most_rows)
    row_blocks = std::max(row_blocks, std::min(tasks, ceil_div(problem.rows, kRowStep)));
  Blocking blocking{ceil_div(problem.rows, row_blocks), problem.columns};
  if (row_blocks < tasks) blocking.columns = even_part(problem.columns, ceil_div(tasks, row_blocks), kColumnStep);
  return blocking;
}

/// Rows of A from `first` on as bytes, in memory of the calling thread.
struct Rows {
  const Problem* problem;
  const Variant* variant;
  std::uint8_t* data;
  std::int64_t first, count, row_step;
  float* scales;
  std::int32_t* zeros;

  std::size_t tasks() const {
    const std::int64_t fit = std::min(ceil_div(count * row_step, kQuantized), count);
    return static_cast<std::size_t>(fit > 1 ? round_up(fit, 2) : fit);
  }

  void quantize(std::int64_t begin, std::int64_t end) const {
    for (std::int64_t i = begin; i < end; ++i) variant->quantize(*problem, first + i, data + i * row_step, scales + i, zeros + i);
  }

  static void run_task(void* user, std::size_t index) {
    const Rows& rows = *static_cast<const Rows*>(user);
    const auto task = static_cast<std::int64_t>(index), tasks = static_cast<std::int64_t>(rows.tasks());
    rows.quantize(rows.count * task / tasks, rows.count * (task + 1) / tasks);
  }

  Operand operand() const { return {data, row_step, scales, zeros, first}; }
};

/// Whether A is what the products read, as it is.
bool as_they_are(const Problem& problem) {
  const auto group = static_cast<std::int64_t>(kGroup);
  return problem.source == Source::kUint8 && problem.depth % group == 0 && problem.depth % kSetDistance != 0;
}

/// A without a copy, and the same scale and zero point for every row.
Operand in_place(const Problem& problem) {
  const auto count = static_cast<std::size_t>(problem.rows);
  auto* const scales = reinterpret_cast<float*>(scratch(2 * count * sizeof(float), ScratchOwner::kQgemm));
  auto* const zeros = reinterpret_cast<std::int32_t*>(scales + count);
  std::fill_n(scales, count, problem.scale);
  std::fill_n(zeros, count, problem.zero);
  return {static_cast<const std::uint8_t*>(problem.a), problem.depth, scales, zeros, 0};
}

/// Memory for rows, which nothing has been written to.
Rows room_for(const Problem& problem, const Variant& variant, std::int64_t first, std::int64_t count) {
  std::int64_t step = round_up(std::max<std::int64_t>(problem.depth, 1), kGroup);
  if (step % kSetDistance == 0) step += kPadding;
  const std::size_t numbers = static_cast<std::size_t>(round_up(count, 16)) * sizeof(float);
  // A vector of bytes may be written behind the last row's end.
  char* const memory = scratch(2 * numbers + static_cast<std::size_t>(count * step) + kPadding, ScratchOwner::kQgemm);
  return {&problem,
          &variant,
          reinterpret_cast<std::uint8_t*>(memory + 2 * numbers),
          first,
          count,
          step,
          reinterpret_cast<float*>(memory),
          reinterpret_cast<std::int32_t*>(memory + numbers)};
}

Operand quantized(const Problem& problem, const Variant& variant, const ParallelFor& parallel_for) {
  if (as_they_are(problem)) return in_place(problem);
  Rows rows = room_for(problem, variant, 0, problem.rows);
  if (rows.tasks() == 1)
    rows.quantize(0, rows.count);
  else
    parallel_for(rows.tasks(), Rows::run_task, &rows);
  return rows.operand();
}

struct Job {
  const Problem* problem;
  const Operand* a;  // null where tasks quantize their rows
  const Variant* variant;
  gemm::Blocks<Blocking> blocks;

  std::int64_t rows_of(const gemm::Block& block) const {
    const std::int64_t together = blocks.rows_together;
    return std::min(blocks.blocking.rows, together - block.row % together);
  }
};

void run_task(void* user, std::size_t index) {
  const Job& job = *static_cast<const Job*>(user);
  const gemm::Block block = job.blocks.at(index);
  if (job.a) return job.variant->run(*job.problem, *job.a, job.blocks.blocking, block.row, block.column);
  const Rows rows = room_for(*job.problem, *job.variant, block.row, job.rows_of(block));
  rows.quantize(0, rows.count);
  job.variant->run(*job.problem, rows.operand(), job.blocks.blocking, block.row, block.column);
}

}  // namespace

void run(const Problem& problem, const Variant& variant, const ParallelFor& parallel_for) {
  if (problem.rows == 0 || problem.columns == 0) return;
  Job job{&problem, nullptr, &variant, gemm::blocks_of(problem, blocking_of(problem))};
  Operand all;
  // Rows that one task multiplies are quantized there, just before.
  if (job.blocks.column_blocks > 1 || as_they_are(problem)) {
    all = quantized(problem, variant, parallel_for);
    job.a = &all;
  }
  if (job.blocks.count() == 1)
    run_task(&job, 0);
  else
    parallel_for(job.blocks.count(), run_task, &job);
}

}  // namespace onnxopt::qgemm
