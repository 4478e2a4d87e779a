// What ops that work on rows share: a prologue makes the tensor, its rows are normalized, an epilogue runs on the result.
#pragma once

#include "csrc/ops/op.h"
#include "csrc/ops/prologue.h"
#include "kernels/cpu/norm/norm.h"

namespace onnxopt::ops {

/// What a node says of its rows. Inputs: the prologue's, scale and bias where there are any, the epilogue's further ones.
/// Outputs: the epilogue's, and the prologue's result where it is kept.
struct RowsLayout {
  norm::Kind kind = norm::Kind::kLayer;
  float epsilon = 0.0f;
  std::int64_t axis = -1;      // the first one of a row, from the last
  std::int64_t inner = 0;      // how many axes after the row's
  std::int64_t groups = 0;     // where it is not 0, a row is a group of channels, which are the second axis,
  bool channels_last = false;  // or the last one
  bool scaled = false, biased = false, kept = false;

  std::size_t affine() const { return static_cast<std::size_t>(scaled) + static_cast<std::size_t>(biased); }
};

Result<std::unique_ptr<Kernel>> make_rows_kernel(const Attributes& attributes, const RowsLayout& layout, std::string_view variant);

std::vector<std::optional<InferredType>> infer_rows(const Attributes& attributes, const RowsLayout& layout,
                                                    std::span<const InferredType> inputs);

std::span<const Variant> rows_variants();

/// The two functions of an op whose attributes `Read` makes a layout of.
template <Result<RowsLayout> (*Read)(const Attributes&)>
Result<std::unique_ptr<Kernel>> create_rows(const Attributes& attributes, std::string_view variant) {
  const Result<RowsLayout> layout = Read(attributes);
  return layout ? make_rows_kernel(attributes, *layout, variant) : Result<std::unique_ptr<Kernel>>::failure(layout.error());
}

template <Result<RowsLayout> (*Read)(const Attributes&)>
std::vector<std::optional<InferredType>> infer_rows(const Attributes& attributes, std::span<const InferredType> inputs) {
  const Result<RowsLayout> layout = Read(attributes);
  return layout ? infer_rows(attributes, *layout, inputs) : std::vector<std::optional<InferredType>>{};
}

}  // namespace onnxopt::ops
