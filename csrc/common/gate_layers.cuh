// Fully connected layers and their transposes, as what a block does: an op's kernels say where the inputs come from and
// what becomes of the sums.
#pragma once
#include "common/gate_passes.cuh"

namespace attnkernels::gate {

// Blocks of a layer's own kernel that a multiprocessor must at least have registers for.
inline constexpr int kLayerBlocks = 2 - kFewerBlocks;

// Elements [k, k + kW) of a row of `count`, as a vector where the row is one of vectors; zeros beyond its end.
template <class T>
__device__ __forceinline__ Vector<T, kVectorWidth<T>> load_part(const T* row, int k, int count, bool vectorised) {
  constexpr int kW = kVectorWidth<T>;
  Vector<T, kW> part = {};
  if (vectorised) {
    if (k < count) part = load<kW>(row + k);
    return part;
  }
  acc_type<T> values[kW];
#pragma unroll
  for (int i = 0; i < kW; ++i) values[i] = k + i < count ? widen(row[k + i]) : acc_type<T>(0);
  part.set(values);
  return part;
}

// ---- in kernels of their own

// Weights [rows, columns] of a layer, from columns to rows or, transposed, from rows to columns.
template <class T>
struct Layer {
  const T* weight;
  int64_t rows, columns;
  const int64_t& samples;  // where the kernel's arguments have it: a copy would take two registers all along
};

// Samples that share one reading of the weights: as many as registers hold.
template <class T>
inline constexpr int kLayerSamples = sizeof(T) == 8 ? 1 : 2;
// Rows of weights that a group of warps takes together.
inline constexpr int kLayerRows = 8;

// emit(n, row, added(row) + sum_k weight[row, k] input[n, k]) for the block's rows and kSamples samples from `first` on.
// load_inputs(n, k, inputs, input[kW], leads) gives inputs from the k-th on; of each sample's, one group of warps `leads`.
// These kernels are all latency: a thread has a vector of inputs of several samples and the weights of several rows for
// them, all asked for at once, the weights even before the inputs are there.
template <int kSamples, class T, class Added, class Load, class Emit>
__device__ __forceinline__ void layer_block(const Layer<T>& layer, int group_warps, int64_t block, int64_t first,
                                            Added added, Load load_inputs, Emit emit) {
  using acc_t = acc_type<T>;
  constexpr int kW = kVectorWidth<T>, kCount = kLayerRows * kSamples;
  SHARED(acc_t, cells, [kThreads / 32 * kCount]);
  const int64_t rows = layer.rows;
  const int inputs = int(layer.columns);
  const int warp = threadIdx.x / 32, groups = kThreads / 32 / group_warps;
  const int64_t block_row = block * groups * kLayerRows;
  const int64_t first_row = block_row + warp / group_warps * kLayerRows;
  const bool vectorised = inputs % kW == 0 && misalignment(layer.weight) == 0;
  const int step = group_warps * 32 * kW;
  const T* const own_rows = layer.weight + min(first_row, rows - 1) * inputs;
  const int last_row = int(min(int64_t(kLayerRows), max(rows - first_row, int64_t(1)))) - 1;
  Vector<T, kW> weights[kLayerRows];
  const auto fetch = [&](int k) {
#pragma unroll
    for (int r = 0; r < kLayerRows; ++r)
      weights[r] = load_part(own_rows + int64_t(min(r, last_row)) * inputs, k, inputs, vectorised);
  };
  int k = (warp % group_warps * 32 + threadIdx.x % 32) * kW;
  fetch(k);
  // What this thread will have to do with a sum.
  const int64_t row = block_row + threadIdx.x / kSamples, n = first + threadIdx.x % kSamples;
  const bool has_sum = int(threadIdx.x) < groups * kCount && row < rows && n < layer.samples;
  acc_t value = has_sum ? added(row) : acc_t(0);

  wait_for_primary_grid();
  acc_t values[kCount] = {};
  for (; k < inputs; k += step) {
    acc_t input[kSamples][kW];
#pragma unroll
    for (int s = 0; s < kSamples; ++s)
      load_inputs(min(first + s, layer.samples - 1), k, inputs, input[s], first_row == 0);
#pragma unroll
    for (int r = 0; r < kLayerRows; ++r)
#pragma unroll
      for (int s = 0; s < kSamples; ++s)
#pragma unroll
        for (int i = 0; i < kW; ++i) values[r * kSamples + s] += weights[r].get(i) * input[s][i];
    if (k + step < inputs) fetch(k + step);
  }
  sum_spread<kCount, 1>(values);
  if (leads_spread<kCount, 1>()) cells[warp * kCount + first_spread<kCount, 1>()] = values[0];
  __syncthreads();
  if (!has_sum) return;
  for (int w = 0; w < group_warps; ++w)
    value += cells[(threadIdx.x / kCount * group_warps + w) * kCount + threadIdx.x % kCount];
  emit(n, row, value);
}

// Samples that share one reading of the weights in a layer's transpose.
template <class T>
inline constexpr int kGradSamples = sizeof(T) == 8 ? 1 : 4;
// Vectors of columns that a block of a transpose takes. Few where the sums are long: 32 bytes of a row, one sector, and
// many rows at once.
inline constexpr int kVectorsOfFewRows = 16, kVectorsOfManyRows = 2;
inline constexpr int kGradRows = 4;  // that a thread has under way

// emit(n, column, sum_k input[n, k] weight[k, column]) for the block's columns, kLanes vectors, and kSamples samples from
// `first` on. load_inputs(n, k, inputs, input[kGradRows], leads) gives inputs from the k-th on; of each sample's, one
// thread `leads`. There may be no columns: then it is called for the sake of what load_inputs does.
template <int kLanes, int kSamples, class T, class Load, class Emit>
__device__ __forceinline__ void transposed_layer_block(const Layer<T>& layer, unsigned block, int64_t first,
                                                       Load load_inputs, Emit emit) {
  using acc_t = acc_type<T>;
  constexpr int kW = kVectorWidth<T>, kGroups = kThreads / kLanes;
  constexpr int kCount = kW * kSamples, kHeld = spread_count<kCount, kLanes>;
  constexpr int kColumns = kLanes * kW;
  SHARED(acc_t, cells, [kThreads / 32 * kColumns * kSamples]);
  const int inputs = int(layer.rows), outputs = int(layer.columns);
  const bool vectorised = outputs % kW == 0 && misalignment(layer.weight) == 0;
  const int first_column = block * kColumns, column = first_column + threadIdx.x % kLanes * kW;
  // Neighbouring groups take neighbouring rows.
  Vector<T, kW> weights[kGradRows];
  const auto fetch = [&](int k) {
#pragma unroll
    for (int j = 0; j < kGradRows; ++j)
      weights[j] = load_part(layer.weight + int64_t(min(k + j, inputs - 1)) * outputs, column, outputs, vectorised);
  };
  int k = int(threadIdx.x) / kLanes * kGradRows;
  if (outputs && inputs) fetch(k);

  wait_for_primary_grid();
  acc_t values[kCount] = {};
  for (; k < inputs; k += kGroups * kGradRows) {
    acc_t input[kSamples][kGradRows];
#pragma unroll
    for (int s = 0; s < kSamples; ++s) {
      const int64_t n = min(first + s, layer.samples - 1);
      load_inputs(n, k, inputs, input[s], n == first + s && block == 0 && threadIdx.x % kLanes == 0);
    }
#pragma unroll
    for (int j = 0; j < kGradRows; ++j)
#pragma unroll
      for (int s = 0; s < kSamples; ++s)
#pragma unroll
        for (int i = 0; i < kW; ++i) values[s * kW + i] += weights[j].get(i) * input[s][j];
    if (outputs && k + kGroups * kGradRows < inputs) fetch(k + kGroups * kGradRows);
  }
  sum_spread<kCount, kLanes>(values);
  // cells[warp][value][vector of columns]
  if (leads_spread<kCount, kLanes>()) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
      cells[(threadIdx.x / 32 * kCount + first_spread<kCount, kLanes>() + i) * kLanes + threadIdx.x % kLanes] =
          values[i];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kCount * kLanes; i += kThreads) {
    const int output = first_column + i % kLanes * kW + i / kLanes % kW;
    const int64_t n = first + i / kColumns;
    if (output >= outputs || n >= layer.samples) continue;
    acc_t sum = 0;
#pragma unroll
    for (int warp = 0; warp < kThreads / 32; ++warp) sum += cells[warp * kCount * kLanes + i];
    emit(n, output, sum);
  }
}

// How many blocks a layer or its transpose has: for its rows or columns, times those for groups of samples.
struct LayerGrid {
  int64_t blocks, sample_groups;
  bool together;  // the samples of a group share a reading of the weights
  int group_warps = 1;

  // splits: of the inputs' sums, which each block adds up. Not together where a block for every sample leaves
  // multiprocessors idle, nor where each has to add up the sums of splits.
  LayerGrid(int64_t blocks, int64_t samples, int64_t splits, int group)
      : blocks(blocks), together(splits == 1 && samples * blocks > kFewBlocks) {
    sample_groups = ceil_div(samples, together ? group : 1);
  }
  static constexpr int64_t kFewBlocks = 128;
};

template <class T>
LayerGrid layer_grid(const Layer<T>& layer, int64_t splits = 1) {
  // Warps whose lanes have all inputs of a row, a vector each, or else all warps.
  int group_warps = 1;
  while (group_warps < kThreads / 32 && group_warps * 32 * kVectorWidth<T> < layer.columns) group_warps *= 2;
  const int64_t blocks = ceil_div(layer.rows, kThreads / 32 / group_warps * kLayerRows);
  LayerGrid grid(blocks, layer.samples, splits, kLayerSamples<T>);
  grid.group_warps = group_warps;
  return grid;
}

// Of a transpose whose blocks take kLanes vectors of columns; one at least for each sample.
template <int kLanes, class T>
LayerGrid transposed_layer_grid(const Layer<T>& layer, int64_t splits = 1) {
  const int64_t blocks = std::max<int64_t>(1, ceil_div(layer.columns, kLanes * kVectorWidth<T>));
  return LayerGrid(blocks, layer.samples, splits, kGradSamples<T>);
}

// ---- in the blocks of a pass over a map

// emit(row, sum_k weights[row * row_step + k * step] input[k], k < count) for `rows` rows, all in shared memory: few
// numbers, and little code, as every block executes it once.
template <class T, class Emit>
__device__ __forceinline__ void multiply_staged(const T* weights, int rows, int row_step, int count, int step,
                                                const acc_type<T>* input, Emit emit) {
  using acc_t = acc_type<T>;
  const int lanes = lanes_for((count + 3) / 4), lane = threadIdx.x % lanes, groups = blockDim.x / lanes;
#pragma unroll 1
  for (int start = 0; start < rows; start += groups) {  // the same count for every lane of a warp: shuffles follow
    const int row = start + threadIdx.x / lanes;
    acc_t sum = 0;
    if (row < rows) {
#pragma unroll 4
      for (int k = lane; k < count; k += lanes) sum += widen(weights[row * row_step + k * step]) * input[k];
    }
    sum = sum_lanes(sum, lanes);
    if (row < rows && lane == 0) emit(row, sum);
  }
}

// to = `rows` rows of `columns` weights, `pitch` apart, into shared memory: weights are there before what they
// multiply.
template <class T>
__device__ __forceinline__ void stage_weights(const T* from, int64_t pitch, int rows, int columns, T* to) {
  constexpr int kW = kVectorWidth<T>;
  if (columns % kW == 0 && pitch % kW == 0 && misalignment(from) == 0) {
    const int vectors = columns / kW;
    strided<2>(
        int(threadIdx.x), rows * vectors, int(blockDim.x),
        [&](int i) { return load<kW>(from + i / vectors * pitch + i % vectors * kW); },
        [&](int i, const auto& loaded) { store(to + i * kW, loaded); });
  } else {
#pragma unroll 1
    for (int i = threadIdx.x; i < rows * columns; i += blockDim.x) to[i] = from[i / columns * pitch + i % columns];
  }
}

}  // namespace attnkernels::gate
