// From a problem to one launch: which threads share a row, what they keep of it, and the kernel's parameter.
#pragma once

#include <memory>
#include <optional>
#include <type_traits>

#include "kernels/cuda/norm/geometry.h"
#include "kernels/cuda/norm/norm.h"

namespace onnxopt::norm::cuda {

namespace ew = elementwise::cuda;
using onnxopt::cuda::Launch;

/// In place of programs: what rows are the sum of, where there is no `x`.
struct Sum {
  Terms terms;
  ew::Dim dims[Terms::kMostDims];
};

/// The kernel's parameter.
template <class Code>
struct Rows {
  Kind kind;
  bool prologue_present, epilogue_present;
  bool by_element;  // factors and terms change with every element of a row, and rows have the same
  bool narrow;      // the elements of a row can be numbered with 31 bits
  unsigned lanes, warps;
  unsigned slots;  // of the program that has more
  unsigned held;   // items of a thread that shared memory has room for
  float epsilon;
  std::int64_t rows, width, inner;
  std::int64_t period;
  ew::Dim run;
  const float *x, *scale, *bias;
  float *y, *kept;
  std::uint16_t* y_half;
  Code prologue, epilogue;
};

/// Bytes of shared memory: slots, what is kept of rows, and a number for each thread.
template <class L, class Code>
std::size_t shared_bytes(const Rows<Code>& rows, unsigned threads) {
  return threads * (rows.slots * sizeof(L) + rows.held * L::kCount * sizeof(float) + sizeof(float));
}

/// The forms of the kernel: rows that are a sum, and those with programs; each for vectors and for what vectors do not divide, and
/// for columns; and what has large programs.
template <class Use>
Result<bool> for_each_form(const Use& use) {
  Result<bool> done = use.template operator()<ew::Usual, Sum>();
  if (done) done = use.template operator()<ew::Any, Sum>();
  if (done) done = use.template operator()<ew::Usual, ew::SmallCode>();
  if (done) done = use.template operator()<ew::Any, ew::SmallCode>();
  if (done) done = use.template operator()<ew::Any, ew::LargeCode>();
  return done;
}

/// Both programs, null where there is none.
struct Programs {
  const ew::Planned *prologue, *epilogue;
};

/// Fills in the parameter; nothing when a program does not fit.
template <class L, class Code>
bool fill(const Problem& problem, const Programs& programs, Rows<Code>& rows, Launch& launch);

/// Whether threads take four neighbouring elements, of which all are aligned.
bool takes_vectors(const Problem& problem, const Programs& programs);

/// Calls `use` with the programs of a problem; with none where its kernel needs none.
Result<bool> with_programs(const Problem& problem, const std::function<Result<bool>(const Programs&)>& use);

/// Tries one form: nothing when the problem does not fit into it.
template <class L, class Code, class Use>
std::optional<Result<bool>> try_form(const Problem& problem, const Programs& programs, const Use& use) {
  Launch launch;
  const auto rows = std::make_unique<Rows<Code>>();
  if (!fill<L>(problem, programs, *rows, launch)) return std::nullopt;
  return use.template operator()<L>(*rows, launch);
}

/// Calls `use.template operator()<L>(rows, launch)` with the best form that the problem fits into.
template <class Use>
Result<bool> with_rows(const Problem& problem, const Use& use) {
  return with_programs(problem, [&](const Programs& programs) {
    const bool plain = programs.prologue == nullptr && programs.epilogue == nullptr;
    std::optional<Result<bool>> done;
    if (takes_vectors(problem, programs))
      done = plain ? try_form<ew::Usual, Sum>(problem, programs, use) : try_form<ew::Usual, ew::SmallCode>(problem, programs, use);
    if (!done && plain) done = try_form<ew::Any, Sum>(problem, programs, use);
    if (!done) done = try_form<ew::Any, ew::SmallCode>(problem, programs, use);
    if (!done) done = try_form<ew::Any, ew::LargeCode>(problem, programs, use);
    return done ? *done : Result<bool>::failure("Its programs are too large for one launch.");
  });
}

}  // namespace onnxopt::norm::cuda
