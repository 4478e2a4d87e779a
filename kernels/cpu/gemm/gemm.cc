#include "kernels/cpu/gemm/gemm.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/gemm/blocks.h"
#include "kernels/cpu/rounding.h"
#include "kernels/cpu/scratch.h"

namespace onnxopt::gemm {

#define GEMM_VARIANT(name, isa)                                                     \
  namespace name {                                                                  \
  void run(const Problem&, const Blocking&, std::int64_t row, std::int64_t column); \
  }
#include "kernels/cpu/gemm/variants.inc"
#undef GEMM_VARIANT

std::span<const Variant> variants() {
  static constexpr Variant list[] = {
#define GEMM_VARIANT(name, isa) {"gemm__" #name, isa, name::run},
#include "kernels/cpu/gemm/variants.inc"
#undef GEMM_VARIANT
  };
  return list;
}

namespace {

/// Multiples of the micro-kernel's block in every variant.
constexpr std::int64_t kRowStep = 12, kColumnStep = 32;
/// Columns from which on a program runs along the rows of a block, without a copy of them.
constexpr std::int64_t kLeastFinishedColumns = 128;
/// Floats of A that stay in the second-level cache while a block walks over its columns.
constexpr std::int64_t kCachedRows = 96 << 10;
/// Floats of B that stay there while blocks of rows walk past.
constexpr std::int64_t kCachedColumns = 96 << 10;
constexpr std::int64_t kMostDepth = 1024;
/// Multiplications of a task: about 30 us of one core.
constexpr double kTask = 1.5e6;
constexpr double kMostTasks = 512;
/// Multiplications below which a second thread costs more than it saves.
constexpr double kGrain = 2e5;

/// Rows for which weights of integers are read as they are: for more of them, floats in the cache pay.
constexpr std::int64_t kMostStreamed = 8;
/// Bytes of weights of a task while they stream from memory, and its columns: a multiple of those that are multiplied together.
constexpr std::int64_t kStreamedBytes = 128 << 10, kStreamedStep = 128;

/// Floats of A at whose distance two rows fall into one set of the first-level cache, which then cannot hold a block of rows.
constexpr std::int64_t kSetDistance = 1024;
/// What a copy of A, whose rows are a cache line further apart, may take, and from how many columns on it is worth it.
constexpr std::int64_t kMostCopied = 2 << 20, kLeastColumns = 256;
constexpr std::int64_t kPadding = 16;

struct Job {
  const Problem* problem;
  const Variant* variant;
  Blocks<Blocking> blocks;
};

void run_task(void* user, std::size_t index) {
  const Job& job = *static_cast<const Job*>(user);
  const Block block = job.blocks.at(index);
  job.variant->run(*job.problem, job.blocks.blocking, block.row, block.column);
}

struct Copy {
  const Problem* problem;
  float* target;
};

void copy_row(void* user, std::size_t row) {
  const auto& [problem, target] = *static_cast<const Copy*>(user);
  const auto index = static_cast<std::int64_t>(row);
  std::memcpy(target + index * (problem->depth + kPadding), problem->a + index * problem->row_step,
              static_cast<std::size_t>(problem->depth) * sizeof(float));
}

/// The problem with a copy of A, where its rows would fall into one set of the cache.
Problem spread(const Problem& problem, const ParallelFor& parallel_for) {
  const std::int64_t size = problem.rows * (problem.depth + kPadding);
  if (problem.row_step % kSetDistance != 0 || problem.depth == 0 || problem.rows < kRowStep || size > kMostCopied ||
      problem.columns < kLeastColumns)
    return problem;
  Copy copy{&problem, reinterpret_cast<float*>(scratch(static_cast<std::size_t>(size) * sizeof(float), ScratchOwner::kGemmRows))};
  parallel_for(static_cast<std::size_t>(problem.rows), copy_row, &copy);
  Problem made = problem;
  made.a = copy.target;
  made.row_step = problem.depth + kPadding;
  return made;
}

/// Few rows by weights of integers: all rows, and columns enough to be worth a task.
Blocking streamed_blocking(const Problem& problem) {
  const std::int64_t column_bytes = std::max<std::int64_t>(problem.depth / (problem.kind == Weights::kInt4 ? 2 : 1), 1);
  const std::int64_t columns = round_up(ceil_div(kStreamedBytes, column_bytes), kStreamedStep);
  return {problem.rows, std::min(columns, problem.columns), std::max<std::int64_t>(problem.depth, 1), true};
}

}  // namespace

Blocking blocking_of(const Problem& problem) {
  if (problem.kind != Weights::kFloat && problem.rows <= kMostStreamed) return streamed_blocking(problem);
  const std::int64_t depth_blocks = std::max<std::int64_t>(ceil_div(problem.depth, kMostDepth), 1);
  Blocking blocking{problem.rows, problem.columns, std::max<std::int64_t>(ceil_div(problem.depth, depth_blocks), 1)};
  const double work = static_cast<double>(problem.rows) * static_cast<double>(problem.columns) *
                      static_cast<double>(problem.depth) * static_cast<double>(problem.product_count);
  const auto tasks = static_cast<std::int64_t>(std::clamp(work / kTask, work < kGrain ? 1.0 : 2.0, kMostTasks));
  const bool weights_fit = problem.columns * blocking.depth <= kCachedColumns;
  const std::int64_t most_rows = std::max(kCachedRows / blocking.depth / kRowStep * kRowStep, kRowStep);
  if (weights_fit || problem.rows > 4 * most_rows)
    blocking.rows = std::min(round_up(ceil_div(problem.rows, tasks), kRowStep), most_rows);
  else
    blocking.rows = std::min(problem.rows, most_rows);
  const std::int64_t row_blocks = std::max<std::int64_t>(ceil_div(problem.rows, blocking.rows), 1);
  if (row_blocks < tasks) {
    const std::int64_t columns = ceil_div(problem.columns, ceil_div(tasks, row_blocks));
    blocking.columns = round_up(problem.epilogue ? std::max(columns, kLeastFinishedColumns) : columns, kColumnStep);
  }
  return blocking;
}

void run(const Problem& problem, const Variant& variant, const ParallelFor& parallel_for) {
  if (problem.rows == 0 || problem.columns == 0) return;
  const Problem spread_out = spread(problem, parallel_for);
  Job job{&spread_out, &variant, blocks_of(problem, blocking_of(problem))};
  parallel_for(job.blocks.count(), run_task, &job);
}

}  // namespace onnxopt::gemm
