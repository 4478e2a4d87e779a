#include "kernels/cpu/elementwise/epilogue.h"

#include <algorithm>
#include <numeric>

#include "kernels/cpu/elementwise/plan.h"

namespace onnxopt::elementwise {

namespace {

/// From which of the leading axes on every input walks through rows as if those axes were one.
std::size_t first_together(const Shape& shape, const std::vector<std::size_t>& leading, const std::vector<Strides>& strides) {
  std::size_t first = leading.size();
  const auto joins = [&](const Strides& one) {
    return one[leading[first - 2]] == one[leading[first - 1]] * shape[leading[first - 1]];
  };
  while (first > 1 && std::all_of(strides.begin(), strides.end(), joins)) --first;
  return first == 0 ? 0 : first - 1;
}

/// A plan has room for many more inputs than most programs have: only those that are there are copied.
void copy_plan(const Plan& from, Plan& to) {
  to.schedule = from.schedule;
  to.literals = from.literals;
  to.literal_count = from.literal_count;
  to.input_count = from.input_count;
  to.output_count = from.output_count;
  std::copy_n(from.inputs, from.input_count, to.inputs);
  std::copy_n(from.outputs, from.output_count, to.outputs);
}

}  // namespace

Result<Epilogue> Epilogue::make(const Program& program, const Variant& variant, std::size_t raw, const Arguments& arguments) {
  using Made = Result<Epilogue>;
  if (program.is_for_devices()) return Made::failure(kForDevices);
  const Shape& shape = arguments.output_shapes.front();
  for (const Shape& other : arguments.output_shapes)
    if (other != shape)
      return Made::failure("The outputs of its epilogue have the shapes " + text_of(shape) + " and " + text_of(other) + ".");
  for (std::size_t i = 0; i < raw; ++i)
    if (!std::equal(shape.begin(), shape.end(), arguments.input_shapes[i].begin(), arguments.input_shapes[i].end()))
      return Made::failure("Its epilogue makes the shape " + text_of(shape) + " of results of shape " +
                           text_of(arguments.input_shapes[i]) + ".");
  Epilogue made;
  made.variant_ = &variant;
  made.raw_ = raw;
  made.width_ = shape.empty() ? 1 : shape.back();
  std::size_t members[Program::kMaxOutputs];
  std::iota(std::begin(members), std::end(members), std::size_t{0});
  const std::shared_ptr<Plan> plan = std::make_shared_for_overwrite<Plan>();
  describe(*plan, program, program.schedule(), arguments, {members, arguments.outputs.size()});
  std::vector<Strides> strides;
  strides.reserve(plan->input_count);
  for (std::size_t i = 0; i < plan->input_count; ++i)
    strides.push_back(plan->inputs[i].used ? strides_in(arguments.input_shapes[i], shape) : Strides(shape.size(), 0));
  std::vector<std::size_t> leading;  // axes before the last one; those of size 1 say nothing
  for (std::size_t axis = 0; axis + 1 < shape.size(); ++axis)
    if (shape[axis] != 1) leading.push_back(axis);
  const std::size_t first = first_together(shape, leading, strides);
  for (std::size_t i = 0; i < first; ++i) made.outer_dims_.push_back(shape[leading[i]]);
  for (std::size_t i = first; i < leading.size(); ++i) made.rows_together_ *= shape[leading[i]];
  made.walks_.reserve(strides.size());
  for (const Strides& one : strides) {
    Walk walk;
    for (std::size_t i = 0; i < first; ++i) walk.outer.push_back(one[leading[i]]);
    walk.row = leading.empty() ? 0 : one[leading.back()];
    walk.column = shape.empty() ? 0 : one.back();
    made.walks_.push_back(std::move(walk));
  }
  made.plan_ = plan;
  return made;
}

void Epilogue::apply(std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns,
                     std::span<const RawBlock> blocks, void* into) const {
  if (rows == 0 || columns == 0) return;
  Plan plan;
  copy_plan(*static_cast<const Plan*>(plan_.get()), plan);
  // Rows that are neighbours everywhere are one long row.
  bool one_row = columns == width_;
  for (std::size_t i = 0; i < plan.input_count; ++i) {
    PlanInput& input = plan.inputs[i];
    if (!input.used) continue;
    const Walk& walk = walks_[i];
    const bool raw = i < raw_;
    input.strides[0] = raw ? blocks[i].row_step : walk.row;
    input.strides[1] = raw ? 1 : walk.column;
    input.scalar = input.strides[0] == 0 && input.strides[1] == 0;
    one_row = one_row && input.strides[0] == input.strides[1] * columns;
    input.data = raw ? reinterpret_cast<const char*>(blocks[i].data)
                     : input.data + offset_of(walk, row, column) * static_cast<std::int64_t>(size_of(input.type));
  }
  for (std::size_t i = 0; i < plan.output_count; ++i) {
    PlanOutput& output = plan.outputs[i];
    const bool elsewhere = into && i == 0;
    output.data = elsewhere ? static_cast<char*>(into)
                            : output.data + (row * width_ + column) * static_cast<std::int64_t>(size_of(output.type));
    output.row_step = elsewhere ? columns : width_;
  }
  plan.elements = rows * columns;
  plan.window = !one_row;
  plan.rank = one_row ? 1 : 2;
  plan.dims[0] = one_row ? plan.elements : rows;
  plan.dims[1] = columns;
  plan.row = plan.dims[plan.rank - 1];
  for (std::size_t i = 0; one_row && i < plan.input_count; ++i) plan.inputs[i].strides[0] = plan.inputs[i].strides[1];
  variant_->run(plan, 0, plan.elements);
}

std::int64_t Epilogue::offset_of(const Walk& walk, std::int64_t row, std::int64_t column) const {
  std::int64_t offset = row % rows_together_ * walk.row + column * walk.column;
  row /= rows_together_;
  for (std::size_t axis = outer_dims_.size(); axis-- > 0; row /= outer_dims_[axis])
    offset += row % outer_dims_[axis] * walk.outer[axis];
  return offset;
}

}  // namespace onnxopt::elementwise
