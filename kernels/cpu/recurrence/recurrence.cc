#include "kernels/cpu/recurrence/recurrence.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

#include "kernels/cpu/elementwise/plan.h"
#include "kernels/cpu/elementwise/tile.h"
#include "kernels/cpu/gemm/panel.h"
#include "kernels/cpu/recurrence/blocks.h"
#include "kernels/cpu/recurrence/text.h"
#include "kernels/cpu/scratch.h"

namespace onnxopt::recurrence {

#define RECURRENCE_VARIANT(name, isa, lanes)                                                                       \
  namespace name {                                                                                                 \
  void multiply(const PackedProduct&);                                                                             \
  void multiply_plain(const float*, std::int64_t, std::int64_t, const float*, std::int64_t, std::int64_t, float*); \
  void powers(const float*, const float*, bool, std::int64_t, float*);                                             \
  void spread(const float*, std::int64_t, float*);                                                                 \
  void sum(const float*, std::int64_t, std::int64_t, bool, float*);                                                \
  void update_gated(const GatedUpdate&);                                                                           \
  }
#include "kernels/cpu/recurrence/variants.inc"
#undef RECURRENCE_VARIANT

std::span<const Variant> variants() {
  static constexpr Variant list[] = {
#define RECURRENCE_VARIANT(name, isa, lanes)                                               \
  {"recurrence__" #name, isa,          lanes,     name::multiply,    name::multiply_plain, \
   name::powers,         name::spread, name::sum, name::update_gated},
#include "kernels/cpu/recurrence/variants.inc"
#undef RECURRENCE_VARIANT
  };
  return list;
}

namespace {

// --- the text ------------------------------------------------------------------------------------------------------
/// Reads one phase, whose first own value is number `first`; empty, or a sentence.
std::string read_phase(std::string_view text, const Counts& counts, std::size_t first, Phase& phase) {
  const auto parts = split(text, '!');
  if (parts.size() != 3) return "A phase of its step has no three parts.";
  phase.first = first;
  for (const std::string_view one : split(parts[0], ' ')) {
    if (one.empty()) continue;
    const std::size_t at = one.find('@'), plus = std::min(one.find('+'), one.size());
    Product product{};
    bool known = at < plus && read_number(one.substr(0, at), first, product.value) &&
                 read_number(one.substr(at + 1, plus - at - 1), counts.matrices, product.matrix);
    const std::size_t outer = counts.carried + counts.sequences;
    if (known && plus < one.size())
      known = read_number(one.substr(plus + 1), outer + counts.invariants, product.bias) && product.bias >= outer;
    if (!known) return "'" + std::string(one) + "' is no product of its step.";
    phase.products.push_back(product);
  }
  for (const std::string_view one : split(parts[1], ' ')) {
    if (one.empty()) continue;
    std::size_t operand = 0;
    if (!read_number(one, first + phase.products.size(), operand)) return "'" + std::string(one) + "' is no value of its step.";
    phase.operands.push_back(operand);
  }
  Result<elementwise::Program> program = elementwise::Program::parse(parts[2]);
  if (!program) return "Its step: " + program.error();
  if (program->is_for_devices()) return std::string("Its step: ") + elementwise::kForDevices;
  phase.program = std::move(*program);
  if (phase.program.inputs().size() != phase.operands.size())
    return "A program of its step has " + std::to_string(phase.program.inputs().size()) + " inputs and is given " +
           std::to_string(phase.operands.size()) + ".";
  const auto is_float = [](elementwise::DType type) { return type == elementwise::DType::f32; };
  if (!std::all_of(phase.program.outputs().begin(), phase.program.outputs().end(), is_float) ||
      !std::all_of(phase.program.inputs().begin(), phase.program.inputs().end(), is_float))
    return "A program of its step has inputs or outputs that are not f32.";
  return "";
}

}  // namespace

Result<Step> parse(std::string_view text, const Counts& counts, std::vector<std::size_t> next, std::vector<std::size_t> stacked,
                   std::vector<bool> summed) {
  using Made = Result<Step>;
  Step step{counts, {}, std::move(next), std::move(stacked), std::move(summed), 0};
  step.values = step.outer();
  step.summed.resize(step.stacked.size(), false);
  step.has_sums = std::find(step.summed.begin(), step.summed.end(), true) != step.summed.end();
  for (const std::string_view one : split(text, ';')) {
    Phase phase;
    if (const std::string sentence = read_phase(one, counts, step.values, phase); !sentence.empty()) return Made::failure(sentence);
    step.has_products = step.has_products || !phase.products.empty();
    step.values += phase.products.size() + phase.program.outputs().size();
    step.phases.push_back(std::move(phase));
  }
  if (step.has_sums && (step.has_products || step.phases.size() > 1))
    return Made::failure("Its step has sums, and products or several phases.");
  if (step.next.size() != counts.carried)
    return Made::failure("Its attribute 'next' has " + std::to_string(step.next.size()) + " numbers for " +
                         std::to_string(counts.carried) + " carried values.");
  for (const auto& list : {step.next, step.stacked})
    for (const std::size_t value : list)
      if (value >= step.values) return Made::failure("Its step has no value " + std::to_string(value) + ".");
  return step;
}

namespace {

// --- the run -------------------------------------------------------------------------------------------------------
/// Floats of matrices from which on a step is worth to be shared by threads.
constexpr std::int64_t kSharedMatrix = 48 << 10;
/// Columns of a share: whole groups of panels, so that shares are computed as the whole is.
constexpr std::int64_t kShareColumns = 64;
constexpr std::int64_t kMostShares = 2;
/// Additions of a task that runs all steps of a part on its own: about 20 us.
constexpr double kGrain = 40e3;
/// Looks at a counter before a thread does what another one might be about to begin.
constexpr int kPatience = 2000;
constexpr int kNoPause = 200;
constexpr auto kPanelFloats = static_cast<std::int64_t>(gemm::kPanel);

/// Rows and columns of the domain, seen as rows of one width.
struct Part {
  std::int64_t row, rows, column, columns;
};

/// Where values lie in each step, and the domain they share.
class Layout {
 public:
  explicit Layout(const Problem& problem) : problem_(problem), step_(*problem.step) {
    std::int64_t elements = 1;
    for (const std::int64_t dim : problem.domain) elements *= dim;
    const bool products = step_.has_products;
    width = products ? problem.domain.back() : elements;
    rows = products && width > 0 ? elements / width : 1;
    bytes = elements * static_cast<std::int64_t>(sizeof(float));
    const std::int64_t slot = (bytes + 63) / 64 * 64;
    stack_of_.assign(step_.values, kNone);
    for (std::size_t i = step_.stacked.size(); i-- > 0;)
      if (is_computed(step_.stacked[i])) stack_of_[step_.stacked[i]] = i;
    own_.assign(step_.values + step_.counts.carried, nullptr);
    auto* memory = scratch(static_cast<std::size_t>(slot) * 2 * own_.size(), ScratchOwner::kRecurrence);
    for (std::size_t i = 0; i < own_.size(); ++i) own_[i] = memory + static_cast<std::int64_t>(i) * 2 * slot;
    parity_ = slot;
  }

  bool is_computed(std::size_t value) const { return step_.is_computed(value); }

  /// Where a value is, or is written, in step `t`.
  char* at(std::size_t value, std::int64_t t) const {
    const Counts& counts = step_.counts;
    if (value < counts.carried) return carried(value, t);
    if (value < counts.carried + counts.sequences) return element(problem_.sequences[value - counts.carried], t);
    if (!is_computed(value))
      return static_cast<char*>(const_cast<void*>(problem_.invariants[value - counts.carried - counts.sequences]));
    if (stack_of_[value] != kNone) return element(problem_.stacked[stack_of_[value]], t);
    return own_[value] + (t & 1) * parity_;
  }

  /// A carried value at the beginning of step `t`; after the last one with t = steps.
  char* carried(std::size_t index, std::int64_t t) const {
    if (t == 0) return reinterpret_cast<char*>(const_cast<float*>(problem_.initial[index]));
    const std::size_t value = step_.next[index];
    return is_computed(value) ? at(value, t - 1) : copy_of(index, t - 1);
  }

  /// Where a carried value that no program computes is copied to in step `t`.
  char* copy_of(std::size_t index, std::int64_t t) const { return own_[step_.values + index] + (t & 1) * parity_; }

  char* element(const Sequence& sequence, std::int64_t t) const {
    return const_cast<char*>(sequence.data) + (sequence.reverse ? problem_.steps - 1 - t : t) * sequence.bytes;
  }

  bool is_stack_of(std::size_t value, std::size_t output) const { return stack_of_[value] == output; }

  std::int64_t rows = 1, width = 1, bytes = 0;

 private:
  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);
  const Problem& problem_;
  const Step& step_;
  std::vector<std::size_t> stack_of_;  // of each value, the output whose memory is its own
  std::vector<char*> own_;
  std::int64_t parity_ = 0;
};

/// How many phases a part was claimed for and has behind it, in cache lines of their own: other threads look at the second alone.
struct Progress {
  alignas(64) std::atomic<std::int64_t> claimed{0};
  alignas(64) std::atomic<std::int64_t> done{0};
};

/// What the threads of a run share.
struct Shared {
  const Problem* problem;
  const Variant* variant;
  const elementwise::Variant* elementwise;
  const Layout* layout;
  std::vector<elementwise::Plan> plans;  // of each phase, without data
  std::vector<Part> parts;
  // Of a run whose steps are shared: how far each part is, and how many threads have come.
  std::vector<Progress>* progress = nullptr;
  alignas(64) std::atomic<int> present{0};
};

/// How the elements of an operand lie beside those of the domain, seen as rows of one width.
enum class Walk : std::uint8_t { kElement, kColumn, kScalar, kAny };

Walk walk_of(const Problem& problem, const Layout& layout, std::size_t value) {
  const Counts& counts = problem.step->counts;
  if (value < counts.carried || problem.step->is_computed(value)) return Walk::kElement;
  std::int64_t elements = 1;
  const elementwise::Shape& shape = problem.shapes[value - counts.carried];
  for (const std::int64_t dim : shape) elements *= dim;
  if (elements == layout.rows * layout.width) return Walk::kElement;
  if (elements == 1) return Walk::kScalar;
  return elements == layout.width && shape.back() == layout.width ? Walk::kColumn : Walk::kAny;
}

/// Runs phases of parts; each thread has one.
class Worker {
 public:
  explicit Worker(const Shared& shared)
      : shared_(shared), problem_(*shared.problem), step_(*shared.problem->step), layout_(*shared.layout), plans_(shared.plans) {
    std::size_t bytes = 0;
    for (const elementwise::Plan& plan : plans_) bytes += elementwise::Tile::bytes(plan);
    char* memory = scratch(bytes, ScratchOwner::kRecurrenceTiles);
    for (std::size_t i = 0; i < plans_.size(); ++i) {
      tiles_.emplace_back(plans_[i], memory);
      memory += elementwise::Tile::bytes(plans_[i]);
      std::vector<Walk>& walks = walks_.emplace_back();
      for (const std::size_t value : step_.phases[i].operands) walks.push_back(walk_of(problem_, layout_, value));
    }
  }

  void run_phase(std::size_t index, std::int64_t t, const Part& part) {
    const Phase& phase = step_.phases[index];
    for (std::size_t i = 0; i < phase.products.size(); ++i) multiply(phase.products[i], phase.first + i, t, part);
    compute(index, t, part);
    if (index + 1 == step_.phases.size()) copy(t, part);
  }

  /// Writes the carried values that are left after the last step.
  void finish(const Part& part) {
    for (std::size_t i = 0; i < problem_.finals.size(); ++i)
      copy_part(layout_.carried(i, problem_.steps), reinterpret_cast<char*>(problem_.finals[i]), part);
  }

 private:
  void multiply(const Product& product, std::size_t value, std::int64_t t, const Part& part) const {
    const std::int64_t width = layout_.width;
    const auto* x = reinterpret_cast<const float*>(layout_.at(product.value, t)) + part.row * width;
    auto* y = reinterpret_cast<float*>(layout_.at(value, t)) + part.row * width + part.column;
    const float* bias = nullptr;
    if (product.bias != Product::kNoBias) bias = reinterpret_cast<const float*>(layout_.at(product.bias, t)) + part.column;
    const float* const weights = problem_.matrices[product.matrix] + part.column * width;
    shared_.variant->multiply({x, part.rows, width, weights, kPanelFloats, width * kPanelFloats, bias, part.columns, y, width});
  }

  void compute(std::size_t index, std::int64_t t, const Part& part) {
    const std::vector<Walk>& walks = walks_[index];
    if (std::find(walks.begin(), walks.end(), Walk::kAny) != walks.end()) {
      compute_by_plan(index, t, part);
      return;
    }
    addresses_.clear();
    for (const std::size_t value : step_.phases[index].operands) addresses_.push_back(layout_.at(value, t));
    for (std::size_t i = 0; i < walks.size(); ++i)
      if (walks[i] == Walk::kScalar) {
        float* const copy = tiles_[index].copy_of(i);
        std::fill_n(copy, elementwise::kMostLanes, *reinterpret_cast<const float*>(addresses_[i]));
        tiles_[index].read(i, copy, true);
      }
    const bool columns = std::find(walks.begin(), walks.end(), Walk::kColumn) != walks.end();
    if (part.columns == layout_.width && !columns) {
      compute_stretch(index, t, part.row * layout_.width, part.rows * layout_.width, 0);
      return;
    }
    for (std::int64_t row = part.row; row < part.row + part.rows; ++row)
      compute_stretch(index, t, row * layout_.width + part.column, part.columns, part.column);
  }

  /// `count` elements from `begin` on, which lie in one row, from its `column` on, where an operand is the same in all rows.
  void compute_stretch(std::size_t index, std::int64_t t, std::int64_t begin, std::int64_t count, std::int64_t column) {
    constexpr auto lanes = static_cast<std::int64_t>(elementwise::kMostLanes);
    while (count > 0) {
      const std::int64_t most = std::min(count, static_cast<std::int64_t>(elementwise::kTile));
      const std::int64_t some = most < lanes ? most : most / lanes * lanes;
      compute_tile(index, t, begin, some, column);
      begin += some;
      column += some;
      count -= some;
    }
  }

  /// Elements of whole vectors where they lie, or less than one vector in copies.
  void compute_tile(std::size_t index, std::int64_t t, std::int64_t begin, std::int64_t count, std::int64_t column) {
    const Phase& phase = step_.phases[index];
    elementwise::Tile& tile = tiles_[index];
    const bool whole = count % static_cast<std::int64_t>(elementwise::kMostLanes) == 0;
    const auto size = static_cast<std::size_t>(count) * sizeof(float);
    for (std::size_t i = 0; i < addresses_.size(); ++i) {
      const Walk walk = walks_[index][i];
      if (walk == Walk::kScalar) continue;
      const char* from = addresses_[i] + (walk == Walk::kElement ? begin : column) * static_cast<std::int64_t>(sizeof(float));
      if (!whole) from = static_cast<const char*>(std::memcpy(tile.copy_of(i), from, size));
      tile.read(i, from, false);
    }
    const std::size_t outputs = phase.program.outputs().size(), first = phase.first + phase.products.size();
    const auto target = [&](std::size_t i) { return layout_.at(first + i, t) + begin * static_cast<std::int64_t>(sizeof(float)); };
    for (std::size_t i = 0; i < outputs; ++i) tile.write(i, whole ? target(i) : nullptr);
    tile.run(*shared_.elementwise, whole ? static_cast<std::size_t>(count) : elementwise::kMostLanes);
    for (std::size_t i = 0; i < outputs; ++i)
      if (tile.made(i).data != target(i)) std::memcpy(target(i), tile.made(i).data, size);
  }

  void compute_by_plan(std::size_t index, std::int64_t t, const Part& part) {
    const Phase& phase = step_.phases[index];
    elementwise::Plan& plan = plans_[index];
    for (std::size_t i = 0; i < phase.operands.size(); ++i) plan.inputs[i].data = layout_.at(phase.operands[i], t);
    for (std::size_t i = 0; i < plan.output_count; ++i)
      plan.outputs[i].data = layout_.at(phase.first + phase.products.size() + i, t);
    if (part.columns == layout_.width) {
      shared_.elementwise->run(plan, part.row * layout_.width, (part.row + part.rows) * layout_.width);
      return;
    }
    for (std::int64_t row = part.row; row < part.row + part.rows; ++row) {
      const std::int64_t begin = row * layout_.width + part.column;
      shared_.elementwise->run(plan, begin, begin + part.columns);
    }
  }

  /// Values that go on or out as they are.
  void copy(std::int64_t t, const Part& part) {
    for (std::size_t i = 0; i < step_.next.size(); ++i)
      if (!layout_.is_computed(step_.next[i])) copy_part(layout_.at(step_.next[i], t), layout_.copy_of(i, t), part);
    for (std::size_t i = 0; i < step_.stacked.size(); ++i)
      if (!layout_.is_stack_of(step_.stacked[i], i))
        copy_part(layout_.at(step_.stacked[i], t), layout_.element(problem_.stacked[i], t), part);
  }

  void copy_part(const char* from, char* to, const Part& part) const {
    if (from == to) return;
    const auto size = static_cast<std::size_t>(part.columns) * sizeof(float);
    for (std::int64_t row = part.row; row < part.row + part.rows; ++row) {
      const std::int64_t offset = (row * layout_.width + part.column) * static_cast<std::int64_t>(sizeof(float));
      std::memcpy(to + offset, from + offset, size);
    }
  }

  const Shared& shared_;
  const Problem& problem_;
  const Step& step_;
  const Layout& layout_;
  std::vector<elementwise::Plan> plans_;
  std::vector<elementwise::Tile> tiles_;  // of each phase
  std::vector<std::vector<Walk>> walks_;  // of each phase's operands
  std::vector<const char*> addresses_;    // of the operands in this step
};

/// All steps of one part, which depends on no other part.
void run_alone(void* user, std::size_t index) {
  const Shared& shared = *static_cast<const Shared*>(user);
  Worker worker(shared);
  const Part& part = shared.parts[index];
  for (std::int64_t t = 0; t < shared.problem->steps; ++t)
    for (std::size_t phase = 0; phase < shared.problem->step->phases.size(); ++phase) worker.run_phase(phase, t, part);
  worker.finish(part);
}

void pause_briefly(int looked) {
  // A pause takes longer than what is waited for takes to come from another core.
  if (looked < kNoPause) return;
#if defined(__x86_64__)
  if (looked < 16 * kPatience) {
    __builtin_ia32_pause();
    return;
  }
#endif
  std::this_thread::yield();
}

/// All steps together with other threads, each of which prefers the same parts in every step, so that their matrices stay in its
/// cache. A thread waits for parts that another one has begun, never for a thread that might not have come: after a while it takes
/// what is left.
void run_together(void* user, std::size_t index) {
  Shared& shared = *static_cast<Shared*>(user);
  Worker worker(shared);
  std::vector<Progress>& progress = *shared.progress;
  shared.present.fetch_add(1);
  const std::size_t parts = shared.parts.size();
  const auto phases = static_cast<std::int64_t>(shared.problem->step->phases.size());
  const std::int64_t all = shared.problem->steps * phases;
  const auto take = [&](std::size_t part, std::int64_t phase) {
    std::int64_t expected = phase;
    if (!progress[part].claimed.compare_exchange_strong(expected, phase + 1)) return;
    worker.run_phase(static_cast<std::size_t>(phase % phases), phase / phases, shared.parts[part]);
    progress[part].done.store(phase + 1, std::memory_order_release);
  };
  const auto is_done = [&](std::int64_t phase) {
    return std::all_of(progress.begin(), progress.end(),
                       [&](const Progress& one) { return one.done.load(std::memory_order_acquire) > phase; });
  };
  std::int64_t first = all;
  for (const Progress& one : progress) first = std::min(first, one.done.load(std::memory_order_acquire));
  for (std::int64_t phase = first; phase < all; ++phase) {
    // Half of the parts are the first thread's, the others the second one's, and so on where there are more.
    for (std::size_t part = index; part < parts; part += 2) take(part, phase);
    for (int looked = 0; !is_done(phase); ++looked) {
      if (looked == kPatience || shared.present.load(std::memory_order_relaxed) < 2)
        for (std::size_t part = 0; part < parts; ++part) take(part, phase);
      pause_briefly(looked);
    }
  }
}

/// The parts that run on their own: rows where there are products, else stretches of elements.
std::vector<Part> parts_alone(const Layout& layout, bool products, double cost_of_element) {
  const double cost = cost_of_element * static_cast<double>(layout.width) * static_cast<double>(layout.rows);
  const auto tasks = static_cast<std::int64_t>(std::clamp(cost / kGrain, 1.0, 64.0));
  std::vector<Part> parts;
  if (products) {
    const std::int64_t rows = std::max<std::int64_t>((layout.rows + tasks - 1) / tasks, std::min<std::int64_t>(layout.rows, 4));
    for (std::int64_t row = 0; row < layout.rows; row += rows)
      parts.push_back({row, std::min(rows, layout.rows - row), 0, layout.width});
    return parts;
  }
  // Whole tiles, since each step of a part begins anew with filling registers.
  constexpr auto tile = static_cast<std::int64_t>(elementwise::kTile);
  const std::int64_t columns = ((layout.width + tasks - 1) / tasks + tile - 1) / tile * tile;
  for (std::int64_t column = 0; column < layout.width; column += columns)
    parts.push_back({0, 1, column, std::min(columns, layout.width - column)});
  return parts;
}

std::vector<Part> parts_together(const Layout& layout) {
  const std::int64_t groups = (layout.width + kShareColumns - 1) / kShareColumns;
  const std::int64_t shares = std::min(groups, kMostShares);
  const std::int64_t columns = (groups + shares - 1) / shares * kShareColumns;
  std::vector<Part> parts;
  for (std::int64_t column = 0; column < layout.width; column += columns)
    parts.push_back({0, layout.rows, column, std::min(columns, layout.width - column)});
  return parts;
}

/// The plan of each phase, or a sentence.
std::string make_plans(const Problem& problem, std::vector<elementwise::Plan>& plans) {
  const Counts& counts = problem.step->counts;
  for (const Phase& phase : problem.step->phases) {
    std::vector<std::span<const std::int64_t>> shapes;
    for (const std::size_t value : phase.operands) {
      const bool outer = value >= counts.carried && value < counts.carried + counts.sequences + counts.invariants;
      shapes.emplace_back(outer ? problem.shapes[value - counts.carried] : problem.domain);
    }
    const std::size_t outputs = phase.program.outputs().size();
    const std::vector<const void*> inputs(shapes.size(), nullptr);
    const std::vector<void*> targets(outputs, nullptr);
    const std::vector<elementwise::Shape> made(outputs, problem.domain);
    const Result<bool> planned = elementwise::for_each_plan(phase.program, {inputs, shapes, targets, made},
                                                            [&](const elementwise::Plan& plan) -> Result<bool> {
                                                              plans.push_back(plan);
                                                              return true;
                                                            });
    if (!planned) return planned.error();
  }
  return "";
}

/// Sums of no elements.
void clear_sums(const Problem& problem) {
  for (std::size_t i = 0; i < problem.stacked.size(); ++i)
    if (problem.step->summed[i])
      std::memset(const_cast<char*>(problem.stacked[i].data), 0,
                  static_cast<std::size_t>(problem.stacked[i].bytes * problem.steps));
}

}  // namespace

Result<bool> run(const Problem& problem, const Variant& variant, const elementwise::Variant& elementwise,
                 const ParallelFor& parallel_for) {
  const Step& step = *problem.step;
  if (std::find(problem.domain.begin(), problem.domain.end(), 0) != problem.domain.end()) {
    clear_sums(problem);
    return true;
  }
  std::vector<elementwise::Plan> plans;
  if (const std::string sentence = make_plans(problem, plans); !sentence.empty()) return Result<bool>::failure(sentence);
  if (step.has_sums) {
    run_in_blocks(problem, plans[0], variant, elementwise, parallel_for);
    return true;
  }
  const Layout layout(problem);
  Shared shared{&problem, &variant, &elementwise, &layout, std::move(plans), {}};
  double cost = 0;  // of an element, over all steps
  std::int64_t matrices = 0;
  for (const Phase& phase : step.phases) {
    cost += phase.program.schedule().cost + static_cast<double>(phase.products.size()) * static_cast<double>(layout.width) / 8;
    matrices += static_cast<std::int64_t>(phase.products.size()) * layout.width * layout.width;
  }
  cost *= static_cast<double>(problem.steps);
  const bool together = step.has_products && matrices >= kSharedMatrix && layout.rows < 8 && layout.width >= 2 * kShareColumns;
  if (!together) {
    shared.parts = parts_alone(layout, step.has_products, cost);
    parallel_for(shared.parts.size(), run_alone, &shared);
    return true;
  }
  shared.parts = parts_together(layout);
  std::vector<Progress> progress(shared.parts.size());
  shared.progress = &progress;
  parallel_for(2, run_together, &shared);
  Worker(shared).finish({0, layout.rows, 0, layout.width});
  return true;
}

}  // namespace onnxopt::recurrence
