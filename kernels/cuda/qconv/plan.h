// From a problem to one launch: how windows are read, the tiles of a block, and the kernel's parameter.
#pragma once

#include "kernels/cuda/gemm/forms.h"
#include "kernels/cuda/qconv/qconv.h"

namespace onnxopt::qconv::cuda {

namespace ew = elementwise::cuda;
using gemm::cuda::Launch;
using gemm::cuda::NoProgram;

constexpr int kThreads = gemm::cuda::kTensorThreads;

/// Windows as rows of a product of bytes: some stretches, each of bytes that lie together in x, filled up to a multiple of four.
struct Windows {
  std::int64_t pixels, packed_rows;  // of the output; of the weights of a group, four bytes each
  bool lines;                        // a stretch is a line of the window, not a tap
  int stretch, padded;               // bytes
  int width;                         // bytes that are aligned together, and of one pixel: 16, 4 or 1
  int height, line_bytes, channels;  // of x
  int down, across;                  // stretches of a window, one below the other and side by side
  int down_step, across_step;        // lines, and bytes, from one to the next
};

/// The kernel's parameter.
template <class Code>
struct Products {
  Problem problem;  // of which the epilogue is not read
  Windows windows;
  bool depthwise;
  bool vectors;        // four neighbouring filters are aligned, in what is read and what is written
  unsigned finishing;  // threads that finish results at once, each with slots for the program
  Code epilogue;
};

Windows windows_of(const Problem& problem);

/// Whether bytes of an image and of a window, and where windows begin, can be numbered with 31 bits.
bool is_narrow(const conv::Geometry& geometry);

/// Whether four neighbouring filters are read and written together.
bool takes_vectors(const Problem& problem);

/// Fill in the parameter; false when the program does not fit.
template <class T, class L, class Code>
bool fill(const Problem& problem, const ew::Planned* epilogue, Products<Code>& products, Launch& launch);
template <class L, class Code>
bool fill_depthwise(const Problem& problem, const ew::Planned* epilogue, Products<Code>& products, Launch& launch);

/// Tries one form of the kernel for depthwise convolutions: nothing when the problem does not fit into it.
template <class L, class Code, class Use>
std::optional<Result<bool>> try_depthwise(const Problem& problem, const ew::Planned* epilogue, const Use& use) {
  Launch launch;
  const auto products = std::make_unique<Products<Code>>();
  if (!fill_depthwise<L>(problem, epilogue, *products, launch)) return std::nullopt;
  return use.template operator()<L>(*products, launch);
}

template <class Use>
Result<bool> with_depthwise(const Problem& problem, const ew::Planned* epilogue, const Use& use) {
  std::optional<Result<bool>> done;
  if (epilogue == nullptr)
    done = try_depthwise<ew::Usual, NoProgram>(problem, epilogue, use);
  else if (takes_vectors(problem) && !ew::is_wide(epilogue))
    done = try_depthwise<ew::Usual, ew::SmallCode>(problem, epilogue, use);
  if (!done) done = try_depthwise<ew::Any, ew::LargeCode>(problem, epilogue, use);
  return done ? *done : Result<bool>::failure("Its epilogue is too large for one launch.");
}

/// Calls `use.template operator()<L>(products, launch)` for depthwise convolutions, else `use.template operator()<T, L>(products,
/// launch)`, with the best form that the problem fits into, for a device of so many multiprocessors.
template <class Use>
Result<bool> with_products(const Problem& problem, int processors, const Use& use) {
  const conv::Geometry& g = problem.geometry;
  if (!is_narrow(g)) return Result<bool>::failure("An image, or a window with its pads, has 2^30 bytes or more.");
  return ew::with_planned(problem.epilogue, {1, problem.result.type == Type::kFloat}, [&](const ew::Planned* epilogue) {
    if (g.is_depthwise()) return with_depthwise(problem, epilogue, use);
    const gemm::cuda::Choice choice{g.pixels() * g.groups, g.filters / g.groups, 1, processors, takes_vectors(problem)};
    return gemm::cuda::with_tensor_form<gemm::cuda::Tall>(choice, epilogue,
                                                          [&]<class T, class L, class Code>() -> std::optional<Result<bool>> {
                                                            Launch launch;
                                                            const auto products = std::make_unique<Products<Code>>();
                                                            if (!fill<T, L>(problem, epilogue, *products, launch))
                                                              return std::nullopt;
                                                            return use.template operator()<T, L>(*products, launch);
                                                          });
  });
}

}  // namespace onnxopt::qconv::cuda
