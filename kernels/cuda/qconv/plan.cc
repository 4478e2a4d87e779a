#include "kernels/cuda/qconv/plan.h"

namespace onnxopt::qconv::cuda {

using gemm::cuda::Small;
using gemm::cuda::Tall;

namespace {

constexpr auto kGroup = static_cast<std::int64_t>(qgemm::kGroup);

template <class L, class Code>
bool describe(const Problem& problem, const ew::Planned* epilogue, Products<Code>& products) {
  if (!gemm::cuda::pack_epilogue<L>(epilogue, products.epilogue)) return false;
  products.problem = problem;
  products.problem.epilogue = nullptr;  // it is in memory of the host
  products.windows = windows_of(problem);
  products.depthwise = problem.geometry.is_depthwise();
  products.vectors = takes_vectors(problem);
  return true;
}

}  // namespace

Windows windows_of(const Problem& problem) {
  const conv::Geometry& g = problem.geometry;
  const std::int64_t bytes = stretch(g), padded = (bytes + kGroup - 1) / kGroup * kGroup;
  const std::int64_t own = g.is_depthwise() ? g.channels : g.channels / g.groups;  // bytes of a pixel that are read together
  const auto place = reinterpret_cast<std::uintptr_t>(problem.x.data) | static_cast<std::uintptr_t>(own);
  Windows windows{};
  windows.pixels = g.pixels();
  windows.packed_rows = stretches(g) * padded / kGroup;
  windows.lines = in_lines(g);
  windows.stretch = static_cast<int>(bytes);
  windows.padded = static_cast<int>(padded);
  windows.width = place % 16 == 0 ? 16 : place % 4 == 0 ? 4 : 1;
  windows.height = static_cast<int>(g.input[0]);
  windows.line_bytes = static_cast<int>(g.input[1] * g.channels);
  windows.channels = static_cast<int>(g.channels);
  windows.down = static_cast<int>(g.kernel[0]);
  windows.across = windows.lines ? 1 : static_cast<int>(g.kernel[1]);
  windows.down_step = static_cast<int>(g.dilations[0]);
  windows.across_step = static_cast<int>(g.dilations[1] * g.channels);
  return windows;
}

bool is_narrow(const conv::Geometry& g) {
  constexpr std::int64_t most = std::int64_t{1} << 30;
  // Each factor first, so that no product overflows.
  const std::int64_t down = g.input[0] + g.pads[0] + g.kernel[0] * g.dilations[0] + g.output[0] * g.strides[0];
  const std::int64_t across = g.input[1] + g.pads[1] + g.kernel[1] * g.dilations[1] + g.output[1] * g.strides[1];
  return down < most && across < most && g.channels < most && down * across < most && down * across * (g.channels + kGroup) < most;
}

bool takes_vectors(const Problem& problem) {
  const conv::Geometry& g = problem.geometry;
  const auto aligned = [](const void* data, Type type) {
    return reinterpret_cast<std::uintptr_t>(data) % (type == Type::kFloat ? 16 : 4) == 0;
  };
  const void* const read[] = {problem.weight_scales, problem.sums, problem.bias};
  return g.filters / (g.is_depthwise() ? 1 : g.groups) % ew::Usual::kCount == 0 &&
         std::all_of(std::begin(read), std::end(read), ew::is_aligned) && aligned(problem.y, problem.result.type) &&
         aligned(problem.added.data, problem.added.type);
}

template <class T, class L, class Code>
bool fill(const Problem& problem, const ew::Planned* epilogue, Products<Code>& products, Launch& launch) {
  if (!describe<L>(problem, epilogue, products)) return false;
  const conv::Geometry& g = problem.geometry;
  const gemm::cuda::Finish finish = gemm::cuda::finish_of<T, qgemm::kGroup>(ew::slots_of(epilogue) * sizeof(L));
  products.finishing = finish.threads;
  launch = {g.groups * gemm::cuda::tiles_of<T>(g.pixels(), g.filters / g.groups, 1), kThreads, finish.shared_bytes};
  return true;
}

template <class L, class Code>
bool fill_depthwise(const Problem& problem, const ew::Planned* epilogue, Products<Code>& products, Launch& launch) {
  if (!describe<L>(problem, epilogue, products)) return false;
  const conv::Geometry& g = problem.geometry;
  const std::size_t bytes = ew::slots_of(epilogue) * sizeof(L);
  products.finishing = static_cast<unsigned>(kThreads);
  while (products.finishing > 32 && products.finishing * bytes > gemm::cuda::kMostSharedBytes) products.finishing /= 2;
  const std::int64_t items = g.pixels() * ((g.filters + L::kCount - 1) / L::kCount);
  launch = {(items + products.finishing - 1) / products.finishing, products.finishing, products.finishing * bytes};
  return true;
}

template bool fill<Tall, ew::Usual>(const Problem&, const ew::Planned*, Products<NoProgram>&, Launch&);
template bool fill<Small, ew::Usual>(const Problem&, const ew::Planned*, Products<NoProgram>&, Launch&);
template bool fill<Tall, ew::Usual>(const Problem&, const ew::Planned*, Products<ew::SmallCode>&, Launch&);
template bool fill<Small, ew::Usual>(const Problem&, const ew::Planned*, Products<ew::SmallCode>&, Launch&);
template bool fill<Small, ew::Any>(const Problem&, const ew::Planned*, Products<ew::LargeCode>&, Launch&);
template bool fill_depthwise<ew::Usual>(const Problem&, const ew::Planned*, Products<NoProgram>&, Launch&);
template bool fill_depthwise<ew::Usual>(const Problem&, const ew::Planned*, Products<ew::SmallCode>&, Launch&);
template bool fill_depthwise<ew::Any>(const Problem&, const ew::Planned*, Products<ew::LargeCode>&, Launch&);

}  // namespace onnxopt::qconv::cuda
