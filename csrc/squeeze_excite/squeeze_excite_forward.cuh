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

// The layer of that kernel.
template <bool kGates, class T>
__host__ __device__ __forceinline__ Layer<T> layer_of(const ForwardArguments<T>& a) {
  return {kGates ? a.parameters.expand_weight : a.parameters.reduce_weight, kGates ? a.shape.channels : a.shape.hidden,
          kGates ? a.shape.gate_inputs() : a.shape.channels, a.shape.samples};
}

// A layer in a kernel of its own, blocks (rows, groups of samples):
// activated[n, r] = activation(sum_c reduce_weight[r, c] mean[n, c] + reduce_bias[r]), or, with kGates,
// gates[n, c] = gate(sum_r expand_weight[c, r] activated[n, r] + expand_bias[c])
template <class T, bool kGates, int kSamples>
__global__ void __launch_bounds__(kThreads, kLayerBlocks)
    squeeze_excite_layer(const ForwardArguments<T> a, const int group_warps) {
  using acc_t = acc_type<T>;
  launch_dependent_grids();
  const Shape& shape = a.shape;
  const T* const bias = kGates ? a.parameters.expand_bias : a.parameters.reduce_bias;
  layer_block<kSamples>(
      layer_of<kGates>(a), group_warps, blockIdx.x, int64_t(blockIdx.y) * kSamples,
      [&](int64_t row) { return bias ? widen(bias[row]) : acc_t(0); },
      [&](int64_t n, int k, int inputs, auto& input, bool leads) {
        if (kGates && shape.hidden) {
          load_sums(a.activated + n * inputs, k, inputs, input);
        } else if (kSamples > 1) {  // not with splits: LayerGrid
          load_sums(a.saved + n * shape.saved_columns(), k, inputs, input);
        } else {
          load_means(a, n, k, input, leads);
        }
      },
      [&](int64_t n, int64_t row, acc_t value) {
        acc_t* const saved = a.saved + n * shape.saved_columns() + shape.channels;
        if constexpr (kGates) {
          saved[shape.hidden + row] = open_gate(value, shape.gate);
        } else {
          saved[row] = value;
          a.activated[n * shape.hidden + row] = activate(value, shape.activation);
        }
      });
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
