// Small kernels that use every kind of order and memory the emulation models, each with a bug that can be planted.
#pragma once
#include "common/language.cuh"

namespace planted {

enum class Bug {
  kNone,
  kNoBlockBarrier,
  kNoBarrierBeforeReuse,
  kNoWarpBarrier,
  kGlobalOutOfBounds,
  kSharedOutOfBounds,
  kMisalignedVector,
  kPlainAccumulate,
  kNoGridBarrier,
  kNoClusterBarrier,
  kNoFinalClusterBarrier,
  kNoReleaseFence,
  kNoAcquireFence,
  kReadBeforeWait,
  kWriteBeforeWait,
  kReturnBeforeWait,
};

template <class T, int kVector>
struct alignas(sizeof(T) * kVector) Pack {
  T values[kVector];
};

// sum over the block, for every thread
template <Bug bug>
__device__ float block_sum(float value) {
  SHARED(float, partial, [32]);
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = (blockDim.x + 31) / 32;
  __syncthreads();  // `partial` may still be read by an earlier call
  if (lane == 0) partial[warp] = value;
  if constexpr (bug != Bug::kNoBlockBarrier) __syncthreads();
  value = lane < warps ? partial[lane] : 0.f;
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

// y[r, p] = x[r, p] * sigmoid(mean_p x[r, p])      one block per row, the row in shared memory; pixels % kVector == 0
template <class T, int kVector, Bug bug>
__global__ void __launch_bounds__(256) gate_rows(const T* __restrict__ x, T* __restrict__ y, int pixels) {
  SHARED_DYNAMIC(float, row);
  const int64_t first = int64_t(blockIdx.x) * pixels;
  const auto* from = reinterpret_cast<const Pack<T, kVector>*>(x + first);
  auto* to = reinterpret_cast<Pack<T, kVector>*>(y + first);
  constexpr int kShift = bug == Bug::kSharedOutOfBounds;
  const int packs = pixels / kVector;
  float sum = 0.f;
  for (int i = threadIdx.x; i < packs + (bug == Bug::kGlobalOutOfBounds); i += blockDim.x) {
    const Pack<T, kVector> pack = from[i];
    for (int k = 0; k < kVector; ++k) {
      const float value = static_cast<float>(pack.values[k]);
      sum += value;
      if (i < packs) row[i * kVector + k + kShift] = value;
    }
  }
  const float gate = 1.f / (1.f + __expf(-block_sum<bug>(sum) / pixels));
  for (int i = threadIdx.x; i < packs; i += blockDim.x) {
    Pack<T, kVector> pack;
    for (int k = 0; k < kVector; ++k) pack.values[k] = static_cast<T>(row[i * kVector + k] * gate);
    to[i] = pack;
  }
}

// y[r, i] = x[r, i] - x[r, last of the block]      each block goes through all rows with one array
template <Bug bug>
__global__ void subtract_last(const float* x, float* y, int rows) {
  SHARED(float, values, [64]);
  const int first = blockIdx.x * blockDim.x, columns = gridDim.x * blockDim.x;
  for (int row = 0; row < rows; ++row) {
    const int i = row * columns + first + threadIdx.x;
    values[threadIdx.x] = x[i];
    if constexpr (bug != Bug::kNoBlockBarrier) __syncthreads();
    y[i] = values[threadIdx.x] - values[blockDim.x - 1];
    if constexpr (bug != Bug::kNoBarrierBeforeReuse) __syncthreads();
  }
}

// y[i] = x[i] reversed in each warp, twice
template <Bug bug>
__global__ void reverse_warps(const float* x, float* y) {
  SHARED(float, values, [64]);
  const int i = blockIdx.x * blockDim.x + threadIdx.x, mirrored = threadIdx.x ^ 31;
  float value = x[i];
  for (int round = 0; round < 2; ++round) {
    values[threadIdx.x] = value;
    __syncwarp();
    value = values[mirrored];
    if constexpr (bug != Bug::kNoWarpBarrier) __syncwarp();
  }
  y[i] = value;
}

// y[i] = x[i] - mean(x)      one cooperative launch, *total starts at 0
template <Bug bug>
__global__ void subtract_mean(const float* x, float* y, float* total, int count) {
  const int first = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
  float sum = 0.f;
  for (int i = first; i < count; i += step) sum += x[i];
  sum = block_sum<Bug::kNone>(sum);
  if (threadIdx.x == 0) {
    if constexpr (bug == Bug::kPlainAccumulate)
      *total += sum;
    else
      atomicAdd(total, sum);
  }
  if constexpr (bug != Bug::kNoGridBarrier) cooperative_groups::this_grid().sync();
  const float mean = *total / count;
  for (int i = first; i < count; i += step) y[i] = x[i] - mean;
}

// mean[r] = mean_p x[r, p]      one cluster per row, partial sums through distributed shared memory
template <Bug bug>
__global__ void cluster_mean(const float* x, float* mean, int pixels) {
#if defined(ATTNKERNELS_EMULATED) || __CUDA_ARCH__ >= 900
  SHARED(float, partial, [1]);
  const auto cluster = cooperative_groups::this_cluster();
  const unsigned rank = cluster.block_rank(), blocks = cluster.num_blocks(), row = blockIdx.x / blocks;
  float sum = 0.f;
  for (int p = rank * blockDim.x + threadIdx.x; p < pixels; p += blocks * blockDim.x)
    sum += x[int64_t(row) * pixels + p];
  sum = block_sum<Bug::kNone>(sum);
  if (threadIdx.x == 0) partial[0] = sum;
  if constexpr (bug != Bug::kNoClusterBarrier) cluster.sync();
  if (rank == 0 && threadIdx.x == 0) {
    float total = 0.f;
    for (unsigned other = 0; other < blocks; ++other) total += *cluster.map_shared_rank(partial, other);
    mean[row] = total / pixels;
  }
  if constexpr (bug != Bug::kNoFinalClusterBarrier) cluster.sync();  // `partial` lives until block 0 has read it
#endif
}

// total = sum(x)      partial sums in global memory, added in order by the last block; *count starts and ends at 0
template <Bug bug>
__global__ void last_block_sum(const float* x, float* partial, unsigned* count, float* total, int size) {
  SHARED(bool, last, [1]);
  float sum = 0.f;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += gridDim.x * blockDim.x) sum += x[i];
  sum = block_sum<Bug::kNone>(sum);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;
    if constexpr (bug != Bug::kNoReleaseFence) __threadfence();
    last[0] = atomicAdd(count, 1u) == gridDim.x - 1;
    if constexpr (bug != Bug::kNoAcquireFence) __threadfence();
  }
  __syncthreads();
  if (last[0] && threadIdx.x == 0) {
    float all = 0.f;
    for (unsigned block = 0; block < gridDim.x; ++block) all += partial[block];
    *total = all;
    *count = 0;
  }
}

// y[i] = a[size - 1 - i] + early[i] + late[i]      a dependent launch: only `early` may be read before the wait
template <Bug bug>
__global__ void add_reversed(const float* a, const float* early, const float* late, float* y, int size) {
  SHARED(float, staged, [64]);
  const int i = blockIdx.x * blockDim.x + threadIdx.x, other = blockDim.x - 1 - threadIdx.x;
  const int j = blockIdx.x * blockDim.x + other;
  if (bug == Bug::kReturnBeforeWait && i >= size) return;
  if (j < size) staged[other] = early[j];
  float reversed = bug == Bug::kReadBeforeWait && i < size ? a[size - 1 - i] : 0.f;
  if (bug == Bug::kWriteBeforeWait && i < size) y[i] = 0.f;
  attnkernels::wait_for_primary_grid();
  attnkernels::launch_dependent_grids();
  __syncthreads();
  if (i >= size) return;
  if constexpr (bug != Bug::kReadBeforeWait) reversed = a[size - 1 - i];
  y[i] = reversed + staged[threadIdx.x] + late[i];
}

// A barrier that the threads from `stop` on reach at another place, or never.
inline __global__ void divergent_barrier(unsigned stop, bool elsewhere) {
  if (threadIdx.x < stop)
    __syncthreads();
  else if (elsewhere)
    __syncthreads();
  else
    __shfl_sync(~0u, 1, 0);
}

}  // namespace planted
