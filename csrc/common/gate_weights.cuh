// The gradients of weights: sums over samples of outer products, in the samples' order.
#pragma once
#include "common/gate_passes.cuh"

namespace attnkernels::gate {

// weight[i, j] = sum_n rows[n, i] columns[n, j] and bias[i] = sum_n rows[n, i]. A block takes a tile of them: all of its
// numbers of some samples into shared memory at once, then the products of each thread's few rows and columns.
template <class T>
struct OuterSum {
  using acc_t = acc_type<T>;
  static constexpr int kTileRows = 64, kTileColumns = 128, kTileSamples = 16;
  static constexpr int kRows = 4, kColumns = 8;  // of a thread
  static_assert(kTileRows / kRows * kTileColumns / kColumns == kThreads);

  int64_t row_count, column_count;  // no rows: not there
  T *weight, *bias;                 // or null

  static constexpr size_t shared_bytes() { return kTileSamples * (kTileRows + kTileColumns) * sizeof(acc_t); }
  __host__ __device__ int64_t column_tiles() const {
    if (!weight) return bias ? 1 : 0;  // the first tile of columns also has the bias
    return column_count > kTileColumns ? (column_count + kTileColumns - 1) / kTileColumns : 1;
  }
  __host__ __device__ int64_t tiles() const { return (row_count + kTileRows - 1) / kTileRows * column_tiles(); }

  // rows(n, i) and columns(n, j) give what there is from there on, as functions of (n, i) and (n, j) within a tile; what
  // is read of the columns is used(that). shared: shared_bytes().
  template <class Rows, class Columns, class Used>
  __device__ __forceinline__ void compute(int64_t samples, int64_t tile, acc_t* shared, Rows rows_from,
                                          Columns columns_from, Used used) const {
    const int64_t i0 = tile / column_tiles() * kTileRows, j0 = tile % column_tiles() * kTileColumns;
    const int tall = int(min(row_count - i0, int64_t(kTileRows)));
    const int wide = weight ? int(min(column_count - j0, int64_t(kTileColumns))) : 0;
    acc_t* const rows = shared;                              // [kTileSamples, kTileRows]
    acc_t* const columns = rows + kTileSamples * kTileRows;  // [kTileSamples, kTileColumns]
    const int i = threadIdx.x / (kTileColumns / kColumns) * kRows,
              j = threadIdx.x % (kTileColumns / kColumns) * kColumns;
    const bool has_bias = bias && j0 == 0 && int(threadIdx.x) < tall;
    acc_t products[kRows][kColumns] = {}, bias_sum = 0;
    for (int64_t n0 = 0; n0 < samples; n0 += kTileSamples) {
      const int count = int(min(samples - n0, int64_t(kTileSamples)));
      const auto row = rows_from(n0, i0);
      const auto column = columns_from(n0, j0);
      strided<4>(
          int(threadIdx.x), kTileSamples * kTileRows, kThreads,
          [&](int k) {
            const int n = k / kTileRows, r = k % kTileRows;
            return n < count && r < tall ? row(n, r) : acc_t(0);
          },
          [&](int k, const acc_t& loaded) { rows[k] = loaded; });
      strided<8>(
          int(threadIdx.x), kTileSamples * kTileColumns, kThreads,
          [&](int k) {
            const int n = k / kTileColumns, c = k % kTileColumns;
            return n < count && c < wide ? column(n, c) : acc_t(0);
          },
          [&](int k, const acc_t& loaded) { columns[k] = used(loaded); });
      __syncthreads();
#pragma unroll 1
      for (int n = 0; n < count; ++n) {
        if (has_bias) bias_sum += rows[n * kTileRows + threadIdx.x];
        acc_t own[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) own[r] = rows[n * kTileRows + i + r];
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const acc_t other = columns[n * kTileColumns + j + c];
#pragma unroll
          for (int r = 0; r < kRows; ++r) products[r][c] += own[r] * other;
        }
      }
      __syncthreads();
    }
    if (has_bias) bias[i0 + threadIdx.x] = narrow<T>(bias_sum);
    constexpr int kW = kVectorWidth<T>;
    const bool vectorised = column_count % kW == 0 && misalignment(weight) == 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (i + r >= tall) break;
      T* const to = weight + (i0 + i + r) * column_count + j0 + j;
#pragma unroll
      for (int c = 0; c < kColumns; c += kW) {
        if (vectorised && j + c < wide) {
          acc_t part[kW];
#pragma unroll
          for (int k = 0; k < kW; ++k) part[k] = products[r][c + k];
          Vector<T, kW> values;
          values.set(part);
          store(to + c, values);
        } else {
#pragma unroll
          for (int k = 0; k < kW; ++k)
            if (j + c + k < wide) to[c + k] = narrow<T>(products[r][c + k]);
        }
      }
    }
  }
};

}  // namespace attnkernels::gate
