#include "kernels/cuda/recurrence/plan.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>

#include "kernels/cpu/gemm/panel.h"

namespace onnxopt::recurrence::cuda {

namespace {

constexpr unsigned kUsualThreads = 128, kLanes = 32;

ew::Listing listing_of(const Phase& phase) {
  return ew::assemble(phase.program, phase.program.output_statements(), {phase.program.inputs().size(), true});
}

/// Gives values their places and writes down what is done with them.
class Writer {
 public:
  Writer(const Problem& problem, Code& code) : problem_(problem), step_(*problem.step), code_(code) {}

  /// Empty, or a sentence.
  std::string run() {
    const Counts& counts = step_.counts;
    if (counts.sequences + counts.invariants > ew::LargeTensors::kInputs || counts.carried > Code::kCarried ||
        counts.matrices > Code::kProducts || step_.phases.size() > Code::kStages || step_.stacked.size() > Code::kStacks ||
        problem_.domain.size() > ew::LargeTensors::kRank)
      return "Its step has more values or phases than a CUDA kernel takes.";
    describe_sources();
    columns_.assign(step_.values, kNone);
    for (std::size_t i = 0; i < counts.carried; ++i) {
      columns_[i] = next_column_++;
      code_.initial[i] = problem_.initial[i];
      code_.finals[i] = problem_.finals[i];
    }
    for (std::size_t value = step_.outer(); value < step_.values; ++value) columns_[value] = next_column_++;
    for (const Phase& phase : step_.phases) add(phase);
    for (std::size_t i = 0; i < step_.stacked.size(); ++i) add_stack(i);
    add_moves();
    std::copy(problem_.matrices.begin(), problem_.matrices.end(), code_.matrices);
    code_.carried = static_cast<std::uint16_t>(counts.carried);
    code_.matrix_count = static_cast<std::uint16_t>(counts.matrices);
    code_.stage_count = static_cast<std::uint16_t>(step_.phases.size());
    code_.stack_count = static_cast<std::uint16_t>(step_.stacked.size());
    code_.columns = next_column_;
    return fits_ ? "" : "Its step has more operations than a CUDA kernel takes.";
  }

 private:
  static constexpr std::uint16_t kNone = 0xffff;

  bool is_source(std::size_t value) const { return value >= step_.counts.carried && value < step_.outer(); }

  void describe_sources() {
    const std::size_t sequences = step_.counts.sequences, count = sequences + step_.counts.invariants;
    elementwise::Plan plan{};
    elementwise::Shape domain = problem_.domain;
    if (domain.empty()) domain.push_back(1);
    plan.rank = domain.size();
    plan.row = domain.back();
    plan.elements = std::accumulate(domain.begin(), domain.end(), std::int64_t{1}, std::multiplies<>());
    std::copy(domain.begin(), domain.end(), plan.dims);
    std::vector<std::uint16_t> numbers;
    for (std::size_t i = 0; i < count; ++i) {
      elementwise::PlanInput& input = plan.inputs[i];
      input.type = elementwise::DType::f32;
      // A sequence that no program reads may have elements of any shape.
      const bool fits = problem_.shapes[i].size() <= domain.size();
      const auto strides = elementwise::strides_in(fits ? problem_.shapes[i] : elementwise::Shape{}, domain);
      std::copy(strides.begin(), strides.end(), input.strides);
      input.scalar = std::all_of(strides.begin(), strides.end(), [](std::int64_t stride) { return stride == 0; });
      if (i < sequences) {
        const Sequence& sequence = problem_.sequences[i];
        input.data = sequence.data + (sequence.reverse ? (problem_.steps - 1) * sequence.bytes : 0);
        code_.source_steps[i] = sequence.reverse ? -sequence.bytes : sequence.bytes;
      } else {
        input.data = static_cast<const char*>(problem_.invariants[i - sequences]);
        code_.source_steps[i] = 0;
      }
      numbers.push_back(static_cast<std::uint16_t>(i));
    }
    ew::pack_tensors(numbers, plan, 1, code_.sources);
    code_.elements = plan.elements;
    code_.steps = problem_.steps;
    code_.width = domain.back();
  }

  template <std::size_t N>
  void add(Copy (&list)[N], std::uint16_t& count, Copy copy) {
    fits_ = fits_ && count < N;
    if (fits_) list[count++] = copy;
  }

  std::uint16_t source_of(std::size_t value) const { return static_cast<std::uint16_t>(kSource | (value - step_.counts.carried)); }

  /// The column of a value; a source gets one, which is filled when it changes.
  std::uint16_t column_of(std::size_t value) {
    if (columns_[value] != kNone) return columns_[value];
    columns_[value] = next_column_++;
    const bool changes = value < step_.counts.carried + step_.counts.sequences;
    const Copy copy{source_of(value), columns_[value]};
    if (changes)
      add(code_.loads, code_.load_count, copy);
    else
      add(code_.constants, code_.constant_count, copy);
    return columns_[value];
  }

  /// Where a value is read: elements of sequences from memory, once in a step, and what does not change from its column.
  std::uint16_t read(std::size_t value) {
    const bool sequence = is_source(value) && value < step_.counts.carried + step_.counts.sequences;
    return sequence && columns_[value] == kNone ? source_of(value) : column_of(value);
  }

  void add(const Phase& phase) {
    const ew::Listing listing = listing_of(phase);
    fits_ = fits_ && products_ + phase.products.size() <= Code::kProducts && operands_ + phase.operands.size() <= Code::kOperands &&
            statements_ + listing.statements.size() <= Code::kStatements && scalars_ + listing.scalars.size() <= Code::kScalars;
    if (!fits_) return;
    Stage& stage = code_.stages[stages_++];
    stage = {narrow(products_),   narrow(phase.products.size()),
             narrow(statements_), narrow(listing.statements.size()),
             narrow(operands_),   columns_[phase.first + phase.products.size()]};
    for (std::size_t i = 0; i < phase.products.size(); ++i) {
      const Product& product = phase.products[i];
      const bool biased = product.bias != Product::kNoBias;
      code_.products[products_++] = {column_of(product.value), columns_[phase.first + i],
                                     biased ? column_of(product.bias) : std::uint16_t{0}, narrow(product.matrix), biased};
    }
    for (const std::size_t operand : phase.operands) code_.operands[operands_++] = read(operand);
    for (ew::Statement statement : listing.statements) {
      for (std::uint16_t& operand : statement.operands)
        if (operand != ew::Statement::kAtHand && operand >= ew::Statement::kScalar) operand = narrow(operand + scalars_);
      code_.statements[statements_++] = statement;
    }
    for (const std::uint64_t scalar : listing.scalars) code_.scalars[scalars_++] = scalar;
    code_.slots = std::max(code_.slots, listing.slot_count);
  }

  void add_stack(std::size_t index) {
    const Sequence& sequence = problem_.stacked[index];
    const auto floats = sequence.bytes / static_cast<std::int64_t>(sizeof(float));
    float* const data = reinterpret_cast<float*>(const_cast<char*>(sequence.data));
    const std::size_t value = step_.stacked[index];
    code_.stacks[index] = {data + (sequence.reverse ? (problem_.steps - 1) * floats : 0), sequence.reverse ? -floats : floats,
                           step_.summed[index] ? column_of(value) : read(value), step_.summed[index]};
  }

  /// What carried values get; one that gets another carried value is given it by way of a column of its own.
  void add_moves() {
    std::vector<Copy> last;
    for (std::size_t i = 0; i < step_.next.size(); ++i) {
      const std::size_t value = step_.next[i];
      if (value == i) continue;
      std::uint16_t from = read(value);
      if (value < step_.counts.carried) {
        const std::uint16_t between = next_column_++;
        add(code_.moves, code_.move_count, {from, between});
        from = between;
      }
      last.push_back({from, columns_[i]});
    }
    for (const Copy& copy : last) add(code_.moves, code_.move_count, copy);
  }

  static std::uint16_t narrow(std::size_t number) { return static_cast<std::uint16_t>(number); }

  const Problem& problem_;
  const Step& step_;
  Code& code_;
  std::vector<std::uint16_t> columns_;  // of each value
  std::uint16_t next_column_ = 0;
  std::size_t products_ = 0, operands_ = 0, statements_ = 0, scalars_ = 0, stages_ = 0;
  bool fits_ = true;
};

}  // namespace

bool is_wide(const Step& step) {
  return std::any_of(step.phases.begin(), step.phases.end(), [](const Phase& phase) { return listing_of(phase).wide; });
}

Result<bool> fill(const Problem& problem, std::size_t word_bytes, Code& code, Launch& launch) {
  code = {};
  if (const std::string sentence = Writer(problem, code).run(); !sentence.empty()) return Result<bool>::failure(sentence);
  if (code.elements == 0) {
    if (problem.step->has_sums && code.steps > 0)
      code.empty_rows = std::accumulate(problem.domain.begin(), problem.domain.end() - 1, std::int64_t{1}, std::multiplies<>());
    launch = {code.empty_rows > 0 ? 1 : 0, kUsualThreads, 0};
    return true;
  }
  code.together = problem.step->has_products || problem.step->has_sums;
  std::int64_t rows = std::max<std::int64_t>(kUsualThreads / code.width, 1);
  launch.threads = kUsualThreads;
  const auto bytes = [&] { return launch.threads * code.slots * word_bytes + code.columns * code.block * sizeof(float); };
  while (true) {
    const std::int64_t block = code.together ? rows * code.width : launch.threads;
    if (block > static_cast<std::int64_t>(kMostShared)) break;  // of which each element takes some bytes
    code.block = static_cast<unsigned>(block);
    if (code.together)
      launch.threads = std::clamp((code.block + kLanes - 1) / kLanes * kLanes, kLanes, rows > 1 ? kUsualThreads : kMostThreads);
    if (bytes() <= kMostShared) break;
    if (!code.together && launch.threads > kLanes)
      launch.threads /= 2;
    else if (code.together && rows > 1)
      rows /= 2;
    else
      break;
  }
  if (code.block == 0 || bytes() > kMostShared)
    return Result<bool>::failure(
        "The values of a step do not fit into the shared memory of a CUDA device: " + std::to_string(code.columns) +
        " for each of " + std::to_string(code.width) + " elements of a row.");
  const auto panel = static_cast<std::int64_t>(gemm::kPanel);
  code.matrix_size = (code.width + panel - 1) / panel * panel * code.width;
  const std::size_t all = static_cast<std::size_t>(code.matrix_size) * code.matrix_count;
  // Where matrices are not held, every step reads them through the second-level cache.
  if (all <= (kMostShared - bytes()) / sizeof(float)) code.held = static_cast<std::int64_t>(all);
  launch.shared_bytes = bytes() + static_cast<std::size_t>(code.held) * sizeof(float);
  launch.blocks = (code.elements + code.block - 1) / code.block;
  return true;
}

}  // namespace onnxopt::recurrence::cuda
