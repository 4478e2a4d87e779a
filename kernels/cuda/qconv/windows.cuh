// The kernels: a block multiplies windows, read where they lie, with filters on tensor cores; a depthwise convolution sums the
// products of a few channels in each thread.
#pragma once

#include "kernels/cuda/gemm/tensor.cuh"
#include "kernels/cuda/qconv/finish.cuh"

namespace onnxopt::qconv::cuda {
namespace {

using gemm::cuda::kChunksOfRow;
using gemm::cuda::Stage;
using gemm::cuda::Tile;

/// The first pixel of a window, which may lie outside of its image.
struct Corner {
  std::int64_t image;
  int y, x;
};

/// A line that all windows leave out.
constexpr int kNowhere = -(1 << 30);

ONNXOPT_IN_KERNEL Corner corner_of(const conv::Geometry& g, std::int64_t pixel) {
  const std::int64_t line = pixel / g.output[1], ox = pixel - line * g.output[1];
  const std::int64_t image = line / g.output[0], oy = line - image * g.output[0];
  return {image, static_cast<int>(oy * g.strides[0] - g.pads[0]), static_cast<int>(ox * g.strides[1] - g.pads[1])};
}

/// A word of four equal bytes.
ONNXOPT_IN_KERNEL std::uint32_t four_times(std::int32_t byte) { return (static_cast<std::uint32_t>(byte) & 0xffu) * 0x01010101u; }

/// A thread's part of windows: bytes of x, and its zero point where a window is outside.
template <class T>
struct WindowCopies {
  static constexpr int kCount = T::kRows * kChunksOfRow / kThreads, kRowStep = kThreads / kChunksOfRow;
  const Windows& windows;
  std::int32_t zero;
  const std::byte* images[kCount];   // of the group
  int lines[kCount], bytes[kCount];  // where windows begin: lines, and bytes of a line

  ONNXOPT_IN_KERNEL WindowCopies(const Problem& p, const Windows& windows, std::int64_t group, const Tile& tile)
      : windows(windows), zero(zero_of(p.x)) {
    const conv::Geometry& g = p.geometry;
    ONNXOPT_UNROLL for (int i = 0; i < kCount; ++i) {
      const std::int64_t row = tile.row + static_cast<int>(threadIdx.x) / kChunksOfRow + i * kRowStep;
      const bool inside = row < windows.pixels;
      const Corner corner = corner_of(g, inside ? row : 0);
      images[i] = static_cast<const std::byte*>(p.x.data) + corner.image * g.input[0] * windows.line_bytes +
                  group * (g.channels / g.groups);
      lines[i] = inside ? corner.y : kNowhere;
      bytes[i] = corner.x * windows.channels;
    }
  }

  /// Byte `at` of a stretch of a window; null where it is outside. A line of the window is a stretch of its line of x; a tap is one
  /// of its pixel.
  ONNXOPT_IN_KERNEL const std::byte* place_of(int i, int stretch, int at) const {
    const int down = stretch / windows.across, across = stretch - down * windows.across;
    const int line = lines[i] + down * windows.down_step, pixel = bytes[i] + across * windows.across_step;
    const int in_line = windows.lines ? pixel + at : pixel;
    const bool there = line >= 0 && line < windows.height && in_line >= 0 && in_line < windows.line_bytes && down < windows.down &&
                       at < windows.stretch;
    return there ? images[i] + line * windows.line_bytes + pixel + at : nullptr;
  }

  template <int Bytes>
  ONNXOPT_IN_KERNEL void copy_bytes(int i, int k, std::byte* target) const {
    const int stretch = k / windows.padded;
    const std::byte* const place = place_of(i, stretch, k - stretch * windows.padded);
    if constexpr (Bytes == 1) {
      *target = place ? *place : static_cast<std::byte>(zero);
    } else {
      if (place) return copy_async<Bytes>(target, place, Bytes);
      ONNXOPT_UNROLL for (int word = 0; word < Bytes; word += 4) * reinterpret_cast<std::uint32_t*>(target + word) =
          four_times(zero);
    }
  }

  template <int W>
  ONNXOPT_IN_KERNEL void copy(int step, Stage<T, W>& stage) const {
    const int k = step * gemm::cuda::kStepBytes + static_cast<int>(threadIdx.x) % kChunksOfRow * kChunk;
    std::byte* const target = stage.a + threadIdx.x / kChunksOfRow * Stage<T, W>::kRowBytes + threadIdx.x % kChunksOfRow * kChunk;
    ONNXOPT_UNROLL for (int i = 0; i < kCount; ++i) {
      std::byte* const own = target + i * kRowStep * Stage<T, W>::kRowBytes;
      if (windows.width == 16) {
        copy_bytes<16>(i, k, own);
      } else if (windows.width == 4) {
        ONNXOPT_ROLLED for (int word = 0; word < kChunk; word += 4) copy_bytes<4>(i, k + word, own + word);
      } else {
        ONNXOPT_ROLLED for (int byte = 0; byte < kChunk; ++byte) copy_bytes<1>(i, k + byte, own + byte);
      }
    }
  }
};

/// Finishes the sums of a tile, [rows, kHeldStep].
template <class T, class L, class Code>
ONNXOPT_CALLED void finish_tile(const Products<Code>& products, std::int64_t group, const Tile& tile, const std::int32_t* held) {
  constexpr int E = L::kCount, kItems = T::kColumns / E;
  if (threadIdx.x >= products.finishing) return;
  const conv::Geometry& g = products.problem.geometry;
  const std::int64_t filters = g.filters / g.groups;
  const Finisher finisher(products.problem, !std::is_same_v<Code, NoProgram>);
  const ew::Slots<L> slots{const_cast<std::int32_t*>(held) + T::kHeldBytes / sizeof *held, threadIdx.x, products.finishing};
  for (int item = static_cast<int>(threadIdx.x); item < T::kRows * kItems; item += static_cast<int>(products.finishing)) {
    const int row = item / kItems, in_tile = item % kItems * E;
    const std::int64_t column = tile.column + in_tile, left = filters - column;
    if (tile.row + row >= products.windows.pixels || left <= 0) continue;
    const std::int64_t filter = group * filters + column;
    ew::Vector<std::int32_t, E> sums;
    sums.read(held + row * T::kHeldStep + in_tile);
    finish(products, finisher, slots, sums, (tile.row + row) * g.filters + filter, filter, left < E ? static_cast<int>(left) : E);
  }
}

template <class T, class L, class Code>
__global__ void __launch_bounds__(kThreads, 2) convolve_bytes(const Products<Code> __grid_constant__ products) {
  void* const memory = shared_memory();
  const Problem& p = products.problem;
  const std::int64_t filters = p.geometry.filters / p.geometry.groups, packed_rows = products.windows.packed_rows;
  const std::int64_t of_group = gemm::cuda::tiles_of<T>(products.windows.pixels, filters, 1), tiles = of_group * p.geometry.groups;
  const std::int64_t group_bytes = (filters + 15) / 16 * packed_rows * 16 * 4;
  for (std::int64_t number = blockIdx.x; number < tiles; number += gridDim.x) {
    const std::int64_t group = number / of_group;
    const Tile tile = gemm::cuda::tile_of<T>(products.windows.pixels, filters, T::kColumns, number - group * of_group);
    const gemm::cuda::WeightCopies<T, 4> weights({{p.weights + group * group_bytes}, packed_rows, filters, 1}, tile, T::kColumns);
    const WindowCopies<T> windows(p, products.windows, group, tile);
    if (p.x.type == Type::kUint8)
      gemm::cuda::multiply_tile<Element::kUint8, T>(windows, weights, packed_rows, memory);
    else
      gemm::cuda::multiply_tile<Element::kInt8, T>(windows, weights, packed_rows, memory);
    finish_tile<T, L>(products, group, tile, static_cast<const std::int32_t*>(memory));
    __syncthreads();
  }
}

/// The products of a window with the filters of neighbouring channels, summed.
template <int E>
ONNXOPT_IN_KERNEL ew::Vector<std::int32_t, E> sum_window(const Problem& p, const Corner& corner, std::int64_t channel, int count,
                                                         std::int32_t zero, bool vectors) {
  const conv::Geometry& g = p.geometry;
  const std::int64_t quads = (g.kernel[0] + 3) / 4;
  ew::Vector<std::int32_t, E> sums;
  ONNXOPT_UNROLL for (int k = 0; k < E; ++k) sums.values[k] = 0;
  for (std::int64_t ky = 0; ky < g.kernel[0]; ++ky) {
    const std::int64_t y = corner.y + ky * g.dilations[0];
    for (std::int64_t kx = 0; kx < g.kernel[1]; ++kx) {
      const std::int64_t x = corner.x + kx * g.dilations[1];
      const bool there = y >= 0 && y < g.input[0] && x >= 0 && x < g.input[1];
      const std::int64_t at = ((corner.image * g.input[0] + y) * g.input[1] + x) * g.channels + channel;
      const std::int8_t* const weights = p.weights + ((kx * quads + ky / 4) * g.channels + channel) * 4 + ky % 4;
      ew::Vector<std::uint8_t, E> bytes;
      ONNXOPT_UNROLL for (int k = 0; k < E; ++k) bytes.values[k] = static_cast<std::uint8_t>(zero);
      if (there) bytes = read_numbers<std::uint8_t, E>(p.x.data, at, count, vectors);
      ONNXOPT_UNROLL for (int k = 0; k < E; ++k) {
        const std::int32_t number = p.x.type == Type::kInt8 ? static_cast<std::int32_t>(static_cast<std::int8_t>(bytes.values[k]))
                                                            : static_cast<std::int32_t>(bytes.values[k]);
        if (k < count) sums.values[k] += number * static_cast<std::int32_t>(weights[k * 4]);
      }
    }
  }
  return sums;
}

template <class L, class Code>
__global__ void __launch_bounds__(kThreads, 2) convolve_channels(const Products<Code> __grid_constant__ products) {
  constexpr int E = L::kCount;
  const Problem& p = products.problem;
  const Finisher finisher(p, !std::is_same_v<Code, NoProgram>);
  const ew::Slots<L> slots{shared_memory(), threadIdx.x, products.finishing};
  const std::int64_t of_pixel = (p.geometry.filters + E - 1) / E, items = products.windows.pixels * of_pixel;
  const bool vectors = E > 1 && products.windows.width >= E && products.vectors;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; item < items; item += stride) {
    const std::int64_t pixel = item / of_pixel, channel = (item - pixel * of_pixel) * E, left = p.geometry.filters - channel;
    const int count = left < E ? static_cast<int>(left) : E;
    const auto sums = sum_window<E>(p, corner_of(p.geometry, pixel), channel, count, finisher.zero, vectors);
    finish(products, finisher, slots, sums, pixel * p.geometry.filters + channel, channel, count);
  }
}

/// Plans call it with tiles for products, and without for depthwise convolutions.
template <class Use>
struct Kernel {
  const Use& use;

  template <class T, class L, class Code>
  Result<bool> operator()(const Products<Code>& products, const Launch& launch) const {
    return use(convolve_bytes<T, L, Code>, products, launch);
  }

  template <class L, class Code>
  Result<bool> operator()(const Products<Code>& products, const Launch& launch) const {
    return use(convolve_channels<L, Code>, products, launch);
  }
};

struct Family {
  using Problem = cuda::Problem;

  template <class Use>
  static Result<bool> for_each(const Use& use) {
    Result<bool> done = gemm::cuda::for_each_tensor_form<gemm::cuda::Tall>(
        [&]<class T, class L, class Code>() { return use(convolve_bytes<T, L, Code>); });
    if (done) done = use(convolve_channels<ew::Usual, NoProgram>);
    if (done) done = use(convolve_channels<ew::Usual, ew::SmallCode>);
    return done ? use(convolve_channels<ew::Any, ew::LargeCode>) : done;
  }

  template <class Use>
  static Result<bool> plan(const Problem& problem, int processors, const Use& use) {
    return with_products(problem, processors, Kernel<Use>{use});
  }
};

}  // namespace
}  // namespace onnxopt::qconv::cuda
