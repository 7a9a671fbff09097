// The smallest use of common/mma.cuh: one warp and one tile.
#pragma once
#include "common/mma.cuh"

// d[i, j] = sum_k a[i, k] b[j, k]      a [16, depth], b [8, depth], d [16, 8]; depth % 16 == 0; one warp
template <class T>
__global__ void __launch_bounds__(32) mma_matmul(const T* a, const T* b, float* d, int depth) {
  const int lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
  const auto pair = [](const T* from) { return *reinterpret_cast<const uint32_t*>(from); };
  float sums[4] = {};
  for (int k = 2 * member; k < depth; k += 16) {
    const T* const upper = a + group * depth + k;
    const T* const lower = upper + 8 * depth;
    const T* const column = b + group * depth + k;
    const uint32_t a_pairs[4] = {pair(upper), pair(lower), pair(upper + 8), pair(lower + 8)};
    const uint32_t b_pairs[2] = {pair(column), pair(column + 8)};
    attnkernels::mma_m16n8k16<T>(sums, a_pairs, b_pairs);
  }
  d[group * 8 + 2 * member] = sums[0];
  d[group * 8 + 2 * member + 1] = sums[1];
  d[(group + 8) * 8 + 2 * member] = sums[2];
  d[(group + 8) * 8 + 2 * member + 1] = sums[3];
}
