#include "kernels/cpu/qconv/qconv.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/rounding.h"
#include "kernels/cpu/scratch.h"

namespace onnxopt::qconv {

#define QCONV_VARIANT(name, isa)                  \
  namespace name {                                \
  void dense(const Plan&, std::int64_t task);     \
  void depthwise(const Plan&, std::int64_t task); \
  }
#include "kernels/cpu/qconv/variants.inc"
#undef QCONV_VARIANT

std::span<const Variant> variants() {
  static constexpr Variant list[] = {
#define QCONV_VARIANT(name, isa) {"qconv__" #name, isa, name::dense, name::depthwise},
#include "kernels/cpu/qconv/variants.inc"
#undef QCONV_VARIANT
  };
  return list;
}

namespace {

using conv::Geometry;

constexpr auto kGroup = static_cast<std::int64_t>(qgemm::kGroup), kPanel = static_cast<std::int64_t>(qgemm::kPanel);
/// A multiple of the micro-kernel's rows in every variant, and one of its columns.
constexpr std::int64_t kRowStep = 12, kColumnStep = 32;
/// Multiplications of a task: about 30 us of one core; below the second, threads cost more than they save.
constexpr std::int64_t kTask = 4'000'000, kGrain = 600'000;
/// So many tasks at least, if they are large enough: with fewer, a thread waits for the other's last one. A multiple of `kEven`
/// where they are more than two, as much of the work each: no processor computes one of few while others have none.
constexpr std::int64_t kFewTasks = 8, kEven = 4;
/// Bytes of x that stay in the second-level cache while a task walks over its columns.
constexpr std::int64_t kCachedBytes = 256 << 10;
/// Bytes of weights that stay in the first-level cache while rows are read and results are written.
constexpr std::int64_t kNearBytes = 16 << 10;
/// Multiplications of a depthwise task: they take more time each.
constexpr std::int64_t kDepthwiseTask = 800'000;
/// Bytes that a task copies.
constexpr std::int64_t kCopied = 64 << 10;
/// Channels that depthwise kernels read at once.
constexpr std::int64_t kChannels = 32;

/// A copy of x, line by line.
struct Copy {
  const Convolution* convolution;
  std::uint8_t* to;
  std::int64_t step;  // bytes of a group of a pixel, or of a line
  std::int64_t lines_together;
  bool lines;
  std::uint8_t zero, flip;

  void copy(const std::uint8_t* from, std::int64_t count, std::uint8_t* target) const {
    for (std::int64_t i = 0; i < count; ++i) target[i] = from[i] ^ flip;
  }

  void line(std::int64_t number) const {
    const Geometry& g = convolution->geometry;
    const std::int64_t width = g.input[1] * g.channels;
    const std::uint8_t* const from = static_cast<const std::uint8_t*>(convolution->x.data) + number * width;
    if (lines) {
      std::uint8_t* const target = to + number * step;
      const std::int64_t before = g.pads[1] * g.channels, taken = std::clamp<std::int64_t>(step - before, 0, width);
      std::memset(target, zero, static_cast<std::size_t>(step));
      return copy(from, taken, target + before);
    }
    const std::int64_t channels = g.is_depthwise() ? g.channels : g.channels / g.groups;
    if (step == channels) return copy(from, width, to + number * width);
    const std::int64_t parts = width / channels;
    for (std::int64_t part = 0; part < parts; ++part) {
      std::uint8_t* const target = to + (number * parts + part) * step;
      copy(from + part * channels, channels, target);
      std::memset(target + channels, zero, static_cast<std::size_t>(step - channels));
    }
  }

  static void run(void* user, std::size_t index) {
    const Copy& copy = *static_cast<const Copy*>(user);
    const Geometry& g = copy.convolution->geometry;
    const std::int64_t begin = static_cast<std::int64_t>(index) * copy.lines_together;
    for (std::int64_t at = begin; at < std::min(begin + copy.lines_together, g.batch * g.input[0]); ++at) copy.line(at);
  }
};

Operand as_it_is(const Convolution& convolution, std::int32_t zero) {
  const Geometry& g = convolution.geometry;
  return {static_cast<const std::uint8_t*>(convolution.x.data),
          g.channels / g.groups,
          g.channels,
          g.input[1] * g.channels,
          false,
          zero};
}

/// Rows are read in fours of bytes, of depthwise convolutions in whole vectors, and as uint8.
Operand operand_of(const Convolution& convolution, const ParallelFor& parallel_for) {
  const Geometry& g = convolution.geometry;
  const bool is_signed = convolution.x.type == Type::kInt8, depthwise = g.is_depthwise();
  const std::int32_t zero = convolution.x.zero + (is_signed ? 128 : 0);
  const std::int64_t channels = depthwise ? g.channels : g.channels / g.groups;
  const bool fits = depthwise ? channels >= kChannels : channels % kGroup == 0;
  if (fits && !is_signed) return as_it_is(convolution, zero);
  const bool lines = !fits && !depthwise && in_lines(g);
  std::int64_t step = depthwise ? std::max(channels, kChannels) : round_up(channels, kGroup);
  const std::int64_t read = (g.output[1] - 1) * g.strides[1] + g.kernel[1];
  if (lines) step = std::max(g.pads[1] + g.input[1], read) * channels;
  const std::int64_t groups = depthwise ? 1 : g.groups;        // that a pixel is cut into
  const std::int64_t parts = lines ? 1 : g.input[1] * groups;  // of a line
  const std::int64_t all = g.batch * g.input[0];
  Copy copy{&convolution,
            nullptr,
            step,
            std::max<std::int64_t>(kCopied / std::max<std::int64_t>(parts * step, 1), 1),
            lines,
            static_cast<std::uint8_t>(zero),
            static_cast<std::uint8_t>(is_signed ? 0x80 : 0)};
  // The last group of bytes of a line may end behind it.
  const std::int64_t bytes = all * parts * step + kGroup;
  copy.to = reinterpret_cast<std::uint8_t*>(scratch(static_cast<std::size_t>(bytes), ScratchOwner::kQconv));
  std::memset(copy.to + bytes - kGroup, 0, static_cast<std::size_t>(kGroup));
  const std::int64_t tasks = ceil_div(all, copy.lines_together);
  if (tasks == 1)
    Copy::run(&copy, 0);
  else
    parallel_for(static_cast<std::size_t>(tasks), Copy::run, &copy);
  const std::int64_t pixel = lines ? channels : step * groups;
  return {copy.to, step, pixel, parts * step, lines, zero};
}

/// The range of a quantization in its steps.
gemm::Bounds bounds_of(const Tensor& to) {
  const int first = to.type == Type::kInt8 ? -128 : 0;
  return {static_cast<float>(first - to.zero), static_cast<float>(first + 255 - to.zero)};
}

Direct direct_of(const Convolution& c) {
  Direct direct{};
  const bool bytes = c.result.type != Type::kFloat && (c.added.data == nullptr || c.added.type != Type::kFloat);
  if (!bytes || c.epilogue) return direct;
  const bool rounded = c.rounded.type != Type::kNone;
  const std::int64_t filters = c.geometry.filters;
  auto* const columns =
      reinterpret_cast<float*>(scratch(static_cast<std::size_t>(2 * filters) * sizeof(float), ScratchOwner::kQconvColumns));
  const float inverse = 1.0f / c.result.scale, unit = c.gate ? 1.0f : inverse;
  const float first = rounded ? 1.0f / c.rounded.scale : unit;
  for (std::int64_t i = 0; i < filters; ++i) {
    columns[i] = c.x.scale * c.weight_scales[i] * first;
    columns[filters + i] = c.bias ? c.bias[i] * first : 0.0f;
  }
  direct.multipliers = columns;
  direct.offsets = columns + filters;
  if (rounded) {
    const gemm::Bounds range = bounds_of(c.rounded);
    direct.first_low = range.low;
    direct.first_high = range.high;
    direct.ratio = c.rounded.scale * unit;
  }
  direct.added_step = c.added.scale * unit;
  direct.last = inverse;
  const gemm::Bounds range = bounds_of(c.result);
  direct.low = c.clip ? std::clamp(c.clip->low * inverse, range.low, range.high) : range.low;
  direct.high = c.clip ? std::clamp(c.clip->high * inverse, range.low, range.high) : range.high;
  return direct;
}

void plan_product(Plan& plan) {
  const Geometry& g = plan.convolution->geometry;
  const std::int64_t channels = g.channels / g.groups, filters = g.filters / g.groups, rows = g.pixels();
  plan.taps = plan.x.lines ? g.kernel[0] : g.taps();
  plan.depth = round_up(plan.x.lines ? stretch(g) : channels, kGroup);
  const std::int64_t row_work = plan.taps * std::max<std::int64_t>(plan.depth, 32) * round_up(filters, kPanel);
  const std::int64_t work = rows * row_work * g.groups;
  const std::int64_t most = std::max(kCachedBytes / std::max<std::int64_t>(channels, 1) / g.strides[0] / g.strides[1], kRowStep);
  const std::int64_t wanted = std::max(work / kTask, std::clamp<std::int64_t>(work / kGrain, 1, kFewTasks));
  const std::int64_t tasks = wanted > 2 ? round_up(wanted, kEven) : wanted;
  // Weights that do not fit into the cache are read once, by all rows that do.
  const bool cuts_rows = plan.taps * plan.depth * filters <= kCachedBytes || rows > 4 * most;
  const std::int64_t least_row_tasks = ceil_div(rows, round_up(most, kRowStep));
  const std::int64_t most_row_tasks = std::max(ceil_div(rows, kRowStep), least_row_tasks);
  const std::int64_t row_tasks_wanted =
      cuts_rows ? std::clamp(ceil_div(tasks, g.groups), least_row_tasks, most_row_tasks) : least_row_tasks;
  plan.task_rows = ceil_div(rows, row_tasks_wanted);
  plan.row_tasks = ceil_div(rows, plan.task_rows);
  const std::int64_t row_tasks = plan.row_tasks * g.groups;
  plan.task_columns = even_part(filters, row_tasks < tasks ? ceil_div(tasks, row_tasks) : 1, kColumnStep);
  plan.column_tasks = ceil_div(filters, plan.task_columns);
  plan.rows_first = plan.taps * plan.depth * std::min(filters, plan.task_columns) <= kNearBytes;
}

struct Job {
  const Plan* plan;
  void (*task)(const Plan&, std::int64_t);

  static void run(void* user, std::size_t index) {
    const Job& job = *static_cast<const Job*>(user);
    job.task(*job.plan, static_cast<std::int64_t>(index));
  }
};

}  // namespace

void run(const Convolution& convolution, const Variant& variant, const ParallelFor& parallel_for) {
  const Geometry& g = convolution.geometry;
  if (g.pixels() == 0) return;
  Plan plan{};
  plan.convolution = &convolution;
  plan.x = operand_of(convolution, parallel_for);
  plan.direct = direct_of(convolution);
  std::int64_t tasks = 1;
  if (g.is_depthwise()) {
    const std::int64_t lines = g.batch * g.output[0], line_work = g.output[1] * round_up(g.channels, kChannels) * (g.taps() + 4);
    const bool small = line_work * lines < kGrain;
    plan.task_lines = small ? lines : std::clamp<std::int64_t>(kDepthwiseTask / line_work, 1, lines);
    tasks = ceil_div(lines, plan.task_lines);
  } else {
    plan_product(plan);
    tasks = g.groups * plan.row_tasks * plan.column_tasks;
  }
  Job job{&plan, g.is_depthwise() ? variant.depthwise : variant.dense};
  if (tasks == 1)
    Job::run(&job, 0);
  else
    parallel_for(static_cast<std::size_t>(tasks), Job::run, &job);
}

void apply_epilogue(const Convolution& convolution, const Results& results) {
  const elementwise::Epilogue& epilogue = *convolution.epilogue;
  const std::int64_t width = results.column_end - results.column;
  for (std::int64_t row = results.row; row < results.row_end;) {
    const std::int64_t together = epilogue.rows_together(), end = std::min(results.row_end, row - row % together + together);
    float* const data = results.data + (row - results.row) * width;
    const elementwise::RawBlock block{data, width};
    const bool in_place = convolution.result.type != Type::kFloat;
    epilogue.apply(row, end - row, results.column, width, {&block, 1}, in_place ? data : nullptr);
    row = end;
  }
}

}  // namespace onnxopt::qconv
