#include "kernels/cuda/norm/plan.h"

#include <algorithm>

namespace onnxopt::norm::cuda {

namespace {

bool is_by_element(const Affine& affine) { return affine.run == 1 && affine.period == 1; }

template <class L, class Code>
bool pack(const ew::Planned* planned, Code& code) {
  return ew::pack_embedded<L>(planned, code);
}

template <class L>
bool pack(const ew::Planned* planned, Sum&) {
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
    return term.scalar || (ew::is_aligned(term.data) && std::all_of(term.steps, term.steps + terms.rank, aligned));
  });
}

}  // namespace

template <class L, class Code>
bool fill(const Problem& problem, const Programs& programs, Rows<Code>& rows, Launch& launch) {
  if (!pack<L>(programs.prologue, rows.prologue) || !pack<L>(programs.epilogue, rows.epilogue)) return false;
  const std::int64_t items = (problem.width + L::kCount - 1) / L::kCount;
  const std::size_t slots = std::max(ew::slots_of(programs.prologue), ew::slots_of(programs.epilogue));
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
  rows.y_half = problem.y_half;
  if (problem.terms) set_terms(*problem.terms, rows.prologue);
  const std::size_t used = shared_bytes<L>(rows, geometry.threads), item = geometry.threads * L::kCount * sizeof(float);
  const std::int64_t of_thread = (items + geometry.members() - 1) / geometry.members();
  const std::int64_t room = used < ew::kSharedBytes ? static_cast<std::int64_t>((ew::kSharedBytes - used) / item) : 0;
  rows.held = static_cast<unsigned>(std::min(of_thread, room));
  launch = {(problem.rows + geometry.rows() - 1) / geometry.rows(), geometry.threads, shared_bytes<L>(rows, geometry.threads)};
  return true;
}

template bool fill<ew::Usual>(const Problem&, const Programs&, Rows<Sum>&, Launch&);
template bool fill<ew::Any>(const Problem&, const Programs&, Rows<Sum>&, Launch&);
template bool fill<ew::Usual>(const Problem&, const Programs&, Rows<ew::SmallCode>&, Launch&);
template bool fill<ew::Any>(const Problem&, const Programs&, Rows<ew::SmallCode>&, Launch&);
template bool fill<ew::Any>(const Problem&, const Programs&, Rows<ew::LargeCode>&, Launch&);

bool takes_vectors(const Problem& problem, const Programs& programs) {
  constexpr std::int64_t count = ew::Usual::kCount;
  const void* const tensors[] = {problem.x, problem.y, problem.y_half, problem.kept, problem.affine.scale, problem.affine.bias};
  return problem.inner == 1 && problem.width % count == 0 && (is_by_element(problem.affine) || problem.affine.run % count == 0) &&
         !ew::is_wide(programs.prologue) && !ew::is_wide(programs.epilogue) &&
         std::all_of(std::begin(tensors), std::end(tensors), ew::is_aligned) &&
         (problem.terms == nullptr || divides(*problem.terms, count));
}

Result<bool> with_programs(const Problem& problem, const std::function<Result<bool>(const Programs&)>& use) {
  if (problem.terms != nullptr && problem.epilogue == nullptr) return use({nullptr, nullptr});
  return ew::with_planned(problem.prologue, {0, problem.kept != nullptr}, [&](const ew::Planned* prologue) {
    return ew::with_planned(problem.epilogue, {1, true}, [&](const ew::Planned* epilogue) { return use({prologue, epilogue}); });
  });
}

}  // namespace onnxopt::norm::cuda
