// Matrix instructions of a warp, and what brings operands to them. PTX, and on the host what `simt/mma.h` spells out.
//
// One instruction multiplies a tile of 16 rows of 32 bytes by one of 8 columns of 32 bytes, whatever the bytes hold. Lane l has
// words l % 4 and l % 4 + 4 of rows l / 4 and l / 4 + 8 and of column l / 4, and the results of both rows in columns 2 (l % 4) and
// 2 (l % 4) + 1. (PTX ISA, "Matrix Fragments for mma.m16n8k16" and its neighbours.)
#pragma once

#include "kernels/cuda/device.h"

#if !defined(__CUDACC__)
#include "kernels/cuda/simt/mma.h"
#endif

namespace onnxopt {
namespace {

/// What the rows of A hold. Columns of B hold the same, but for bytes, which are int8 there.
enum class Element : std::uint8_t { kUint8, kInt8, kHalf, kBrain, kTf32 };

constexpr bool is_byte(Element element) { return element == Element::kUint8 || element == Element::kInt8; }

template <Element E>
using SumOf = std::conditional_t<is_byte(E), std::int32_t, float>;

/// Rows l / 4, l / 4 + 8, and the same rows 16 bytes further on.
struct FragmentA {
  std::uint32_t words[4];
};
/// Column l / 4, and 16 bytes further on.
struct FragmentB {
  std::uint32_t words[2];
};
/// Two neighbours of row l / 4, and of row l / 4 + 8.
template <class T>
struct Fragment {
  T values[4];
};

#if defined(__CUDACC__)
#define ONNXOPT_MMA(instruction, constraint)                                                                        \
  asm volatile("mma.sync.aligned." instruction " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"             \
               : constraint(c.values[0]), constraint(c.values[1]), constraint(c.values[2]), constraint(c.values[3]) \
               : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]), "r"(b.words[1]))

/// c += a b. Sums of integers wrap; floats are rounded as the device does.
template <Element E>
__device__ __forceinline__ void multiply_add(Fragment<SumOf<E>>& c, const FragmentA& a, const FragmentB& b) {
  if constexpr (E == Element::kUint8)
    ONNXOPT_MMA("m16n8k32.row.col.s32.u8.s8.s32", "+r");
  else if constexpr (E == Element::kInt8)
    ONNXOPT_MMA("m16n8k32.row.col.s32.s8.s8.s32", "+r");
  else if constexpr (E == Element::kHalf)
    ONNXOPT_MMA("m16n8k16.row.col.f32.f16.f16.f32", "+f");
  else if constexpr (E == Element::kBrain)
    ONNXOPT_MMA("m16n8k16.row.col.f32.bf16.bf16.f32", "+f");
  else
    ONNXOPT_MMA("m16n8k8.row.col.f32.tf32.tf32.f32", "+f");
}
#undef ONNXOPT_MMA

__device__ __forceinline__ std::uint32_t shared_address(const void* place) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(place));
}

/// Word l % 4 of row l / 4 of each of four matrices of 8 rows of 16 bytes in shared memory; lane l gives row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(const void* row, std::uint32_t (&words)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}

/// The same of matrices of elements of two bytes, transposed: rows 2 (l % 4) and the next, of column l / 4.
__device__ __forceinline__ void load_transposed(const void* row, std::uint32_t (&words)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}

/// Begins to copy 16 or 4 bytes into shared memory, of which the first `present` are there; the others become 0. Both places are
/// aligned as that many bytes.
template <int Bytes>
__device__ __forceinline__ void copy_async(void* target, const void* source, unsigned present) {
  if constexpr (Bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(target)), "l"(source), "r"(present)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(target)), "l"(source), "r"(present)
                 : "memory");
}

/// Copies that began since the last commit are a group.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits for the thread's groups but the last `Left` ones.
template <int Left>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}
#else
template <Element E>
double number_of(std::uint32_t word, unsigned index) {
  if constexpr (E == Element::kUint8) return static_cast<std::uint8_t>(word >> 8 * index);
  if constexpr (E == Element::kInt8) return static_cast<std::int8_t>(word >> 8 * index);
  if constexpr (E == Element::kHalf) return elementwise::cuda::from_half(static_cast<std::uint16_t>(word >> 16 * index));
  if constexpr (E == Element::kBrain) return elementwise::cuda::bits<float>(word >> 16 * index << 16);
  return elementwise::cuda::bits<float>(word & 0xffffe000u);
}

template <Element E>
void multiply_add(Fragment<SumOf<E>>& c, const FragmentA& a, const FragmentB& b,
                  const simt::Where& where = simt::Where::current()) {
  constexpr unsigned count = is_byte(E) ? 4 : E == Element::kTf32 ? 1 : 2;
  const simt::Operands own{{a.words[0], a.words[1], a.words[2], a.words[3]}, {b.words[0], b.words[1]}};
  if constexpr (is_byte(E)) {
    std::uint32_t sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = static_cast<std::uint32_t>(c.values[i]);
    const auto first = [](std::uint32_t word, unsigned i) {
      return static_cast<std::uint32_t>(static_cast<std::int32_t>(number_of<E>(word, i)));
    };
    const auto second = [](std::uint32_t word, unsigned i) {
      return static_cast<std::uint32_t>(static_cast<std::int32_t>(number_of<Element::kInt8>(word, i)));
    };
    simt::add_products(sums, own, count, first, second, where);
    for (int i = 0; i < 4; ++i) c.values[i] = static_cast<std::int32_t>(sums[i]);
  } else {
    double sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = static_cast<double>(c.values[i]);
    simt::add_products(sums, own, count, number_of<E>, number_of<E>, where);
    for (int i = 0; i < 4; ++i) c.values[i] = static_cast<float>(sums[i]);
  }
}

inline void load_matrices(const void* row, std::uint32_t (&words)[4], const simt::Where& where = simt::Where::current()) {
  simt::load_matrices(row, false, words, where);
}

inline void load_transposed(const void* row, std::uint32_t (&words)[4], const simt::Where& where = simt::Where::current()) {
  simt::load_matrices(row, true, words, where);
}

template <int Bytes>
void copy_async(void* target, const void* source, unsigned present, const simt::Where& where = simt::Where::current()) {
  static_assert(Bytes == 16 || Bytes == 4);
  simt::begin_copy(target, source, Bytes, present, where);
}

inline void commit_copies() { simt::commit_copies(); }

template <int Left>
void wait_for_copies() {
  simt::finish_copies(Left);
}
#endif

/// A float as the nearest number that a tf32 instruction reads whole, ties away from zero.
ONNXOPT_IN_KERNEL std::uint32_t to_tf32(std::uint32_t word) {
#if defined(__CUDA_ARCH__)
  std::uint32_t result;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(__uint_as_float(word)));
  return result;
#else
  const bool finite = (word & 0x7f800000u) != 0x7f800000u;
  return finite ? (word + 0x1000u) & 0xffffe000u : word;
#endif
}

using elementwise::cuda::from_two_bytes;
using elementwise::cuda::to_two_bytes;

/// How bytes can be copied: 16 or 4 at once, or one by one.
ONNXOPT_IN_KERNEL int width_of(const void* data, std::int64_t row_bytes) {
  const auto bits = reinterpret_cast<std::uintptr_t>(data) | static_cast<std::uintptr_t>(row_bytes);
  return bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : 1;
}

constexpr int kChunk = 16;

/// Copies 16 bytes, of which the first `present` are there (fewer than none are none); the others become 0.
ONNXOPT_IN_KERNEL void copy_chunk(std::byte* target, const std::byte* source, std::int64_t present, int width) {
  const unsigned there = present < 0 ? 0 : present < kChunk ? static_cast<unsigned>(present) : kChunk;
  if (width == 16) return copy_async<16>(target, source, there);
  if (width == 4) {
    ONNXOPT_UNROLL for (unsigned i = 0; i < kChunk; i += 4) {
      const unsigned of_word = there < i ? 0 : there - i;
      copy_async<4>(target + i, source + i, of_word < 4 ? of_word : 4);
    }
    return;
  }
  ONNXOPT_ROLLED for (unsigned i = 0; i < kChunk; ++i) target[i] = i < there ? source[i] : std::byte{0};
}

}  // namespace
}  // namespace onnxopt
