#include "kernels/cpu/attention/attention.h"

#include <algorithm>
#include <thread>

#include "kernels/cpu/rounding.h"

namespace onnxopt::attention {

#define ATTENTION_VARIANT(name, isa)      \
  namespace name {                        \
  void run(const Problem&, const Range&); \
  }
#include "kernels/cpu/attention/variants.inc"
#undef ATTENTION_VARIANT

std::span<const Variant> variants() {
  static constexpr Variant list[] = {
#define ATTENTION_VARIANT(name, isa) {"attention__" #name, isa, name::run},
#include "kernels/cpu/attention/variants.inc"
#undef ATTENTION_VARIANT
  };
  return list;
}

namespace {

/// Multiplications of a task: some 50 us of one core.
constexpr double kTask = 3e6;
/// Tasks for each processor, so that none waits long for another's last one.
constexpr std::int64_t kTasksEach = 4;
/// Tasks of whole groups are a multiple of so many: no processor computes one of few tasks while others have none.
constexpr std::int64_t kEven = 4;
/// The least rows of a task, each of which packs the keys for itself, and the most floats of its results, which stay in the
/// second-level cache.
constexpr std::int64_t kLeastRows = 96, kMostResults = 1 << 15;
/// Rows that kernels take at once, or a multiple of it.
constexpr std::int64_t kBlock = 24;
/// Multiplications below which a second thread costs more than it saves.
constexpr double kGrain = 2e5;

/// Into how many tasks the rows of a group are divided: as few as keep the processors busy.
std::int64_t parts_of(std::int64_t groups, std::int64_t rows, std::int64_t width) {
  static const std::int64_t processors = std::max(1u, std::thread::hardware_concurrency());
  const std::int64_t wanted = ceil_div(kTasksEach * processors, groups);
  const std::int64_t least = ceil_div(rows * width, kMostResults), most = std::max<std::int64_t>(rows / kLeastRows, 1);
  return std::min(std::max(wanted, least), most);
}

struct Job {
  const Problem* problem;
  const Variant* variant;
  std::int64_t groups, group_rows;      // of the problem
  std::int64_t task_groups, task_rows;  // of a task
};

void run_task(void* user, std::size_t index) {
  const Job& job = *static_cast<const Job*>(user);
  const std::int64_t parts = ceil_div(job.group_rows, job.task_rows), task = static_cast<std::int64_t>(index);
  const std::int64_t group = task / parts * job.task_groups, row = task % parts * job.task_rows;
  job.variant->run(*job.problem,
                   {group, std::min(group + job.task_groups, job.groups), row, std::min(row + job.task_rows, job.group_rows)});
}

}  // namespace

void run(const Problem& problem, const Variant& variant, const ParallelFor& parallel_for) {
  const std::int64_t groups = problem.batch * problem.kv_heads;
  const std::int64_t group_rows = problem.heads / problem.kv_heads * problem.rows;
  if (groups == 0 || group_rows == 0) return;
  const double row_work = static_cast<double>(problem.keys) * static_cast<double>(problem.depth + problem.width);
  const double group_work = row_work * static_cast<double>(group_rows);
  if (group_work * static_cast<double>(groups) <= kGrain) {
    variant.run(problem, {0, groups, 0, group_rows});
    return;
  }
  Job job{&problem, &variant, groups, group_rows, 1, group_rows};
  if (group_work <= kTask) {
    const auto most = static_cast<std::int64_t>(kTask / group_work);
    const std::int64_t tasks = std::min(round_up(ceil_div(groups, most), kEven), groups);
    job.task_groups = ceil_div(groups, tasks);
  } else {
    const std::int64_t rows = ceil_div(group_rows, parts_of(groups, group_rows, problem.width));
    job.task_rows = ceil_div(rows, kBlock) * kBlock;
  }
  const std::int64_t tasks = ceil_div(groups, job.task_groups) * ceil_div(group_rows, job.task_rows);
  parallel_for(static_cast<std::size_t>(tasks), run_task, &job);
}

}  // namespace onnxopt::attention
