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
