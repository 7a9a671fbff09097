// Sums in a fixed order: the same launch gives the same bits.
#pragma once
#include "common/language.cuh"

namespace attnkernels {

// Sum over groups of `lanes` (a power of two, at most 32) neighbouring lanes; every lane of the warp takes part.
template <class A>
__device__ __forceinline__ A sum_lanes(A value, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// Sums over the lanes of a warp whose numbers differ by multiples of kStride, of kCount numbers (powers of two) that
// each lane has: at each step two lanes share what is left of them. values[0 .. spread_count) of a lane are then the
// sums of the numbers from first_spread() on; with fewer numbers than lanes, several lanes have the same one.
template <int kCount, int kStride>
inline constexpr int spread_count = kCount * kStride / 32 > 0 ? kCount * kStride / 32 : 1;

template <int kCount, int kStride, int kOffset = 16, int kHeld = kCount, class A>
__device__ __forceinline__ void sum_spread(A (&values)[kCount]) {  // step by step at compile time: arrays in registers
  if constexpr (kOffset >= kStride) {
    constexpr int kHalf = kHeld / 2;
    if constexpr (kHalf == 0) {
      values[0] += __shfl_xor_sync(0xffffffffu, values[0], kOffset);
    } else {
      const bool upper = threadIdx.x & kOffset;
#pragma unroll
      for (int i = 0; i < kHalf; ++i) {
        const A given = upper ? values[i] : values[i + kHalf], kept = upper ? values[i + kHalf] : values[i];
        values[i] = kept + __shfl_xor_sync(0xffffffffu, given, kOffset);
      }
    }
    sum_spread<kCount, kStride, kOffset / 2, kHalf ? kHalf : 0>(values);
  }
}
template <int kCount, int kStride>
__device__ __forceinline__ int first_spread() {
  const int part = threadIdx.x % 32 / kStride;
  return kCount * kStride >= 32 ? part * spread_count<kCount, kStride> : part / (32 / kStride / kCount);
}
// Whether this lane is the first of those that have the same sums.
template <int kCount, int kStride>
__device__ __forceinline__ bool leads_spread() {
  if constexpr (kCount * kStride >= 32) {
    return true;
  } else {
    return threadIdx.x % 32 / kStride % (32 / kStride / kCount) == 0;
  }
}

// The least power of two that is at least `count`, and at most 32.
__host__ __device__ inline int lanes_for(int64_t count) {
  int lanes = 1;
  while (lanes < 32 && lanes < count) lanes *= 2;
  return lanes;
}

// emit(j, sum_i cells[i][j]) for cells [rows, columns] in shared memory, rows * columns cells, which are overwritten.
// Called by the whole block, which has written the cells; ends with a barrier.
template <class A, class Emit>
__device__ void sum_rows(A* cells, int rows, int columns, Emit emit) {
  __syncthreads();
  // Two steps where there are more threads than columns: each column by `parts` threads, then the parts.
  const int parts = columns >= int(blockDim.x) ? 1 : min(rows, int(blockDim.x) / columns);
  const int part = threadIdx.x / columns;
  if (parts > 1) {
    const int column = threadIdx.x % columns;
    if (part < parts) {
      A sum = 0;
      for (int row = part; row < rows; row += parts) sum += cells[row * columns + column];
      cells[part * columns + column] = sum;  // row `part` is read by this thread alone
    }
    __syncthreads();
  }
  for (int column = threadIdx.x; column < columns; column += blockDim.x) {
    A sum = 0;
    for (int row = 0; row < (parts > 1 ? parts : rows); ++row) sum += cells[row * columns + column];
    emit(column, sum);
  }
  __syncthreads();
}

}  // namespace attnkernels
