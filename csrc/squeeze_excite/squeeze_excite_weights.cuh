// The gradients of the weights: sums over samples of outer products, in the samples' order.
#pragma once
#include "squeeze_excite/squeeze_excite_layers.cuh"
#include "squeeze_excite/squeeze_excite_plan.h"

namespace attnkernels::squeeze_excite {

// weight[i, j] = sum_n rows[n, i] f(columns[n, j]) and bias[i] = sum_n rows[n, i], f an activation or nothing
template <class T>
struct OuterSum {
  using acc_t = acc_type<T>;
  const acc_t* rows;
  int64_t row_pitch, row_count;
  const acc_t* columns;
  int64_t column_pitch, column_count;
  T *weight, *bias;  // or null
};

// d expand_weight = sum_n dv activation(u)^T (dv s^T in the single-layer excitation), d reduce_weight = sum_n du s^T,
// and the biases. A block takes a tile of one of them: all of its numbers of some samples into shared memory at once,
// then the products of each thread's few rows and columns.
template <class T>
struct WeightGrads {
  using acc_t = acc_type<T>;
  static constexpr int kTileRows = 64, kTileColumns = 128, kTileSamples = 16;
  static constexpr int kRows = 4, kColumns = 8;  // of a thread
  static_assert(kTileRows / kRows * kTileColumns / kColumns == kThreads);

  OuterSum<T> sums[2];  // expand, reduce; no rows: not there
  int64_t samples;
  Activation activation;
  bool activated_columns;  // the columns of `expand` are pre-activations
  unsigned grid_rows = 0;  // of the second pass's grid, which compute them

  static constexpr size_t shared_bytes() { return kTileSamples * (kTileRows + kTileColumns) * sizeof(acc_t); }
  __host__ __device__ static int64_t column_tiles(const OuterSum<T>& sum) {
    if (!sum.weight) return sum.bias ? 1 : 0;  // the first tile of columns also has the bias
    return sum.column_count > kTileColumns ? (sum.column_count + kTileColumns - 1) / kTileColumns : 1;
  }
  __host__ __device__ static int64_t tiles(const OuterSum<T>& sum) {
    return (sum.row_count + kTileRows - 1) / kTileRows * column_tiles(sum);
  }
  __host__ __device__ int64_t blocks() const { return tiles(sums[0]) + tiles(sums[1]); }

  __device__ __forceinline__ void compute(int64_t block, acc_t* shared) const {
    if (block >= blocks()) return;
    const bool of_reduce = block >= tiles(sums[0]);
    const OuterSum<T>& sum = sums[of_reduce];
    if (of_reduce) block -= tiles(sums[0]);
    const int64_t i0 = block / column_tiles(sum) * kTileRows, j0 = block % column_tiles(sum) * kTileColumns;
    const int row_count = int(min(sum.row_count - i0, int64_t(kTileRows)));
    const int column_count = sum.weight ? int(min(sum.column_count - j0, int64_t(kTileColumns))) : 0;
    const bool activated = !of_reduce && activated_columns;
    acc_t* const rows = shared;                              // [kTileSamples, kTileRows]
    acc_t* const columns = rows + kTileSamples * kTileRows;  // [kTileSamples, kTileColumns]
    const int i = threadIdx.x / (kTileColumns / kColumns) * kRows,
              j = threadIdx.x % (kTileColumns / kColumns) * kColumns;
    const bool has_bias = sum.bias && j0 == 0 && int(threadIdx.x) < row_count;
    acc_t products[kRows][kColumns] = {}, bias = 0;
    for (int64_t n0 = 0; n0 < samples; n0 += kTileSamples) {
      const int count = int(min(samples - n0, int64_t(kTileSamples)));
      const acc_t* const from_rows = sum.rows + n0 * sum.row_pitch + i0;
      const acc_t* const from_columns = sum.columns + n0 * sum.column_pitch + j0;
      strided<4>(
          int(threadIdx.x), kTileSamples * kTileRows, kThreads,
          [&](int k) {
            const int n = k / kTileRows, r = k % kTileRows;
            return n < count && r < row_count ? from_rows[n * sum.row_pitch + r] : acc_t(0);
          },
          [&](int k, const acc_t& loaded) { rows[k] = loaded; });
      strided<8>(
          int(threadIdx.x), kTileSamples * kTileColumns, kThreads,
          [&](int k) {
            const int n = k / kTileColumns, c = k % kTileColumns;
            return n < count && c < column_count ? from_columns[n * sum.column_pitch + c] : acc_t(0);
          },
          [&](int k, const acc_t& loaded) { columns[k] = activated ? activate(loaded, activation) : loaded; });
      __syncthreads();
#pragma unroll 1
      for (int n = 0; n < count; ++n) {
        if (has_bias) bias += rows[n * kTileRows + threadIdx.x];
        acc_t row[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) row[r] = rows[n * kTileRows + i + r];
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const acc_t column = columns[n * kTileColumns + j + c];
#pragma unroll
          for (int r = 0; r < kRows; ++r) products[r][c] += row[r] * column;
        }
      }
      __syncthreads();
    }
    if (has_bias) sum.bias[i0 + threadIdx.x] = narrow<T>(bias);
    constexpr int kW = kVectorWidth<T>;
    const bool vectorised = sum.column_count % kW == 0 && misalignment(sum.weight) == 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (i + r >= row_count) break;
      T* const to = sum.weight + (i0 + i + r) * sum.column_count + j0 + j;
#pragma unroll
      for (int c = 0; c < kColumns; c += kW) {
        if (vectorised && j + c < column_count) {
          acc_t part[kW];
#pragma unroll
          for (int k = 0; k < kW; ++k) part[k] = products[r][c + k];
          Vector<T, kW> values;
          values.set(part);
          store(to + c, values);
        } else {
#pragma unroll
          for (int k = 0; k < kW; ++k)
            if (j + c + k < column_count) to[c + k] = narrow<T>(products[r][c + k]);
        }
      }
    }
  }
};

// Where there is no second pass to go along with.
template <class T>
__global__ void __launch_bounds__(kThreads) squeeze_excite_backward_weights(const WeightGrads<T> grads) {
  SHARED_DYNAMIC(acc_type<T>, shared);
  wait_for_primary_grid();
  grads.compute(blockIdx.x, shared);
}

}  // namespace attnkernels::squeeze_excite
