#include "kernels/cpu/norm/norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace onnxopt::norm {

#define NORM_VARIANT(name, isa)                                   \
  namespace name {                                                \
  void run(const Problem&, std::int64_t begin, std::int64_t end); \
  void measure(const Problem&, const Places&, const Moment&);     \
  void scale(const Problem&, const Places&, const Line&);         \
  }
#include "kernels/cpu/norm/variants.inc"
#undef NORM_VARIANT

std::span<const Variant> variants() {
  static constexpr Variant list[] = {
#define NORM_VARIANT(name, isa) {"norm__" #name, isa, name::run, name::measure, name::scale},
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

// --- groups of channels that lie last ---
/// Places whose moments are combined with others' in the end: fewer would not be worth the memory for these.
constexpr std::int64_t kLeastPlaces = 64;

/// Images cut into parts. A part has the moments of its places, an image then has what becomes of its channels.
class Groups {
 public:
  Groups(const Problem& problem, const Variant& variant)
      : problem_(problem), variant_(variant), channels_(problem.line), places_(problem.width / problem.line) {
    const std::int64_t wanted = std::max<std::int64_t>(kTask / channels_, kLeastPlaces);
    parts_ = std::max<std::int64_t>(places_ / wanted, 1);
    together_ = (places_ + parts_ - 1) / parts_;
    parts_ = (places_ + together_ - 1) / together_;
    moments_.resize(static_cast<std::size_t>(tasks() * 3 * channels_));
    lines_.resize(static_cast<std::size_t>(problem.rows * 3 * channels_));
  }

  void run(const ParallelFor& parallel_for) {
    for_tasks(parallel_for,
              [](void* user, std::size_t task) { static_cast<Groups*>(user)->measure(static_cast<std::int64_t>(task)); });
    for (std::int64_t image = 0; image < problem_.rows; ++image)
      for (std::int64_t group = 0; group < problem_.groups; ++group) combine(image, group);
    for_tasks(parallel_for,
              [](void* user, std::size_t task) { static_cast<Groups*>(user)->scale(static_cast<std::int64_t>(task)); });
  }

 private:
  std::int64_t tasks() const { return problem_.rows * parts_; }

  void for_tasks(const ParallelFor& parallel_for, void (*body)(void*, std::size_t)) {
    if (problem_.rows * problem_.width <= kGrain)
      for (std::int64_t task = 0; task < tasks(); ++task) body(this, static_cast<std::size_t>(task));
    else
      parallel_for(static_cast<std::size_t>(tasks()), body, this);
  }

  Places places_of(std::int64_t task) const {
    const std::int64_t begin = task % parts_ * together_;
    return {task / parts_, begin, std::min(begin + together_, places_)};
  }

  Moment moment_of(std::int64_t task) {
    float* const middle = moments_.data() + task * 3 * channels_;
    return {middle, middle + channels_, middle + 2 * channels_};
  }

  void measure(std::int64_t task) { variant_.measure(problem_, places_of(task), moment_of(task)); }

  void scale(std::int64_t task) {
    const Places places = places_of(task);
    const float* const mean = lines_.data() + places.image * 3 * channels_;
    variant_.scale(problem_, places, {mean, mean + channels_, mean + 2 * channels_});
  }

  /// The moments of a group are those of its channels in all parts.
  void combine(std::int64_t image, std::int64_t group) {
    const std::int64_t size = channels_ / problem_.groups, first = group * size;
    const auto for_each = [&](auto body) {
      for (std::int64_t task = image * parts_; task < (image + 1) * parts_; ++task) {
        const Places places = places_of(task);
        const Moment moment = moment_of(task);
        const auto count = static_cast<double>(places.end - places.begin);
        for (std::int64_t c = first; c < first + size; ++c)
          body(count, static_cast<double>(moment.middle[c]) + static_cast<double>(moment.mean[c]),
               static_cast<double>(moment.squares[c]));
      }
    };
    const double elements = static_cast<double>(places_ * size);
    double mean = 0.0, squares = 0.0;
    if (problem_.kind == Kind::kLayer) {
      for_each([&](double count, double of_channel, double) { mean += count * of_channel; });
      mean /= elements;
    }
    for_each([&](double count, double of_channel, double more) {
      const double d = of_channel - mean;
      squares += more + count * d * d;
    });
    const double factor = 1.0 / std::sqrt(squares / elements + static_cast<double>(problem_.epsilon));
    write_line(image, first, size, mean, factor);
  }

  /// What rounding takes from the mean goes into the term.
  void write_line(std::int64_t image, std::int64_t first, std::int64_t size, double mean, double factor) {
    float* const line = lines_.data() + image * 3 * channels_;
    const auto rounded = static_cast<float>(mean);
    const Affine& affine = problem_.affine;
    for (std::int64_t c = first; c < first + size; ++c) {
      const double scale = factor * (affine.scale ? static_cast<double>(affine.scale[c]) : 1.0);
      const double bias = affine.bias ? static_cast<double>(affine.bias[c]) : 0.0;
      line[c] = rounded;
      line[channels_ + c] = static_cast<float>(scale);
      line[2 * channels_ + c] = static_cast<float>(bias + (static_cast<double>(rounded) - mean) * scale);
    }
  }

  const Problem& problem_;
  const Variant& variant_;
  std::int64_t channels_, places_, parts_, together_;
  std::vector<float> moments_, lines_;
};

}  // namespace

void run(const Problem& problem, const Variant& variant, const ParallelFor& parallel_for) {
  if (problem.rows == 0 || problem.width == 0) return;
  if (problem.groups != 0) return Groups(problem, variant).run(parallel_for);
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
