#include "kernels/cpu/conv/plan.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "kernels/cpu/rounding.h"
#include "kernels/cpu/scratch.h"

namespace onnxopt::conv {

namespace {

constexpr auto kPanel = static_cast<std::int64_t>(gemm::kPanel);

/// Work is counted in multiplications of 16 floats, one of which takes about a cycle on one core.
constexpr std::int64_t kTaskWork = 200'000;
/// Below this, threads cost more than they save.
constexpr std::int64_t kLeastWork = 30'000;
/// The same where all that a thread reads lies in its own cache.
constexpr std::int64_t kLeastLineWork = 15'000;
/// So many tasks at least, if they are large enough: with fewer, a thread waits for the other's last one.
constexpr std::int64_t kFewTasks = 8;
/// A multiple of the rows of every instruction set's block.
constexpr std::int64_t kRowStep = 12;
constexpr std::int64_t kMostBlockRows = 192;
/// Floats of a block's operands and results, which should stay in the second-level cache, beside the weights.
constexpr std::int64_t kBlockFloats = 32 * 1024;
constexpr std::int64_t kCachedFloats = 96 * 1024;
constexpr std::int64_t kTileBlockFloats = 112 * 1024;
constexpr std::int64_t kLeastLineTiles = 4 * kRowStep;
/// Floats of transformed weights and of the products with them, where inputs were transformed before.
constexpr std::int64_t kTileWeightFloats = 72 * 1024, kTileProductFloats = 96 * 1024;
/// Floats of the weights of a block of columns, which are read by all rows of a block.
constexpr std::int64_t kPanelFloats = 48 * 1024;
/// Floats of the windows of a strip, which stay in the first-level cache from line to line.
constexpr std::int64_t kStripFloats = 6 * 1024;
constexpr std::int64_t kStripPixels = 8;
/// Floats between a depthwise convolution and the product that reads them.
constexpr std::int64_t kSeparableFloats = 64 * 1024;
/// Pixels of an inverted residual's output that are computed together: a few blocks of rows; and the least of a line.
constexpr std::int64_t kStepPixels = 56, kLeastStripColumns = 12;
/// Floats of its expanded lines that are kept, and of what a task reads and writes besides.
constexpr std::int64_t kKeptFloats = 40 * 1024, kBandFloats = 96 * 1024;
/// What it takes to write and to add a vector of sums, and what is worth a task of its own.
constexpr std::int64_t kJoinWork = 4, kPartWork = 125'000;
/// Floats of a tensor that one thread sums up.
constexpr std::int64_t kPartFloats = 64 * 1024;
/// The same where it also scales them: a thread then finds more of them in its own cache, before and after.
constexpr std::int64_t kScaledPartFloats = 12 * 1024;
/// Floats that an epilogue finds in the first-level cache, and of gates that are read from there in one go.
constexpr std::int64_t kScaleBlockFloats = 4 * 1024, kLeastRowFloats = 128;
constexpr std::int64_t kMostTransformedFloats = 4 << 20;

/// What one of Winograd's transformations takes for 16 channels (inputs), filters (outputs) and weights: of a column or row of a
/// tile.
constexpr std::int64_t kInputTransform = 17, kOutputTransform = 15, kWeightTransform = 13;
/// What it takes to begin and to end the products of a tile's point, in channels.
constexpr std::int64_t kTileCall = 8;
/// It has to take no more than this part of the time: it reads and writes more besides.
constexpr double kWinogradGain = 0.8;
constexpr std::int64_t kLeastWinogradChannels = 8;
/// Floats of the weights that are read again for each line of a group, at most.
constexpr std::int64_t kLineFloats = 24 * 1024;

template <class AnyPlan>
struct Job {
  const AnyPlan* plan;
  void (*run)(const AnyPlan&, std::int64_t);
};

template <class AnyPlan>
void run_tasks(const AnyPlan& plan, void (*task)(const AnyPlan&, std::int64_t), std::int64_t tasks,
               const ParallelFor& parallel_for) {
  if (tasks <= 0) return;
  if (tasks == 1) return task(plan, 0);
  Job<AnyPlan> job{&plan, task};
  parallel_for(
      static_cast<std::size_t>(tasks),
      [](void* user, std::size_t index) {
        const auto& one = *static_cast<const Job<AnyPlan>*>(user);
        one.run(*one.plan, static_cast<std::int64_t>(index));
      },
      &job);
}

/// Calls `part(index)` for all indices below `total`, of so many floats each; a thread gets at least `least` floats, if there are.
template <class Part>
void some_together(std::int64_t total, std::int64_t floats, std::int64_t least, const Part& part, const ParallelFor& parallel_for) {
  struct Parts {
    const Part* part;
    std::int64_t together, total;
  };
  if (total == 0) return;
  const std::int64_t together = std::clamp<std::int64_t>(least / std::max<std::int64_t>(floats, 1), 1, total);
  Parts parts{&part, together, total};
  const auto run = [](void* user, std::size_t index) {
    const Parts& one = *static_cast<const Parts*>(user);
    const std::int64_t begin = static_cast<std::int64_t>(index) * one.together;
    for (std::int64_t i = begin; i < std::min(begin + one.together, one.total); ++i) (*one.part)(i);
  };
  const auto tasks = static_cast<std::size_t>(ceil_div(total, together));
  if (tasks == 1) return run(&parts, 0);
  parallel_for(tasks, run, &parts);
}

/// Whether a row of the window is shorter than a panel is wide: tap by tap, the products would be too short.
bool is_narrow(const Geometry& g) {
  return g.groups == 1 && g.channels < kLeastWinogradChannels && g.kernel[1] > 1 && g.dilations[1] == 1;
}

/// Whether windows are multiplied line by line, where there are enough lines for threads to share them.
bool is_linewise(const Geometry& g) {
  if (g.taps() == 1 || g.batch * g.output[0] * g.groups < kFewTasks) return false;
  return g.taps() * g.channels / g.groups * round_up(g.filters / g.groups, kPanel) <= kLineFloats;
}

bool is_plain(const Geometry& g) {
  const bool window = g.taps() == 1 && g.strides[0] == 1 && g.strides[1] == 1 && g.pads[0] == 0 && g.pads[1] == 0;
  return window && g.input[0] == g.output[0] && g.input[1] == g.output[1];
}

Plan describe(const Convolution& convolution) {
  const Geometry& g = convolution.geometry;
  Plan plan{};
  plan.convolution = &convolution;
  plan.group_channels = g.channels / g.groups;
  plan.group_filters = g.filters / g.groups;
  plan.panels = ceil_div(plan.group_filters, kPanel);
  plan.rows_together = convolution.epilogue ? convolution.epilogue->rows_together() : std::numeric_limits<std::int64_t>::max();
  return plan;
}

/// Cuts columns until there are tasks enough, each of which is worth it.
void cut_columns(Plan& plan, std::int64_t other_tasks, std::int64_t work) {
  const std::int64_t most =
      std::clamp<std::int64_t>(work / kLeastWork, 1, ceil_div(kFewTasks, std::max<std::int64_t>(other_tasks, 1)));
  plan.task_columns = round_up(ceil_div(plan.group_filters, most), kColumnStep);
  plan.column_tasks = ceil_div(plan.group_filters, plan.task_columns);
}

Plan plan_product(const Convolution& convolution) {
  const Geometry& g = convolution.geometry;
  Plan plan = describe(convolution);
  plan.plain = is_plain(g);
  const std::int64_t rows = g.pixels(), depth = g.taps() * plan.group_channels;
  const std::int64_t row_work = std::max<std::int64_t>(depth, 8) * plan.panels, work = rows * row_work * g.groups;
  // Weights that do not fit into the cache are read once, by all rows that do.
  const std::int64_t channels = std::max<std::int64_t>(plan.group_channels, 1);
  const std::int64_t most_rows = std::max(kCachedFloats / channels / g.strides[0] / g.strides[1], kRowStep);
  const bool cuts_rows = plan.group_filters * depth <= kCachedFloats || rows > 4 * most_rows;
  const std::int64_t tasks = std::max(work / kTaskWork, std::clamp<std::int64_t>(work / kLeastWork, 1, kFewTasks));
  plan.task_rows = std::min(cuts_rows ? std::max(ceil_div(rows * g.groups, tasks), kRowStep) : rows, most_rows);
  plan.task_rows = ceil_div(rows, ceil_div(rows, plan.task_rows));
  plan.row_tasks = ceil_div(rows, plan.task_rows);
  cut_columns(plan, plan.row_tasks * g.groups, work);
  const std::int64_t width = std::min(plan.task_columns, plan.group_filters) + plan.group_channels;
  const std::int64_t most_block_rows = cuts_rows ? kMostBlockRows : plan.task_rows;
  plan.block_rows = std::max(std::min(kBlockFloats / width, most_block_rows) / kRowStep * kRowStep, 2 * kRowStep);
  plan.block_taps = std::clamp<std::int64_t>(kPanelFloats / (kColumnStep * channels), 1, g.taps());
  return plan;
}

/// Tiles of all images.
std::int64_t count_tiles(const Geometry& g) {
  return g.batch * ceil_div(g.output[0], tile_outputs(g.kernel[0])) * ceil_div(g.output[1], tile_outputs(g.kernel[1]));
}

/// Floats of all transformed inputs, of so many tiles, and of all transformed weights.
std::int64_t transformed_inputs(const Geometry& g, std::int64_t tiles) {
  return tile_points(g) * g.groups * tiles * (round_up(g.channels / g.groups, kPanel) + kRowPadding);
}
std::int64_t transformed_weights(const Geometry& g) {
  return tile_points(g) * (g.channels * round_up(g.filters / g.groups, kPanel) + kRowPadding);
}

/// Tiles of one line may be cut anywhere, and a sequence has no other lines for other threads.
std::int64_t count_line_parts(const Geometry& g, const std::int64_t (&tiles)[2]) {
  if (g.kernel[0] != 1) return 1;
  return std::clamp<std::int64_t>(tiles[1] / kLeastLineTiles, 1, ceil_div(kFewTasks, g.groups * g.batch * tiles[0]));
}

Plan plan_winograd(const Convolution& convolution) {
  const Geometry& g = convolution.geometry;
  Plan plan = plan_product(convolution);
  for (int axis = 0; axis < 2; ++axis) plan.tiles[axis] = ceil_div(g.output[axis], tile_outputs(g.kernel[axis]));
  plan.line_parts = count_line_parts(g, plan.tiles);
  plan.tiles[0] *= plan.line_parts;
  plan.tiles[1] = ceil_div(plan.tiles[1], plan.line_parts);
  const std::int64_t points = tile_points(g);
  // Parts of lines are equally long: there may be tiles beyond the last pixel.
  plan.transformed_floats = transformed_inputs(g, g.batch * plan.tiles[0] * plan.tiles[1]);
  plan.inputs_first = plan.transformed_floats < transformed_weights(g);
  if (!plan.inputs_first) plan.transformed_floats = transformed_weights(g);
  const std::int64_t tile_work = points * plan.group_channels * plan.panels;
  if (plan.inputs_first) {
    const std::int64_t rows = g.batch * plan.tiles[0], blocks = ceil_div(plan.group_filters, kColumnStep);
    plan.task_columns = kColumnStep;
    plan.column_tasks = blocks;
    const std::int64_t fitting = std::max<std::int64_t>(kTileProductFloats / (points * kColumnStep * plan.tiles[1]), 1);
    const std::int64_t parts = std::max(ceil_div(rows, fitting), std::min(ceil_div(kFewTasks / 2, blocks * g.groups), rows));
    plan.task_tile_rows = ceil_div(rows, parts);
    plan.tile_row_tasks = ceil_div(rows, plan.task_tile_rows);
    plan.block_channels = std::min(kTileWeightFloats / (points * kColumnStep), plan.group_channels);
    return plan;
  }
  const std::int64_t wanted = std::max<std::int64_t>(kTaskWork / tile_work, kRowStep);
  plan.tile_row_tasks = ceil_div(plan.tiles[0], std::clamp<std::int64_t>(wanted / plan.tiles[1], 1, plan.tiles[0]));
  plan.task_tile_rows = ceil_div(plan.tiles[0], plan.tile_row_tasks);
  plan.tile_row_tasks = ceil_div(plan.tiles[0], plan.task_tile_rows);
  cut_columns(plan, g.groups * g.batch * plan.tile_row_tasks, g.batch * plan.tiles[0] * plan.tiles[1] * tile_work);
  const std::int64_t most =
      std::max(kTileBlockFloats / (points * (plan.group_channels + kRowPadding)) / kRowStep * kRowStep, kRowStep);
  const std::int64_t tiles = plan.task_tile_rows * plan.tiles[1];
  plan.block_tiles = ceil_div(tiles, ceil_div(tiles, most));
  return plan;
}

/// Tasks of some of the lines, of so much work each.
Plan plan_lines(const Convolution& convolution, std::int64_t lines, std::int64_t line_work) {
  const Geometry& g = convolution.geometry;
  Plan plan = describe(convolution);
  const std::int64_t most = std::max<std::int64_t>(kTileBlockFloats / std::max<std::int64_t>(g.output[1] * g.filters, 1), 1);
  const std::int64_t wanted = std::clamp<std::int64_t>(kTaskWork / 4 / line_work, 1, most);
  plan.task_lines = line_work * lines < 2 * kLeastWork ? lines : std::min(wanted, lines);
  return plan;
}

Plan plan_depthwise(const Convolution& convolution) {
  const Geometry& g = convolution.geometry;
  const std::int64_t stride = std::min(g.strides[1], kStripFloats);  // a larger one makes no difference
  const auto columns = [&](std::int64_t pixels) { return g.kernel[0] * ((pixels - 1) * stride + g.kernel[1]); };
  const std::int64_t depth = std::max<std::int64_t>(g.channels / g.groups, 1);
  // The weights of several channels are as many as what a strip reads.
  const std::int64_t weights = (depth - 1) * g.taps();
  const std::int64_t fitting = std::max(kStripFloats / (columns(kStripPixels) + weights) / kPanel, std::int64_t{1}) * kPanel;
  const std::int64_t strips = std::max<std::int64_t>(ceil_div(g.channels, fitting), 1);
  const std::int64_t channels = std::max(round_up(ceil_div(g.channels, strips), kPanel), kPanel);
  const std::int64_t lines = g.batch * g.output[0], vectors = ceil_div(g.channels, kPanel);
  const std::int64_t line_work = g.output[1] * vectors * (g.taps() * depth + 4), work = lines * line_work;
  Plan plan = describe(convolution);
  // Threads find the lines in their own caches that they have made of the same part of the image. Few lines would share little of
  // what they read: the channels are cut then, as they are where an epilogue would not find the results in the cache.
  const std::int64_t tasks = std::max(work / (kTaskWork / 4), std::clamp<std::int64_t>(work / kLeastLineWork, 1, kFewTasks));
  plan.task_lines = ceil_div(lines, std::clamp<std::int64_t>(lines / (2 * g.kernel[0]), 1, tasks));
  const std::int64_t parts = ceil_div(tasks, ceil_div(lines, plan.task_lines));
  const std::int64_t together = std::max<std::int64_t>(kTileBlockFloats / (plan.task_lines * g.output[1] * channels), 1);
  plan.task_channels = std::min(ceil_div(strips, parts), together) * channels;
  plan.strip_channels = channels;
  plan.strip_pixels = kStripPixels;
  while (plan.strip_pixels < g.output[1] && (columns(plan.strip_pixels + kStripPixels) + weights) * channels <= kStripFloats)
    plan.strip_pixels += kStripPixels;
  return plan;
}

Plan plan_narrow(const Convolution& convolution) {
  const Geometry& g = convolution.geometry;
  return plan_lines(convolution, g.batch * g.output[0], g.output[1] * ceil_div(g.filters, kPanel) * (g.taps() * g.channels + 4));
}

/// Tasks of few groups each where there are enough of them: they read no line twice.
Plan plan_linewise(const Convolution& convolution) {
  const Geometry& g = convolution.geometry;
  const std::int64_t lines = g.batch * g.output[0];
  const std::int64_t line_work = g.output[1] * ceil_div(g.filters / g.groups, kPanel) * (g.taps() * g.channels / g.groups + 4);
  const std::int64_t tasks = std::max<std::int64_t>(lines * line_work * g.groups / kLeastWork, 1);
  const std::int64_t groups = ceil_div(g.groups, std::min(tasks, g.groups));
  Plan plan = plan_lines(convolution, lines, line_work * groups);
  plan.task_groups = groups;
  return plan;
}

/// Whether Winograd's filtering takes less time than the products would.
bool prefers_winograd(const Geometry& g) {
  for (int axis = 0; axis < 2; ++axis)
    if (g.strides[axis] != 1 || g.dilations[axis] != 1 || g.output[axis] == 0) return false;
  if ((g.kernel[0] != 1 && g.kernel[0] != g.kernel[1]) || (g.kernel[1] != 3 && g.kernel[1] != 5)) return false;
  const std::int64_t channels = g.channels / g.groups, filters = g.filters / g.groups;  // all groups take the same time
  const std::int64_t panels = ceil_div(filters, kPanel), vectors = ceil_div(channels, kPanel);
  if (channels < kLeastWinogradChannels || filters < kLeastWinogradChannels) return false;
  if (std::min(transformed_inputs(g, count_tiles(g)), transformed_weights(g)) > kMostTransformedFloats) return false;
  // Columns are transformed first, then what that makes of the rows.
  const auto transforms = [&](std::int64_t columns, std::int64_t rows) { return (g.kernel[0] == 1 ? 0 : columns) + rows; };
  const std::int64_t tiles = count_tiles(g), lines = tile_inputs(g.kernel[0]), columns = tile_inputs(g.kernel[1]);
  const std::int64_t transforming = tiles * (kInputTransform * transforms(columns, lines) * vectors +
                                             kOutputTransform * transforms(columns, tile_outputs(g.kernel[0])) * panels) +
                                    kWeightTransform * transforms(columns, g.kernel[0]) * channels * panels;
  const std::int64_t work = tiles * tile_points(g) * (channels + kTileCall) * panels + transforming;
  return static_cast<double>(work) < kWinogradGain * static_cast<double>(g.pixels() * g.taps() * channels * panels);
}

void run_winograd(const Convolution& convolution, const Variant& variant, const ParallelFor& parallel_for) {
  const Geometry& g = convolution.geometry;
  Plan plan = plan_winograd(convolution);
  plan.transformed = reinterpret_cast<float*>(
      scratch(static_cast<std::size_t>(plan.transformed_floats) * sizeof(float), ScratchOwner::kConvWeights));
  if (plan.inputs_first) {
    run_tasks(plan, variant.transform_inputs, g.groups * g.batch * plan.tiles[0], parallel_for);
    run_tasks(plan, variant.winograd_columns, g.groups * plan.tile_row_tasks * plan.column_tasks, parallel_for);
    return;
  }
  run_tasks(plan, variant.transform_weights, g.groups * plan.panels, parallel_for);
  run_tasks(plan, variant.winograd, g.groups * g.batch * plan.tile_row_tasks * plan.column_tasks, parallel_for);
}

/// Whether a sequence lies along the height, and may lie along the width.
bool is_column(const Convolution& convolution) {
  const Geometry& g = convolution.geometry;
  const bool column = g.kernel[0] > 1 && g.kernel[1] == 1 && g.input[1] == 1 && g.output[1] == 1 && g.pads[1] == 0;
  return column && (!convolution.planar || g.dilations[0] == 1);
}

Convolution along_the_width(Convolution convolution) {
  Geometry& g = convolution.geometry;
  for (auto* sizes : {&g.input, &g.output, &g.kernel, &g.strides, &g.dilations, &g.pads}) std::swap((*sizes)[0], (*sizes)[1]);
  return convolution;
}

void run_lines(const Convolution& convolution, const Variant& variant, const ParallelFor& parallel_for) {
  const Geometry& g = convolution.geometry;
  const std::int64_t lines = g.batch * g.output[0];
  if (g.is_lanewise()) {
    const Plan plan = plan_depthwise(convolution);
    const std::int64_t channel_tasks = ceil_div(g.channels, plan.task_channels);
    return run_tasks(plan, variant.depthwise, ceil_div(lines, plan.task_lines) * channel_tasks, parallel_for);
  }
  if (convolution.planar || is_narrow(g)) {
    const Plan plan = plan_narrow(convolution);
    return run_tasks(plan, variant.narrow, ceil_div(lines, plan.task_lines), parallel_for);
  }
  if (prefers_winograd(g)) return run_winograd(convolution, variant, parallel_for);
  if (is_linewise(g)) {
    const Plan plan = plan_linewise(convolution);
    const std::int64_t group_tasks = ceil_div(g.groups, plan.task_groups);
    return run_tasks(plan, variant.linewise, ceil_div(lines, plan.task_lines) * group_tasks, parallel_for);
  }
  const Plan plan = plan_product(convolution);
  run_tasks(plan, variant.dense, g.groups * plan.row_tasks * plan.column_tasks, parallel_for);
}

}  // namespace

void finish(const Plan& plan, const Rectangle& done) {
  const Convolution& convolution = *plan.convolution;
  if (convolution.epilogue == nullptr) return;
  const std::int64_t width = convolution.geometry.filters;
  for (std::int64_t row = done.row; row < done.row_end;) {
    const std::int64_t end = std::min(done.row_end, row - row % plan.rows_together + plan.rows_together);
    const elementwise::RawBlock block{convolution.y + row * width + done.column, width};
    convolution.epilogue->apply(row, end - row, done.column, done.column_end - done.column, {&block, 1});
    row = end;
  }
}

void run(const Convolution& convolution, const Variant& variant, const ParallelFor& parallel_for) {
  const Geometry& g = convolution.geometry;
  if (g.pixels() == 0 || g.filters == 0) return;
  run_lines(is_column(convolution) ? along_the_width(convolution) : convolution, variant, parallel_for);
}

void run_transposed(const Convolution& convolution, const Variant& variant, const ParallelFor& parallel_for) {
  const Geometry& g = convolution.geometry;
  if (g.pixels() == 0) return;
  const std::int64_t lines = g.batch * g.input[0];
  const std::int64_t line_work = g.input[1] * g.kernel[0] * ceil_div(g.kernel[1] * g.filters, kPanel) * (g.channels + 4);
  const Plan plan = plan_lines(convolution, lines, line_work);
  run_tasks(plan, variant.transposed, ceil_div(lines, plan.task_lines), parallel_for);
}

void run_repeat(const Convolution& convolution, const Variant& variant, const ParallelFor& parallel_for) {
  const Geometry& g = convolution.geometry;
  if (g.pixels() == 0 || g.channels == 0) return;
  const std::int64_t lines = g.batch * g.output[0];
  const Plan plan = plan_lines(convolution, lines, g.output[1] * ceil_div(g.channels, kPanel) * 4);
  run_tasks(plan, variant.repeat, ceil_div(lines, plan.task_lines), parallel_for);
}

void finish_in_place(const Plan& plan, const Rectangle& done, float* block) {
  const elementwise::Epilogue* const epilogue = plan.convolution->epilogue;
  if (epilogue == nullptr) return;
  const std::int64_t width = done.column_end - done.column;
  for (std::int64_t row = done.row; row < done.row_end;) {
    const std::int64_t end = std::min(done.row_end, row - row % plan.rows_together + plan.rows_together);
    float* const at = block + (row - done.row) * width;
    const elementwise::RawBlock raw{at, width};
    epilogue->apply(row, end - row, done.column, width, {&raw, 1}, at);
    row = end;
  }
}

void run(const Separable& separable, const Variant& variant, const ParallelFor& parallel_for) {
  const Geometry &g = separable.depthwise.geometry, &products = separable.pointwise.geometry;
  if (products.pixels() == 0 || products.filters == 0) return;
  SeparablePlan plan{plan_depthwise(separable.depthwise), plan_product(separable.pointwise), 1};
  const std::int64_t lines = g.batch * g.output[0], panels = ceil_div(g.channels, kPanel);
  const std::int64_t line_work = g.output[1] * (panels * (g.taps() + 4) + g.channels * ceil_div(products.filters, kPanel));
  const std::int64_t fitting = kSeparableFloats / std::max<std::int64_t>(g.output[1] * g.channels, 1);
  const std::int64_t tasks =
      std::max(line_work * lines / kTaskWork, std::clamp<std::int64_t>(line_work * lines / kLeastWork, 1, kFewTasks));
  plan.task_lines = std::clamp<std::int64_t>(std::min(fitting, ceil_div(lines, tasks)), 1, lines);
  run_tasks(plan, variant.separable, ceil_div(lines, plan.task_lines), parallel_for);
}

/// How an inverted residual is cut: as bands of lines, which read some lines twice, and as parts of the channels, whose sums are
/// joined; into tasks enough, by what takes the least work besides.
static void cut(InvertedResidualPlan& plan) {
  const Geometry &g = plan.depthwise.convolution->geometry, &products = plan.project.convolution->geometry;
  const Geometry& inner = plan.expand.convolution->geometry;
  const std::int64_t panels = plan.expand.panels, lines = g.output[0], pixels = lines * g.output[1];
  const std::int64_t line_work = g.input[1] * (inner.channels + 4) * panels;  // of expanding
  const std::int64_t work = g.batch * (g.input[0] * line_work + pixels * panels * (g.taps() + 4 + products.filters));
  std::int64_t wanted = 1;
  while (wanted < kFewTasks && 2 * wanted * kPartWork <= work) wanted *= 2;
  const std::int64_t shared = std::max<std::int64_t>((g.kernel[0] - 1) * g.dilations[0] + 1 - g.strides[0], 0);
  const std::int64_t floats = g.input[0] * g.input[1] * inner.channels + pixels * products.filters;
  const std::int64_t least_bands = std::min(ceil_div(floats, kBandFloats), lines);
  std::int64_t least = std::numeric_limits<std::int64_t>::max();
  for (std::int64_t parts = 1; parts <= std::min(wanted, panels); parts *= 2) {
    const std::int64_t bands = std::max(least_bands, std::min(ceil_div(wanted, g.batch * parts), lines));
    const std::int64_t joining = parts == 1 ? 0 : pixels * plan.project.panels * kJoinWork * parts;
    const std::int64_t missing = std::max(wanted - bands * parts * g.batch, std::int64_t{0});  // tasks
    const std::int64_t more = g.batch * ((bands - 1) * shared * line_work + joining) + work * missing / wanted;
    if (more >= least) continue;
    least = more;
    plan.bands = bands;
    plan.parts = parts;
  }
}

static InvertedResidualPlan plan_inverted_residual(const InvertedResidual& block) {
  InvertedResidualPlan plan{};
  plan.expand = describe(block.expand);
  plan.depthwise = describe(block.depthwise);
  plan.project = describe(block.project);
  cut(plan);
  const Geometry& g = block.depthwise.geometry;
  const auto read = [&](int axis, std::int64_t outputs) {
    return std::min((outputs - 1) * g.strides[axis] + (g.kernel[axis] - 1) * g.dilations[axis] + 1, g.input[axis]);
  };
  const auto try_step = [&](std::int64_t columns, std::int64_t lines) {
    plan.strip_columns = columns;
    plan.step_lines = lines;
    // Lines that are read again are moved in every second step.
    plan.kept_lines = std::min(read(0, lines) + lines * g.strides[0], g.input[0]);
    plan.kept_columns = read(1, columns);
    return plan.kept_lines * plan.kept_columns * kColumnStep;
  };
  // The widest strip, and of it the most lines, whose channels stay in the second-level cache.
  std::int64_t floats = kKeptFloats + 1;
  for (std::int64_t strips = 1; floats > kKeptFloats && (strips == 1 || plan.strip_columns > kLeastStripColumns); ++strips) {
    const std::int64_t columns = ceil_div(g.output[1], strips);
    std::int64_t lines = std::clamp<std::int64_t>(kStepPixels / columns, 1, ceil_div(g.output[0], plan.bands));
    while ((floats = try_step(columns, lines)) > kKeptFloats && lines > 1) --lines;
  }
  const std::int64_t blocks = ceil_div(ceil_div(plan.expand.panels, plan.parts) * kPanel, kColumnStep);
  plan.group_channels = std::clamp<std::int64_t>(kKeptFloats / std::max<std::int64_t>(floats, 1), 1, blocks) * kColumnStep;
  plan.joined_rows =
      std::clamp<std::int64_t>(kScaledPartFloats / block.project.geometry.filters, 1, block.project.geometry.pixels());
  return plan;
}

void run(const InvertedResidual& block, const Variant& variant, const ParallelFor& parallel_for) {
  const Geometry& g = block.project.geometry;
  if (g.pixels() == 0 || g.filters == 0) return;
  InvertedResidualPlan plan = plan_inverted_residual(block);
  const std::int64_t floats = (plan.parts - 1) * g.pixels() * g.filters;
  if (plan.parts > 1)
    plan.sums = reinterpret_cast<float*>(scratch(static_cast<std::size_t>(floats) * sizeof(float), ScratchOwner::kConvWeights));
  run_tasks(plan, variant.inverted_residual, g.batch * plan.bands * plan.parts, parallel_for);
  if (plan.parts > 1) run_tasks(plan, variant.join_parts, ceil_div(g.pixels(), plan.joined_rows), parallel_for);
}

void run(const Pooling& pooling, const Variant& variant, const ParallelFor& parallel_for) {
  struct Pools {
    const Pooling* pooling;
    const Variant* variant;
    std::int64_t lines, total;
  };
  const Geometry& g = pooling.geometry;
  const std::int64_t lines = g.batch * g.output[0];
  const std::int64_t line_work = std::max<std::int64_t>(g.output[1] * ceil_div(g.channels, kPanel) * g.taps(), 1);
  const std::int64_t together = std::clamp<std::int64_t>(kLeastWork / line_work, 1, std::max<std::int64_t>(lines, 1));
  Pools pools{&pooling, &variant, together, lines};
  const auto some_lines = [](void* user, std::size_t index) {
    const Pools& one = *static_cast<const Pools*>(user);
    const std::int64_t begin = static_cast<std::int64_t>(index) * one.lines;
    for (std::int64_t line = begin; line < std::min(begin + one.lines, one.total); ++line) one.variant->pool(*one.pooling, line);
  };
  if (g.channels > 0) parallel_for(static_cast<std::size_t>(ceil_div(lines, together)), some_lines, &pools);
}

/// The means, as sums of parts of so many floats, which are added in order.
static void run_average(const GlobalAverage& average, std::int64_t part_floats, const Variant& variant,
                        const ParallelFor& parallel_for) {
  if (average.channels == 0) return;
  const std::int64_t pixels = std::max<std::int64_t>(part_floats / average.channels, 1);
  const std::int64_t count = std::max<std::int64_t>(ceil_div(average.pixels, pixels), 1);
  const std::int64_t floats = average.batch * count * average.channels;
  auto* const sums = reinterpret_cast<float*>(scratch(static_cast<std::size_t>(floats) * sizeof(float), ScratchOwner::kPool));
  const auto sum_part = [&](std::int64_t part) {
    const std::int64_t image = part / count, begin = part % count * pixels, end = std::min(begin + pixels, average.pixels);
    variant.sum(average.x + (image * average.pixels + begin) * average.channels, end - begin, average.channels,
                sums + part * average.channels);
  };
  some_together(average.batch * count, std::min(average.pixels, pixels) * average.channels, part_floats, sum_part, parallel_for);
  // The mean of no pixels is 0, as that of onnxruntime's ReduceMean.
  const float scale = 1.0f / static_cast<float>(std::max<std::int64_t>(average.pixels, 1));
  for (std::int64_t image = 0; image < average.batch; ++image)
    for (std::int64_t c = 0; c < average.channels; ++c) {
      float total = 0;
      for (std::int64_t part = 0; part < count; ++part) total += sums[(image * count + part) * average.channels + c];
      average.y[image * average.channels + c] = total * scale;
    }
}

void run(const GlobalAverage& average, const Variant& variant, const ParallelFor& parallel_for) {
  run_average(average, kPartFloats, variant, parallel_for);
}

/// A convolution between results that are no outputs: its epilogue leaves them where they are.
static void run_between(Convolution convolution, const float* x, float* y, const Variant& variant,
                        const ParallelFor& parallel_for) {
  const Plan plan = describe(convolution);
  const elementwise::Epilogue* const epilogue = convolution.epilogue;
  convolution.x = x;
  convolution.y = y;
  convolution.epilogue = nullptr;
  run(convolution, variant, parallel_for);
  convolution.epilogue = epilogue;
  finish_in_place(plan, {0, convolution.geometry.pixels(), 0, convolution.geometry.filters}, y);
}

void run(const SqueezeExcite& block, const Variant& variant, const ParallelFor& parallel_for) {
  const Geometry& g = block.scaled.geometry;
  if (g.pixels() == 0 || g.channels == 0) return;
  const std::int64_t pixels = g.pixels() / g.batch;
  ScalePlan plan{};
  plan.scaled = describe(block.scaled);
  plan.pixels_together = kPanel / std::gcd(g.channels, kPanel);
  plan.pixels_together *= ceil_div(kLeastRowFloats, plan.pixels_together * g.channels);
  const auto whole_rows = [&](std::int64_t floats) {
    const std::int64_t row = plan.pixels_together * g.channels;
    return std::max<std::int64_t>(floats / row, 1) * plan.pixels_together;
  };
  plan.task_pixels = std::min(whole_rows(kScaledPartFloats), pixels);
  plan.image_tasks = ceil_div(pixels, plan.task_pixels);
  plan.block_pixels = block.scaled.epilogue ? whole_rows(kScaleBlockFloats) : plan.task_pixels;

  const std::int64_t vectors = g.batch * g.channels, squeezed = g.batch * block.squeeze.geometry.filters;
  const std::int64_t floats = vectors + squeezed + vectors * plan.pixels_together;
  auto* const means =
      reinterpret_cast<float*>(scratch(static_cast<std::size_t>(floats) * sizeof(float), ScratchOwner::kSqueezeExcite));
  run_average({g.batch, pixels, g.channels, block.scaled.x, means}, kScaledPartFloats, variant, parallel_for);
  float* const between = means + vectors;
  run_between(block.squeeze, means, between, variant, parallel_for);
  run_between(block.excite, between, means, variant, parallel_for);  // the means have been read
  float* const gates = between + squeezed;
  for (std::int64_t image = 0; image < g.batch; ++image)
    for (std::int64_t copy = 0; copy < plan.pixels_together; ++copy)
      std::copy_n(means + image * g.channels, g.channels, gates + (image * plan.pixels_together + copy) * g.channels);
  plan.gates = gates;
  const auto scale = [&](std::int64_t task) { variant.scale(plan, task); };
  some_together(g.batch * plan.image_tasks, plan.task_pixels * g.channels, kScaledPartFloats, scale, parallel_for);
}

#define CONV_VARIANT(space, isa)                                     \
  namespace space {                                                  \
  void dense(const Plan&, std::int64_t);                             \
  void depthwise(const Plan&, std::int64_t);                         \
  void narrow(const Plan&, std::int64_t);                            \
  void linewise(const Plan&, std::int64_t);                          \
  void separable(const SeparablePlan&, std::int64_t);                \
  void inverted_residual(const InvertedResidualPlan&, std::int64_t); \
  void join_parts(const InvertedResidualPlan&, std::int64_t);        \
  void transposed(const Plan&, std::int64_t);                        \
  void repeat(const Plan&, std::int64_t);                            \
  void transform_weights(const Plan&, std::int64_t);                 \
  void winograd(const Plan&, std::int64_t);                          \
  void transform_inputs(const Plan&, std::int64_t);                  \
  void winograd_columns(const Plan&, std::int64_t);                  \
  void pool(const Pooling&, std::int64_t);                           \
  void sum(const float*, std::int64_t, std::int64_t, float*);        \
  void scale(const ScalePlan&, std::int64_t);                        \
  }
#include "kernels/cpu/conv/variants.inc"
#undef CONV_VARIANT

std::span<const Variant> variants() {
  static constexpr Variant kVariants[] = {
#define CONV_VARIANT(space, isa) \
  {"conv__" #space,              \
   isa,                          \
   &space::dense,                \
   &space::depthwise,            \
   &space::narrow,               \
   &space::linewise,             \
   &space::separable,            \
   &space::inverted_residual,    \
   &space::join_parts,           \
   &space::transposed,           \
   &space::repeat,               \
   &space::transform_weights,    \
   &space::winograd,             \
   &space::transform_inputs,     \
   &space::winograd_columns,     \
   &space::pool,                 \
   &space::sum,                  \
   &space::scale},
#include "kernels/cpu/conv/variants.inc"
#undef CONV_VARIANT
  };
  return kVariants;
}

}  // namespace onnxopt::conv
