// The forward kernels of squeeze_excite: sums, layers, map.
#pragma once
#include "squeeze_excite/squeeze_excite_layers.cuh"

namespace attnkernels::squeeze_excite {

template <class T>
struct ForwardArguments {
  using acc_t = acc_type<T>;
  ForwardMaps<T> maps;
  acc_t* saved;      // [N, 2 C + rd]: means, hidden pre-activations, gates
  acc_t* partial;    // [N, splits, C] sums over pixels, where splits > 1
  acc_t* activated;  // [N, rd], where the hidden layer has its own kernel
  Parameters<T> parameters;
  Shape shape;
  bool layer_in_map;  // the blocks of the second pass compute their gates
  int64_t sum_splits;
};

// saved[n, c] = sum_p x[n, c, p] / pixels, or the sums of each split into partial[n, split, c]
template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads) squeeze_excite_pool(const ForwardArguments<T> a, const Tiles tiles) {
  pool_block<kChannelsLast>(a.maps, tiles, a.partial, [&](int64_t n, int64_t channel, acc_type<T> sum) {
    a.saved[n * a.shape.saved_columns() + channel] = sum / acc_type<T>(a.shape.pixels);
  });
}

// The means of channels [c, c + kW) of sample n, zeros beyond the last; saved, where splits' sums make them.
template <class T, int kW>
__device__ __forceinline__ void load_means(const ForwardArguments<T>& a, int64_t n, int c, acc_type<T> (&means)[kW],
                                           bool save) {
  using acc_t = acc_type<T>;
  const int channels = int(a.shape.channels);
  acc_t* const saved = a.saved + n * a.shape.saved_columns();
  if (a.sum_splits == 1) return load_sums(saved, c, channels, means);
  add_splits(a.partial + n * a.sum_splits * channels, int(a.sum_splits), c, channels, means);
#pragma unroll
  for (int i = 0; i < kW; ++i) {
    means[i] /= acc_t(a.shape.pixels);
    if (save && c + i < channels) saved[c + i] = means[i];
  }
}

// Samples that share one reading of the weights in a layer's own kernel: as many as registers hold.
template <class T>
inline constexpr int kLayerSamples = sizeof(T) == 8 ? 1 : 2;
// Rows of weights that a group of warps takes together.
inline constexpr int kLayerRows = 8;

// A layer in a kernel of its own, blocks (rows, groups of samples):
// activated[n, r] = activation(sum_c reduce_weight[r, c] mean[n, c] + reduce_bias[r]), or, with kGates,
// gates[n, c] = gate(sum_r expand_weight[c, r] activated[n, r] + expand_bias[c])
// These kernels are all latency: a thread has a vector of inputs of several samples and the weights of several rows for
// them, all asked for at once, the weights even before the inputs are there.
template <class T, bool kGates, int kSamples>
__global__ void __launch_bounds__(kThreads, kLayerBlocks)
    squeeze_excite_layer(const ForwardArguments<T> a, const int group_warps) {
  using acc_t = acc_type<T>;
  constexpr int kW = kVectorWidth<T>, kCount = kLayerRows * kSamples;
  SHARED(acc_t, cells, [kThreads / 32 * kCount]);
  launch_dependent_grids();
  const Shape& shape = a.shape;
  const int64_t rows = kGates ? shape.channels : shape.hidden;
  const int inputs = int(kGates ? shape.gate_inputs() : shape.channels);
  const T* const weight = kGates ? a.parameters.expand_weight : a.parameters.reduce_weight;
  const T* const bias = kGates ? a.parameters.expand_bias : a.parameters.reduce_bias;
  const int warp = threadIdx.x / 32, groups = kThreads / 32 / group_warps;
  const int64_t block_row = int64_t(blockIdx.x) * groups * kLayerRows;
  const int64_t first_row = block_row + warp / group_warps * kLayerRows, first = int64_t(blockIdx.y) * kSamples;
  const bool vectorised = inputs % kW == 0 && misalignment(weight) == 0;
  const int step = group_warps * 32 * kW;
  const T* const own_rows = weight + min(first_row, rows - 1) * inputs;
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
  const bool has_sum = threadIdx.x < groups * kCount && row < rows && n < shape.samples;
  const acc_t added = has_sum && bias ? widen(bias[row]) : acc_t(0);

  wait_for_primary_grid();
  acc_t values[kCount] = {};
  for (; k < inputs; k += step) {
    acc_t input[kSamples][kW];
#pragma unroll
    for (int s = 0; s < kSamples; ++s) {
      const int64_t of = min(first + s, shape.samples - 1);
      if (kGates && shape.hidden) {
        load_sums(a.activated + of * inputs, k, inputs, input[s]);
      } else if (kSamples > 1) {  // not with splits: samples_share_weights
        load_sums(a.saved + of * shape.saved_columns(), k, inputs, input[s]);
      } else {
        load_means(a, of, k, input[s], first_row == 0);
      }
    }
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
  acc_t value = added;
  for (int w = 0; w < group_warps; ++w)
    value += cells[(threadIdx.x / kCount * group_warps + w) * kCount + threadIdx.x % kCount];
  acc_t* const saved = a.saved + n * shape.saved_columns() + shape.channels;
  if constexpr (kGates) {
    saved[shape.hidden + row] = open_gate(value, shape.gate);
  } else {
    saved[row] = value;
    a.activated[n * shape.hidden + row] = activate(value, shape.activation);
  }
}

// y[n, c, p] = output_activation(x[n, c, p] gate(sum_r expand_weight[c, r] hidden[n, r] + expand_bias[c]) + residual)
template <class T, bool kChannelsLast, bool kResidual>
__global__ void __launch_bounds__(kThreads, kMapBlocks<T>)
    squeeze_excite_scale(const ForwardArguments<T> a, const Tiles tiles) {
  using acc_t = acc_type<T>;
  scale_block<kChannelsLast, kResidual>(a.maps, tiles, [&](int64_t n, const MapRange& range, acc_t* shared) {
    const Shape& shape = a.shape;
    const int count = int(range.count), width = int(shape.hidden);
    acc_t* const gates = shared;                             // [tiles.channels]
    acc_t* const bias = gates + padded(tiles.channels);      // [tiles.channels], where the gates are computed here
    acc_t* const activated = bias + padded(tiles.channels);  // [rd]
    T* const weights = reinterpret_cast<T*>(activated + padded(width));  // [count, rd]
    if (a.layer_in_map) {
      stage_weights(a.parameters.expand_weight + range.first * width, 0, 1, count * width, weights);
      const T* const biases = a.parameters.expand_bias;
      stage(bias, count, [&](int j) { return biases ? widen(biases[range.first + j]) : acc_t(0); });
    }
    wait_for_primary_grid();
    acc_t* const saved = a.saved + n * shape.saved_columns() + shape.channels + shape.hidden;
    if (a.layer_in_map) {
      const acc_t* const input = a.activated + n * width;
      stage(activated, width, [&](int r) { return input[r]; });
      __syncthreads();
      multiply_staged(weights, count, width, width, 1, activated, [&](int j, acc_t sum) {
        gates[j] = open_gate(sum + bias[j], shape.gate);
        if (range.has_first_pixel<kChannelsLast>(j, shape.pixels)) saved[range.first + j] = gates[j];
      });
    } else {
      stage(gates, count, [&](int j) { return saved[range.first + j]; });
    }
    __syncthreads();
    return gates;
  });
}

}  // namespace attnkernels::squeeze_excite
