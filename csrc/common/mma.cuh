// The tensor cores' mma.sync m16n8k16 for half and bfloat16 with float sums, and its host twin.
//
// A warp holds D[16, 8] += A[16, 16] B[16, 8] in registers. With lane = 4 * group + member (PTX ISA, mma.m16n8k16):
//   a[0], a[1]: rows group, group + 8 of A, columns 2 member, 2 member + 1;   a[2], a[3]: the same rows, columns + 8
//   b[0]: rows 2 member, 2 member + 1 of B, column group;                    b[1]: rows + 8
//   d[0], d[1]: row group of D, columns 2 member, 2 member + 1;              d[2], d[3]: row group + 8
#pragma once
#include <type_traits>

#include "common/language.cuh"
#ifdef ATTNKERNELS_EMULATED
#include "emulation/device.h"
#endif

namespace attnkernels {

// Whether mma_m16n8k16 may be called; a constant to nvcc.
__device__ __forceinline__ bool has_mma_m16n8k16() {
#ifdef ATTNKERNELS_EMULATED
  return emulation::device.major >= 8;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return true;
#else
  return false;
#endif
}

// Four matrices [8][8] of 16-bit elements out of shared memory: lane l names row l % 8 of matrix l / 8, 16 aligned
// bytes. to[i] is row `group`, columns 2 member, 2 member + 1 of matrix i, or of its transpose (PTX ISA, ldmatrix).
template <bool kTransposed>
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
#ifdef ATTNKERNELS_EMULATED
  const int lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
  for (int i = 0; i < 4; ++i) {
    uint16_t pair[2];
    for (int k = 0; k < 2; ++k) {
      const int line = kTransposed ? 2 * member + k : group, column = kTransposed ? group : 2 * member + k;
      pair[k] = reinterpret_cast<const uint16_t*>(__shfl_sync(~0u, row, 8 * i + line))[column];
    }
    to[i] = pair[0] | uint32_t(pair[1]) << 16;
  }
#else
  const auto address = uint32_t(__cvta_generic_to_shared(row));
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
#endif
}

template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
#ifdef ATTNKERNELS_EMULATED
  if (!has_mma_m16n8k16()) __trap();  // as below
  const int lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
  float rows[2][16], columns[2][16];  // rows group, group + 8 of A; columns 2 member, 2 member + 1 of B
  const auto unpack = [](float* to, uint32_t pair) {
    struct Two {
      T first, second;
    };
    const Two two = std::bit_cast<Two>(pair);
    to[0] = static_cast<float>(two.first);
    to[1] = static_cast<float>(two.second);
  };
  for (int other = 0; other < 4; ++other) {
    for (int half = 0; half < 2; ++half) {
      const int owner_of_row = 4 * group + other, owner_of_column = 4 * (2 * member + half) + other;
      unpack(rows[half] + 2 * other, __shfl_sync(~0u, a[half], owner_of_row));
      unpack(rows[half] + 2 * other + 8, __shfl_sync(~0u, a[half + 2], owner_of_row));
      unpack(columns[half] + 2 * other, __shfl_sync(~0u, b[0], owner_of_column));
      unpack(columns[half] + 2 * other + 8, __shfl_sync(~0u, b[1], owner_of_column));
    }
  }
  for (int row = 0; row < 2; ++row)
    for (int column = 0; column < 2; ++column)
      for (int k = 0; k < 16; ++k) d[2 * row + column] += rows[row][k] * columns[column][k];
#elif __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, __half>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();  // launchers must not come here below compute capability 8.0
#endif
}

}  // namespace attnkernels
