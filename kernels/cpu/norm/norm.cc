#include "kernels/cpu/norm/norm.h"

#include <algorithm>

namespace onnxopt::norm {

#define NORM_VARIANT(name, isa)                                   \
  namespace name {                                                \
  void run(const Problem&, std::int64_t begin, std::int64_t end); \
  }
#include "kernels/cpu/norm/variants.inc"
#undef NORM_VARIANT

std::span<const Variant> variants() {
  static constexpr Variant list[] = {
#define NORM_VARIANT(name, isa) {"norm__" #name, isa, name::run},
#include "kernels/cpu/norm/variants.inc"
#undef NORM_VARIANT
  };
  return list;
}

namespace {

/// Elements below which a second thread costs more than it saves.
constexpr std::int64_t kGrain = 8192;
/// Elements of a task: some 10 us of one core.
constexpr std::int64_t kTask = 16384;
constexpr std::int64_t kMostTasks = 256;

struct Job {
  const Problem* problem;
  const Variant* variant;
  std::int64_t units, units_together;
};

void run_task(void* user, std::size_t index) {
  const Job& job = *static_cast<const Job*>(user);
  const std::int64_t begin = static_cast<std::int64_t>(index) * job.units_together;
  job.variant->run(*job.problem, begin, std::min(begin + job.units_together, job.units));
}

/// Rows, or blocks of columns.
std::int64_t units_of(const Problem& problem) {
  return problem.inner == 1 ? problem.rows : problem.rows / problem.inner * ((problem.inner + kColumns - 1) / kColumns);
}

}  // namespace

void run(const Problem& problem, const Variant& variant, const ParallelFor& parallel_for) {
  if (problem.rows == 0 || problem.width == 0) return;
  Job job{&problem, &variant, units_of(problem), 1};
  const std::int64_t elements = problem.rows * problem.width;
  if (elements <= kGrain) {
    variant.run(problem, 0, job.units);
    return;
  }
  const std::int64_t tasks = std::clamp<std::int64_t>(elements / kTask, 2, kMostTasks);
  job.units_together = (job.units + tasks - 1) / tasks;
  parallel_for(static_cast<std::size_t>((job.units + job.units_together - 1) / job.units_together), run_task, &job);
}

}  // namespace onnxopt::norm
