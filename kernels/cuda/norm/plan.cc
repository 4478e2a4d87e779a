#include "kernels/cuda/norm/plan.h"

#include <algorithm>

namespace onnxopt::norm::cuda {

namespace {

bool is_aligned(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; }

/// Calls `use` with what a bound program computes; with null where there is none.
Result<bool> with_planned(const Bound* bound, const ew::Surroundings& surroundings,
                          const std::function<Result<bool>(const Planned*)>& use) {
  if (bound == nullptr) return use(nullptr);
  return elementwise::for_each_plan(*bound->program, bound->arguments, [&](const elementwise::Plan& plan) {
    const Planned planned{bound->program, &plan,
                          ew::assemble(*bound->program, ew::output_statements(*bound->program, plan), surroundings)};
    return use(&planned);
  });
}

bool is_by_element(const Affine& affine) { return affine.run == 1 && affine.period == 1; }

std::size_t slots_of(const Planned* planned) { return planned ? planned->listing.slot_count : 0; }

template <class L, class Code>
bool pack(const Planned* planned, Code& code) {
  if (planned == nullptr) return true;
  if (planned->listing.wide && sizeof(typename L::Word) < sizeof(std::int64_t)) return false;
  return ew::pack(planned->listing, *planned->plan, L::kCount, code);
}

template <class L>
bool pack(const Planned* planned, Sum&) {
  return planned == nullptr;
}

template <class Code>
void set_terms(const Terms&, Code&) {}

void set_terms(const Terms& terms, Sum& sum) {
  sum.terms = terms;
  std::transform(terms.dims, terms.dims + terms.rank, sum.dims, ew::dim_of);
}

/// Whether all rows of all terms can be read by vectors of so many elements.
bool divides(const Terms& terms, std::int64_t count) {
  return std::all_of(terms.terms, terms.terms + terms.count, [&](const Terms::Term& term) {
    const auto aligned = [&](std::int64_t step) { return step % count == 0; };
    return term.scalar || (is_aligned(term.data) && std::all_of(term.steps, term.steps + terms.rank, aligned));
  });
}

}  // namespace

template <class L, class Code>
bool fill(const Problem& problem, const Programs& programs, Rows<Code>& rows, Launch& launch) {
  if (!pack<L>(programs.prologue, rows.prologue) || !pack<L>(programs.epilogue, rows.epilogue)) return false;
  const std::int64_t items = (problem.width + L::kCount - 1) / L::kCount;
  const std::size_t slots = std::max(slots_of(programs.prologue), slots_of(programs.epilogue));
  const Geometry geometry = shrunk(geometry_of(items, problem.inner > 1), slots * sizeof(L) + sizeof(float), ew::kSharedBytes);
  rows.kind = problem.kind;
  rows.prologue_present = programs.prologue != nullptr;
  rows.epilogue_present = programs.epilogue != nullptr;
  rows.by_element = is_by_element(problem.affine);
  rows.narrow = problem.width < std::int64_t{1} << 31;
  rows.lanes = geometry.lanes;
  rows.warps = geometry.warps;
  rows.slots = static_cast<unsigned>(slots);
  rows.held = 0;
  rows.epsilon = problem.epsilon;
  rows.rows = problem.rows;
  rows.width = problem.width;
  rows.inner = problem.inner;
  rows.period = problem.affine.period;
  rows.run = ew::dim_of(problem.affine.run);
  rows.x = problem.x;
  rows.scale = problem.affine.scale;
  rows.bias = problem.affine.bias;
  rows.y = problem.y;
  rows.kept = problem.kept;
  if (problem.terms) set_terms(*problem.terms, rows.prologue);
  const std::size_t used = shared_bytes<L>(rows, geometry.threads), item = geometry.threads * L::kCount * sizeof(float);
  const std::int64_t of_thread = (items + geometry.members() - 1) / geometry.members();
  const std::int64_t room = used < ew::kSharedBytes ? static_cast<std::int64_t>((ew::kSharedBytes - used) / item) : 0;
  rows.held = static_cast<unsigned>(std::min(of_thread, room));
  launch = {geometry.threads, shared_bytes<L>(rows, geometry.threads), (problem.rows + geometry.rows() - 1) / geometry.rows()};
  return true;
}

template bool fill<ew::Usual>(const Problem&, const Programs&, Rows<Sum>&, Launch&);
template bool fill<ew::Any>(const Problem&, const Programs&, Rows<Sum>&, Launch&);
template bool fill<ew::Usual>(const Problem&, const Programs&, Rows<ew::SmallCode>&, Launch&);
template bool fill<ew::Any>(const Problem&, const Programs&, Rows<ew::SmallCode>&, Launch&);
template bool fill<ew::Any>(const Problem&, const Programs&, Rows<ew::LargeCode>&, Launch&);

bool takes_vectors(const Problem& problem, const Programs& programs) {
  constexpr std::int64_t count = ew::Usual::kCount;
  const auto wide = [](const Planned* planned) { return planned && planned->listing.wide; };
  const void* const tensors[] = {problem.x, problem.y, problem.kept, problem.affine.scale, problem.affine.bias};
  return problem.inner == 1 && problem.width % count == 0 && (is_by_element(problem.affine) || problem.affine.run % count == 0) &&
         !wide(programs.prologue) && !wide(programs.epilogue) && std::all_of(std::begin(tensors), std::end(tensors), is_aligned) &&
         (problem.terms == nullptr || divides(*problem.terms, count));
}

Result<bool> with_programs(const Problem& problem, const std::function<Result<bool>(const Programs&)>& use) {
  if (problem.terms != nullptr && problem.epilogue == nullptr) return use({nullptr, nullptr});
  return with_planned(problem.prologue, {0, problem.kept != nullptr}, [&](const Planned* prologue) {
    return with_planned(problem.epilogue, {1, true}, [&](const Planned* epilogue) { return use({prologue, epilogue}); });
  });
}

}  // namespace onnxopt::norm::cuda
