// The CUDA kernels of criss_cross_affinity and criss_cross_aggregate; the symbols are those of
// attnkernels/ops/criss_cross/reference.py. Layouts as in criss_cross.cuh; an affinity is [N, P, H + W - 1].
#pragma once
#include "criss_cross/criss_cross_tile.cuh"

namespace attnkernels::criss_cross {

// Where an affinity holds the pairs of a line. For a query i of it at pixel p, and a key j:
//
//   entries[p * size + entry of j]
struct Entries {
  int64_t size;    // H + W - 1
  int64_t first;   // entry of key 0: 0 on a row, W on a column
  bool is_column;  // where the query itself has no entry

  __device__ int64_t at(int64_t query_pixel, int64_t query, int64_t key) const {
    return query_pixel * size + first + key - (is_column && key > query);
  }
  __device__ bool has(int64_t query, int64_t key) const { return !is_column || query != key; }
};

template <class T>
struct ScoresPass {
  Lines lines;
  Entries entries;
  int64_t channels;
  const T *a, *b;
  T* affinity;
};

// affinity[p, entry of k] = sum_c a[p, c] b[k, c]                           blocks [N, lines, queries, tiles of keys]
template <class T>
__global__ void __launch_bounds__(Tile<T>::kThreads, Tile<T>::kTensorCores ? 3 : 1)
    criss_cross_scores_pass(const int64_t first_block, const ScoresPass<T> pass, const int64_t tiles) {
  using Tile = criss_cross::Tile<T>;
  SHARED(typename Tile::Shared, shared);
  const Place place = place_of<T>(pass.lines, first_block, tiles);
  const int64_t column = place.rest * Tile::kColumns;
  typename Tile::Products score;
  multiply_pixels<T>(score, shared, pass.a, pass.b, place, column, pass.channels);
  // Through shared memory: neighbouring threads then write neighbouring entries.
#pragma unroll
  for (int r = 0; r < Tile::kThreadRows; ++r)
#pragma unroll
    for (int c = 0; c < Tile::kThreadColumns; ++c)
      shared.rows[Tile::row_of(r) * Tile::kRowStride + Tile::column_of(c)] = narrow<T>(score[r][c]);
  __syncthreads();
#pragma unroll 2
  for (int item = threadIdx.x; item < Tile::kRows * Tile::kColumns; item += Tile::kThreads) {
    const int query = item / Tile::kColumns, key = item % Tile::kColumns;
    const int64_t i = place.row + query, j = column + key;
    if (i < place.length && j < place.length && pass.entries.has(i, j))
      pass.affinity[pass.entries.at(place.pixel(i), i, j)] = shared.rows[query * Tile::kRowStride + key];
  }
}

template <class T>
struct ApplyPass {
  using acc_t = acc_type<T>;
  Lines lines;
  Entries entries;
  bool query_rows;  // whether rows are queries, and columns keys
  int64_t channels;
  const T *affinity, *map;
  const acc_t* before;  // null in the first pass
  acc_t* partial;       // not used by an only pass
  T* result;            // null but in the last pass
};

// query_rows:  out[p] = sum_k affinity[p, entry of k] map[k]
// otherwise:   out[k] = sum_p affinity[p, entry of k] map[p]             blocks [N, lines, rows, tiles of channels]
template <class T>
__global__ void __launch_bounds__(Tile<T>::kThreads, Tile<T>::kTensorCores ? 3 : 1)
    criss_cross_apply_pass(const int64_t first_block, const ApplyPass<T> pass, const int64_t tiles) {
  using Tile = criss_cross::Tile<T>;
  SHARED(typename Tile::Shared, shared);
  const Place place = place_of<T>(pass.lines, first_block, tiles);
  const int64_t channel = place.rest * Tile::kChannels;
  typename Tile::Result result;
  load_result<T>(result, pass.before, place, pass.channels, channel);
#pragma unroll 1
  for (int64_t column = 0; column < place.length; column += Tile::kColumns) {
    load_tile<T, Tile::kColumns, Tile::kChannels, Tile::kFactorStride>(shared.factor, pass.map, place, column,
                                                                       pass.channels, channel);
#pragma unroll 2
    for (int item = threadIdx.x; item < Tile::kRows * Tile::kColumns; item += Tile::kThreads) {
      // Neighbouring threads have neighbouring keys, which an affinity has side by side.
      const int key = item % Tile::kColumns, query = item / Tile::kColumns;
      const int row = pass.query_rows ? query : key, other = pass.query_rows ? key : query;
      const int64_t i = place.row + row, j = column + other;
      const int64_t of_query = pass.query_rows ? i : j, of_key = pass.query_rows ? j : i;
      T weight = narrow<T>(0);
      if (i < place.length && j < place.length && pass.entries.has(of_query, of_key))
        weight = pass.affinity[pass.entries.at(place.pixel(of_query), of_query, of_key)];
      shared.rows[row * Tile::kRowStride + other] = weight;
    }
    apply_weights<T>(result, shared, place, column, pass.channels - channel);
  }
  if (pass.result) {
    store_result<T>(pass.result, result, place, pass.channels, channel);
  } else {
    store_result<T>(pass.partial, result, place, pass.channels, channel);
  }
}

}  // namespace attnkernels::criss_cross
