// The kernel on tensor cores: a block multiplies a tile of rows with columns of each product, and finishes the results in shared
// memory.
#pragma once

#include "kernels/cuda/gemm/tensor.cuh"
#include "kernels/cuda/gemm/tensor_plan.h"

namespace onnxopt::gemm::cuda {
namespace {

/// An element of `W` bytes.
template <int W>
using Number = std::conditional_t<W == 2, std::uint16_t, float>;

/// Neighbouring elements, of which the first `count` are there, as floats.
template <int W, int E>
ONNXOPT_IN_KERNEL Floats<E> read_elements(const void* source, std::int64_t at, int count, bool vectors, bool brain) {
  const auto numbers = read_numbers<Number<W>, E>(source, at, count, vectors);
  Floats<E> floats;
  ONNXOPT_UNROLL for (int k = 0; k < E; ++k) {
    if constexpr (W == 2)
      floats.values[k] = from_two_bytes(numbers.values[k], brain);
    else
      floats.values[k] = numbers.values[k];
  }
  return floats;
}

template <int W, int E>
ONNXOPT_IN_KERNEL void write_elements(void* target, std::int64_t at, const Floats<E>& floats, int count, bool vectors, bool brain) {
  ew::Vector<Number<W>, E> numbers;
  ONNXOPT_UNROLL for (int k = 0; k < E; ++k) {
    if constexpr (W == 2)
      numbers.values[k] = to_two_bytes(floats.values[k], brain);
    else
      numbers.values[k] = floats.values[k];
  }
  write_numbers(target, at, numbers, count, vectors);
}

/// Writes the results of a tile, [rows, kHeldStep] with the products side by side, or what the epilogue makes of them.
template <int W, class T, class L, class Code>
ONNXOPT_CALLED void finish_results(const TensorProducts<Code>& products, const Tile& tile, const float* held) {
  constexpr int E = L::kCount;
  if (threadIdx.x >= products.finishing) return;
  const Problem& p = products.problem;
  const ew::Slots<L> slots{const_cast<float*>(held) + T::kHeldBytes / sizeof *held, threadIdx.x, products.finishing};
  const bool vectors = products.vectors && E > 1, brain = p.precision == Precision::kBrain;
  const int items = products.share / E;
  for (int item = static_cast<int>(threadIdx.x); item < T::kRows * items; item += static_cast<int>(products.finishing)) {
    const int row = item / items, in_tile = item % items * E;
    const std::int64_t column = tile.column + in_tile, left = p.columns - column;
    if (tile.row + row >= p.rows || left <= 0) continue;
    const int count = left < E ? static_cast<int>(left) : E;
    const std::int64_t at = (tile.row + row) * p.columns + column;
    L results[kMostProducts];
    ONNXOPT_UNROLL for (int i = 0; i < static_cast<int>(kMostProducts); ++i) {
      if (i >= products.count) break;
      Floats<E> result = read<E>(held + row * T::kHeldStep + i * products.share + in_tile);
      if (p.products[i].bias) {
        const Floats<E> bias = read_elements<W, E>(p.products[i].bias, column, count, vectors, brain);
        ONNXOPT_UNROLL for (int k = 0; k < E; ++k) result.values[k] += bias.values[k];
      }
      if constexpr (std::is_same_v<Code, NoProgram>) {
        write_elements<W>(p.products[i].c, at, result, count, vectors, brain);
      } else {
        if constexpr (W == 2)
          ONNXOPT_UNROLL for (int k = 0; k < E; ++k) result.values[k] =
              from_two_bytes(to_two_bytes(result.values[k], brain), brain);
        results[i] = lanes_of<L>(result);
      }
    }
    if constexpr (!std::is_same_v<Code, NoProgram>) ew::evaluate(products.epilogue, slots, at, results);
  }
}

template <Element E, class T, class Code>
ONNXOPT_IN_KERNEL void multiply_elements(const TensorProducts<Code>& products, const Tile& tile, void* memory) {
  constexpr int W = kColumnBytes<E>;
  const Problem& p = products.problem;
  Packed packed{{}, p.depth, p.columns, products.count};
  ONNXOPT_UNROLL for (int i = 0; i < static_cast<int>(kMostProducts); ++i) packed.data[i] = p.products[i].weights;
  multiply_tile<E, T>(RowCopies<T>(p.a, p.rows, p.depth * W, tile), WeightCopies<T, W>(packed, tile, products.share), p.depth,
                      memory);
}

template <int W, class T, class L, class Code>
__global__ void __launch_bounds__(kTensorThreads, 2) multiply_tensors(const TensorProducts<Code> __grid_constant__ products) {
  void* const memory = shared_memory();
  const Problem& p = products.problem;
  const std::int64_t tiles = tiles_of<T>(p.rows, p.columns, products.count);
  for (std::int64_t number = blockIdx.x; number < tiles; number += gridDim.x) {
    const Tile tile = tile_of<T>(p.rows, p.columns, products.share, number);
    if constexpr (W == 4)
      multiply_elements<Element::kTf32, T>(products, tile, memory);
    else if (p.precision == Precision::kHalf)
      multiply_elements<Element::kHalf, T>(products, tile, memory);
    else
      multiply_elements<Element::kBrain, T>(products, tile, memory);
    finish_results<W, T, L>(products, tile, static_cast<const float*>(memory));
    __syncthreads();
  }
}

struct TensorFamily {
  using Problem = cuda::Problem;

  template <class Use>
  static Result<bool> for_each(const Use& use) {
    const Result<bool> done =
        for_each_tensor_form([&]<class T, class L, class Code>() { return use(multiply_tensors<2, T, L, Code>); });
    return done ? for_each_tensor_form([&]<class T, class L, class Code>() { return use(multiply_tensors<4, T, L, Code>); }) : done;
  }

  template <class Use>
  static Result<bool> plan(const Problem& problem, int processors, const Use& use) {
    const auto with = [&]<int W, class T, class L, class Code>(const TensorProducts<Code>& products, const Launch& launch) {
      return use(multiply_tensors<W, T, L, Code>, products, launch);
    };
    return with_tensor_products(problem, processors, with);
  }
};

}  // namespace
}  // namespace onnxopt::gemm::cuda
