#include "kernels/cpu/recurrence/blocks.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/cpu/elementwise/tile.h"
#include "kernels/cpu/recurrence/gated.h"
#include "kernels/cpu/scratch.h"

namespace onnxopt::recurrence {

namespace {

/// Additions of a task: about 50 us, over which the splats that tasks make for themselves do not count.
constexpr double kGrain = 100e3;
constexpr std::int64_t kMostTasks = 16;
/// Blocks of a task at least, for the same reason, where there are as many.
constexpr std::int64_t kLeastBlocks = 4;

/// Elements of a block: vector after vector, or one vector that all elements of a row share.
struct Vectors {
  const float* data;
  bool repeated;

  Vectors from(std::int64_t element, std::int64_t lanes) const { return repeated ? *this : Vectors{data + element * lanes, false}; }
};

/// How the rows of a block lie: all at one place, one number after the other, or anyhow.
enum class Walk : std::uint8_t { kSame, kNumbers, kAny };

/// Where a value lies in memory: the offset of each row's first element, and whether the elements of a row differ.
struct Rows {
  std::vector<std::int64_t> offsets;  // rows beyond the last are that one again
  std::vector<Walk> walks;            // of each block
  bool differ;

  /// Of a tensor that is broadcast to the domain.
  Rows(const elementwise::Shape& shape, const elementwise::Shape& domain, std::int64_t rows, std::int64_t blocks,
       std::int64_t lanes)
      : offsets(static_cast<std::size_t>(blocks * lanes)), walks(static_cast<std::size_t>(blocks)) {
    const elementwise::Strides strides = elementwise::strides_in(shape, domain);
    differ = strides.back() != 0;
    std::vector<std::int64_t> at(domain.size() - 1, 0);
    std::int64_t offset = 0;
    for (std::int64_t row = 0; row < blocks * lanes; ++row) {
      offsets[static_cast<std::size_t>(row)] = offset;
      for (std::size_t axis = row + 1 < rows ? at.size() : 0; axis-- > 0;) {
        offset += strides[axis];
        if (++at[axis] < domain[axis]) break;
        offset -= strides[axis] * domain[axis];
        at[axis] = 0;
      }
    }
    for (std::int64_t block = 0; block < blocks; ++block) {
      const std::int64_t* const own = offsets.data() + block * lanes;
      bool same = true, numbers = !differ;
      for (std::int64_t lane = 1; lane < lanes; ++lane) {
        same = same && own[lane] == own[0];
        numbers = numbers && own[lane] == own[0] + lane;
      }
      walks[static_cast<std::size_t>(block)] = same ? Walk::kSame : numbers ? Walk::kNumbers : Walk::kAny;
    }
  }
};

struct Shared {
  const Problem* problem;
  const elementwise::Plan* plan;
  const Variant* variant;
  const elementwise::Variant* elementwise;
  std::optional<GatedStep> gated;
  std::vector<Rows> rows;  // of the carried values, sequences and invariants
  std::int64_t row_count, width, blocks, blocks_of_task;
};

/// Runs a stretch of blocks through all steps.
class Worker {
 public:
  Worker(const Shared& shared, std::int64_t first, std::int64_t count)
      : shared_(shared),
        problem_(*shared.problem),
        step_(*shared.problem->step),
        variant_(*shared.variant),
        lanes_(shared.variant->lanes),
        width_(shared.width),
        first_(first),
        count_(count),
        size_(width_ * lanes_) {
    const Counts& counts = step_.counts;
    const auto carried = static_cast<std::int64_t>(counts.carried), outer = static_cast<std::int64_t>(step_.outer());
    const std::int64_t invariants = static_cast<std::int64_t>(counts.invariants) * count_;
    const std::int64_t floats = (2 * carried * count_ + invariants + outer) * size_ + lanes_;
    auto* memory = scratch(static_cast<std::size_t>(floats) * sizeof(float) + elementwise::Tile::bytes(*shared.plan),
                           ScratchOwner::kRecurrenceTiles);
    auto* next = reinterpret_cast<float*>(memory + elementwise::Tile::bytes(*shared.plan));
    const auto take = [&](std::int64_t amount) { return std::exchange(next, next + amount); };
    tile_ = std::make_unique<elementwise::Tile>(*shared.plan, memory);
    carried_[0] = take(carried * count_ * size_);
    carried_[1] = take(carried * count_ * size_);
    invariant_memory_ = take(invariants * size_);
    copies_ = take(outer * size_);
    sums_ = take(lanes_);
    held_.assign(step_.outer(), -1);
    held_step_.assign(step_.outer(), -1);
  }

  void run() {
    for (std::size_t i = 0; i < step_.counts.carried; ++i)
      for (std::int64_t block = 0; block < count_; ++block) gather(problem_.initial[i], shared_.rows[i], block, state(i, block, 0));
    place_invariants();
    const std::int64_t plain = plain_blocks();
    for (std::int64_t t = 0; t < problem_.steps; ++t) {
      if (plain > 0 && shared_.gated)
        update_gated(t, plain);
      else if (plain > 0)
        run_plain(t, plain);
      for (std::int64_t block = plain; block < count_; ++block) run_block(t, block);
    }
    for (std::size_t i = 0; i < step_.counts.carried; ++i)
      for (std::int64_t block = 0; block < count_; ++block)
        scatter({state(i, block, problem_.steps), false}, block, 0, width_, problem_.finals[i]);
  }

 private:
  float* state(std::size_t index, std::int64_t block, std::int64_t t) const {
    return carried_[t & 1] + (static_cast<std::int64_t>(index) * count_ + block) * size_;
  }

  std::int64_t rows_of(std::int64_t block) const { return std::min(lanes_, shared_.row_count - (first_ + block) * lanes_); }

  const std::int64_t* offsets_of(const Rows& rows, std::int64_t block) const {
    return rows.offsets.data() + (first_ + block) * lanes_;
  }

  /// The elements of a block's rows, as vectors.
  void gather(const float* data, const Rows& rows, std::int64_t block, float* to) const {
    const std::int64_t* const offsets = offsets_of(rows, block);
    const std::int64_t elements = rows.differ ? width_ : 1;
    for (std::int64_t lane = 0; lane < lanes_; ++lane)
      for (std::int64_t i = 0; i < elements; ++i) to[i * lanes_ + lane] = data[offsets[lane] + i];
  }

  /// Elements of a block's rows to where the domain's lie.
  void scatter(Vectors from, std::int64_t block, std::int64_t begin, std::int64_t end, float* data) const {
    const std::int64_t distance = from.repeated ? 0 : lanes_;
    for (std::int64_t lane = 0; lane < rows_of(block); ++lane) {
      float* const row = data + ((first_ + block) * lanes_ + lane) * width_;
      for (std::int64_t i = begin; i < end; ++i) row[i] = from.data[(i - begin) * distance + lane];
    }
  }

  /// A value from outside in one block. It lies in `memory`, or where it is; `held` is the offset of the row that was spread into
  /// the memory before, or below zero.
  Vectors bring(const float* data, const Rows& rows, std::int64_t block, float* memory, std::int64_t& held) const {
    const std::int64_t offset = *offsets_of(rows, block);
    const Walk walk = rows.walks[static_cast<std::size_t>(first_ + block)];
    if (walk == Walk::kNumbers) return {data + offset, true};
    if (walk == Walk::kSame) {
      if (held != offset) variant_.spread(data + offset, rows.differ ? width_ : 1, memory);
      held = offset;
      return {memory, !rows.differ};
    }
    held = -1;
    gather(data, rows, block, memory);
    return {memory, !rows.differ};
  }

  void place_invariants() {
    const Counts& counts = step_.counts;
    for (std::size_t i = 0; i < counts.invariants; ++i)
      for (std::int64_t block = 0; block < count_; ++block) {
        float* const memory = invariant_memory_ + (static_cast<std::int64_t>(i) * count_ + block) * size_;
        std::int64_t held = -1;
        const auto* data = static_cast<const float*>(problem_.invariants[i]);
        invariants_.push_back(bring(data, shared_.rows[counts.carried + counts.sequences + i], block, memory, held));
      }
  }

  /// A value that is not computed, in one block.
  Vectors outer(std::size_t value, std::int64_t t, std::int64_t block) {
    const Counts& counts = step_.counts;
    if (value < counts.carried) return {state(value, block, t), false};
    if (value >= counts.carried + counts.sequences)
      return invariants_[(value - counts.carried - counts.sequences) * static_cast<std::size_t>(count_) +
                         static_cast<std::size_t>(block)];
    const float* const data = element(problem_.sequences[value - counts.carried], t);
    if (held_step_[value] != t) held_[value] = -1;
    held_step_[value] = t;
    return bring(data, shared_.rows[value], block, copies_ + static_cast<std::int64_t>(value) * size_, held_[value]);
  }

  /// An input or output of the tile that moves by a fixed distance from block to block.
  struct Moving {
    std::size_t number;
    const char* at;
    std::int64_t distance;
    bool repeated;
  };

  /// How many blocks, from the first on, are whole and have nothing in them that needs to be looked at block by block.
  std::int64_t plain_blocks() const {
    const Phase& phase = step_.phases[0];
    const Counts& counts = step_.counts;
    if (width_ * lanes_ > static_cast<std::int64_t>(elementwise::kTile)) return 0;
    for (std::size_t i = 0; i < step_.next.size(); ++i)
      if (!step_.is_computed(step_.next[i]) || std::count(step_.next.begin(), step_.next.end(), step_.next[i]) > 1) return 0;
    for (std::size_t i = 0; i < step_.stacked.size(); ++i)
      if (!step_.summed[i] || !step_.is_computed(step_.stacked[i])) return 0;
    for (std::size_t i = 0; i < shared_.plan->output_count; ++i)
      if (!shared_.plan->outputs[i].direct) return 0;
    for (const std::size_t value : phase.operands) {
      if (value < counts.carried) continue;
      const Rows& rows = shared_.rows[value];
      const auto walk = [&](std::int64_t block) { return rows.walks[static_cast<std::size_t>(first_ + block)]; };
      for (std::int64_t block = 0; block < count_; ++block) {
        if (walk(block) != walk(0)) return 0;
        if (value >= counts.carried + counts.sequences && walk(0) != Walk::kNumbers) continue;  // it lies block by block
        if (walk(0) == Walk::kAny) return 0;
        const std::int64_t moved = *offsets_of(rows, block) - *offsets_of(rows, 0);
        if (moved != (walk(0) == Walk::kSame ? 0 : block * lanes_)) return 0;
      }
    }
    return rows_of(count_ - 1) == lanes_ ? count_ : count_ - 1;
  }

  /// One step of the first `blocks` blocks.
  void run_plain(std::int64_t t, std::int64_t blocks) {
    constexpr auto kBytes = static_cast<std::int64_t>(sizeof(float));
    const Phase& phase = step_.phases[0];
    moving_.clear();
    for (std::size_t i = 0; i < phase.operands.size(); ++i) {
      const std::size_t value = phase.operands[i];
      const Vectors from = outer(value, t, 0);
      std::int64_t distance = 0;
      if (value < step_.counts.carried)
        distance = size_ * kBytes;
      else if (shared_.rows[value].walks[static_cast<std::size_t>(first_)] == Walk::kNumbers)
        distance = lanes_ * kBytes;
      else if (from.data >= invariant_memory_ && from.data < copies_)
        distance = size_ * kBytes;
      tile_->read(i, from.data, from.repeated);
      if (distance > 0) moving_.push_back({i, reinterpret_cast<const char*>(from.data), distance, from.repeated});
    }
    written_.clear();
    for (std::size_t i = 0; i < step_.next.size(); ++i)
      written_.push_back({step_.next[i] - phase.first, reinterpret_cast<const char*>(state(i, 0, t + 1)), size_ * kBytes, false});
    for (std::size_t i = 0; i < shared_.plan->output_count; ++i)
      if (std::find(step_.next.begin(), step_.next.end(), phase.first + i) == step_.next.end()) tile_->write(i, nullptr);
    for (std::int64_t block = 0; block < blocks; ++block) {
      for (Moving& one : moving_) {
        tile_->read(one.number, one.at, one.repeated);
        one.at += one.distance;
      }
      for (Moving& one : written_) {
        tile_->write(one.number, const_cast<char*>(one.at));
        one.at += one.distance;
      }
      tile_->run(*shared_.elementwise, static_cast<std::size_t>(size_));
      for (std::size_t i = 0; i < step_.stacked.size(); ++i) {
        const auto* from = static_cast<const float*>(tile_->made(step_.stacked[i] - phase.first).data);
        variant_.sum(from, lanes_, width_, false, element(problem_.stacked[i], t) + (first_ + block) * lanes_);
      }
    }
  }

  /// A value from outside in the first blocks, which are plain.
  Factor factor(std::size_t value, std::int64_t t) const {
    const Counts& counts = step_.counts;
    const Rows& rows = shared_.rows[value];
    const Walk walk = rows.walks[static_cast<std::size_t>(first_)];
    const std::size_t sequences = counts.carried + counts.sequences;
    if (walk == Walk::kAny) {
      const float* const data = invariants_[(value - sequences) * static_cast<std::size_t>(count_)].data;
      return {rows.differ ? Factor::kAll : Factor::kRows, data, size_};
    }
    const float* data = value >= sequences ? static_cast<const float*>(problem_.invariants[value - sequences])
                                           : element(problem_.sequences[value - counts.carried], t);
    data += *offsets_of(rows, 0);
    if (walk == Walk::kNumbers) return {Factor::kRows, data, lanes_};
    return {rows.differ ? Factor::kElements : Factor::kOne, data, 0};
  }

  Factors factors(const std::vector<std::size_t>& values, std::int64_t t) const {
    Factors made;
    for (const std::size_t value : values) made.list[made.count++] = factor(value, t);
    return made;
  }

  float* element(const Sequence& sequence, std::int64_t t) const {
    const std::int64_t at = sequence.reverse ? problem_.steps - 1 - t : t;
    return reinterpret_cast<float*>(const_cast<char*>(sequence.data) + at * sequence.bytes);
  }

  /// One step of the first `blocks` blocks, of a gated update.
  void update_gated(std::int64_t t, std::int64_t blocks) {
    const GatedStep& gated = *shared_.gated;
    variant_.update_gated({blocks, width_, factors(gated.gate, t), factors(gated.update, t), factors(gated.read, t),
                           gated.exponential, state(0, 0, t), state(0, 0, t + 1),
                           element(problem_.stacked[0], t) + first_ * lanes_});
  }

  void run_block(std::int64_t t, std::int64_t block) {
    const Phase& phase = step_.phases[0];
    inputs_.clear();
    for (const std::size_t operand : phase.operands) inputs_.push_back(outer(operand, t, block));
    const std::int64_t most = std::max<std::int64_t>(static_cast<std::int64_t>(elementwise::kTile) / lanes_, 1);
    for (std::int64_t begin = 0; begin < width_; begin += most) {
      const std::int64_t end = std::min(begin + most, width_);
      for (std::size_t i = 0; i < inputs_.size(); ++i) {
        const Vectors part = inputs_[i].from(begin, lanes_);
        tile_->read(i, part.data, part.repeated);
      }
      compute(t, block, begin, end);
    }
  }

  /// Elements [begin, end) of the rows of a block.
  void compute(std::int64_t t, std::int64_t block, std::int64_t begin, std::int64_t end) {
    const Phase& phase = step_.phases[0];
    for (std::size_t i = 0; i < phase.program.outputs().size(); ++i) {
      const auto carry = std::find(step_.next.begin(), step_.next.end(), phase.first + i);
      float* const own = carry == step_.next.end()
                             ? nullptr
                             : state(static_cast<std::size_t>(carry - step_.next.begin()), block, t + 1) + begin * lanes_;
      tile_->write(i, own);
    }
    tile_->run(*shared_.elementwise, static_cast<std::size_t>((end - begin) * lanes_));
    const auto value = [&](std::size_t number) -> Vectors {
      if (!step_.is_computed(number)) return outer(number, t, block).from(begin, lanes_);
      const elementwise::Place& place = tile_->made(number - phase.first);
      return {static_cast<const float*>(place.data), place.scalar};
    };
    for (std::size_t i = 0; i < step_.stacked.size(); ++i) stack(i, value(step_.stacked[i]), t, block, begin, end);
    for (std::size_t i = 0; i < step_.next.size(); ++i) {
      const Vectors from = value(step_.next[i]);
      float* const to = state(i, block, t + 1) + begin * lanes_;
      if (from.data == to) continue;
      for (std::int64_t k = 0; k < end - begin; ++k)
        std::memcpy(to + k * lanes_, from.data + (from.repeated ? 0 : k * lanes_),
                    static_cast<std::size_t>(lanes_) * sizeof(float));
    }
  }

  void stack(std::size_t index, Vectors from, std::int64_t t, std::int64_t block, std::int64_t begin, std::int64_t end) {
    float* data = element(problem_.stacked[index], t);
    if (!step_.summed[index]) {
      scatter(from, block, begin, end, data);
      return;
    }
    data += (first_ + block) * lanes_;
    const auto bytes = static_cast<std::size_t>(rows_of(block)) * sizeof(float);
    if (begin > 0) std::memcpy(sums_, data, bytes);
    variant_.sum(from.data, from.repeated ? 0 : lanes_, end - begin, begin > 0, sums_);
    std::memcpy(data, sums_, bytes);
  }

  const Shared& shared_;
  const Problem& problem_;
  const Step& step_;
  const Variant& variant_;
  const std::int64_t lanes_, width_, first_, count_, size_;
  std::unique_ptr<elementwise::Tile> tile_;
  float* carried_[2];
  float *invariant_memory_, *copies_, *sums_;
  std::vector<std::int64_t> held_, held_step_;  // of each sequence: the offset that was spread, and the step
  std::vector<Vectors> invariants_, inputs_;
  std::vector<Moving> moving_, written_;
};

void run_task(void* user, std::size_t index) {
  const Shared& shared = *static_cast<const Shared*>(user);
  const std::int64_t first = static_cast<std::int64_t>(index) * shared.blocks_of_task;
  Worker(shared, first, std::min(shared.blocks_of_task, shared.blocks - first)).run();
}

}  // namespace

void run_in_blocks(const Problem& problem, const elementwise::Plan& plan, const Variant& variant,
                   const elementwise::Variant& elementwise, const ParallelFor& parallel_for) {
  const Step& step = *problem.step;
  Shared shared{&problem, &plan, &variant, &elementwise, find_gated(step), {}, 1, 1, 0, 0};
  if (!problem.domain.empty()) shared.width = problem.domain.back();
  for (std::size_t axis = 0; axis + 1 < problem.domain.size(); ++axis) shared.row_count *= problem.domain[axis];
  shared.blocks = (shared.row_count + variant.lanes - 1) / variant.lanes;
  for (std::size_t i = 0; i < step.outer(); ++i)
    shared.rows.emplace_back(i < step.counts.carried ? problem.domain : problem.shapes[i - step.counts.carried], problem.domain,
                             shared.row_count, shared.blocks, variant.lanes);
  const double cost = plan.schedule->cost * static_cast<double>(problem.steps * shared.row_count * shared.width);
  const auto tasks = std::clamp(static_cast<std::int64_t>(cost / kGrain), std::int64_t{1}, kMostTasks);
  const std::int64_t least = std::min(kLeastBlocks, (shared.blocks + 1) / 2);
  shared.blocks_of_task = std::max((shared.blocks + tasks - 1) / tasks, least);
  parallel_for(static_cast<std::size_t>((shared.blocks + shared.blocks_of_task - 1) / shared.blocks_of_task), run_task, &shared);
}

}  // namespace onnxopt::recurrence
