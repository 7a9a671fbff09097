// The backward kernels of squeeze_excite: sums, layers, map with the gradients of the weights.
#pragma once
#include "squeeze_excite/squeeze_excite_weights.cuh"

namespace attnkernels::squeeze_excite {

template <class T>
struct BackwardArguments {
  using acc_t = acc_type<T>;
  BackwardMaps<T> maps;
  const acc_t* saved;  // [N, 2 C + rd]
  acc_t* partial;      // [N, splits, C] sums of dz x
  acc_t* grad_logits;  // [N, C] dv
  acc_t* grad_hidden;  // [N, rd] du
  acc_t* grad_means;   // [N, C] ds / pixels, where the second pass does not compute it
  Parameters<T> parameters;
  Shape shape;
  bool layer_in_map;  // the blocks of the second pass compute their ds
  int64_t sum_splits;
};

// dv[n, c] = gate'(v[n, c]) sum_p dz[n, c, p] x[n, c, p], or the sums of each split into partial[n, split, c]
template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, kSumBlocks<T>)
    squeeze_excite_backward_sums(const BackwardArguments<T> a, const Tiles tiles) {
  const Shape& shape = a.shape;
  grad_sum_block<kChannelsLast>(a.maps, tiles, a.partial, [&](int64_t n, int64_t channel, acc_type<T> sum) {
    const acc_type<T>* const gates = a.saved + n * shape.saved_columns() + shape.channels + shape.hidden;
    a.grad_logits[n * shape.channels + channel] = sum * gate_derivative(gates[channel], shape.gate);
  });
}

// dv of channels [c, c + kCount) of sample n, zeros beyond the last; written, where splits' sums make them.
template <class T, int kCount>
__device__ __forceinline__ void load_logit_grads(const BackwardArguments<T>& a, int64_t n, int c,
                                                 acc_type<T> (&grads)[kCount], bool write) {
  using acc_t = acc_type<T>;
  const int channels = int(a.shape.channels);
  acc_t* const grad_logits = a.grad_logits + n * channels;
  if (a.sum_splits == 1) return load_sums(grad_logits, c, channels, grads);
  const acc_t* const gates = a.saved + n * a.shape.saved_columns() + channels + a.shape.hidden;
  acc_t opened[kCount];
  load_sums(gates, c, channels, opened);
  add_splits(a.partial + n * a.sum_splits * channels, int(a.sum_splits), c, channels, grads);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    grads[i] *= gate_derivative(opened[i], a.shape.gate);
    if (write && c + i < channels) grad_logits[c + i] = grads[i];
  }
}

// The layer whose transpose that kernel takes, and how many vectors of columns a block has.
template <bool kMeans, class T>
__host__ __device__ __forceinline__ Layer<T> grad_layer_of(const BackwardArguments<T>& a) {
  const Shape& shape = a.shape;
  const bool of_logits = !kMeans || !shape.hidden;
  const int rows = int(!of_logits ? shape.hidden : shape.constant_gates ? 0 : shape.channels);
  const int columns = int(kMeans ? shape.channels : shape.hidden);
  return {of_logits ? a.parameters.expand_weight : a.parameters.reduce_weight, rows, columns, shape.samples};
}
template <bool kMeans>
inline constexpr int kGradVectors = kMeans ? kVectorsOfFewRows : kVectorsOfManyRows;

// The gradient of a layer's inputs in a kernel of its own, blocks (columns, groups of samples):
// du[n, r] = activation'(u[n, r]) sum_c dv[n, c] expand_weight[c, r], or, with kMeans,
// ds[n, c] = sum_r du[n, r] reduce_weight[r, c] / pixels (of dv and expand_weight in the single-layer excitation)
// The first blocks also write dv where it is not yet there.
template <class T, bool kMeans, int kSamples>
__global__ void __launch_bounds__(kThreads, kLayerBlocks) squeeze_excite_backward_layer(const BackwardArguments<T> a) {
  using acc_t = acc_type<T>;
  launch_dependent_grids();
  const Shape& shape = a.shape;
  const bool of_logits = !kMeans || !shape.hidden;
  transposed_layer_block<kGradVectors<kMeans>, kSamples>(
      grad_layer_of<kMeans>(a), blockIdx.x, int64_t(blockIdx.y) * kSamples,
      [&](int64_t n, int k, int inputs, auto& input, bool leads) {
        if (of_logits) {
          load_logit_grads(a, n, k, input, !kMeans && leads);
        } else {
          load_sums(a.grad_hidden + n * inputs, k, inputs, input);
        }
      },
      [&](int64_t n, int output, acc_t sum) {
        if constexpr (kMeans) {
          a.grad_means[n * shape.channels + output] = sum / acc_t(shape.pixels);
        } else {
          const acc_t u = a.saved[n * shape.saved_columns() + shape.channels + output];
          a.grad_hidden[n * shape.hidden + output] = sum * activation_derivative(u, shape.activation);
        }
      });
}

// grad_x[n, c, p] = dz g[n, c] + ds[n, c] / pixels, ds = reduce_weight^T du; grad_residual = dz. The first rows of the
// grid take the gradients of the weights instead.
template <class T, bool kChannelsLast, bool kClip>
__global__ void __launch_bounds__(kThreads, kGradMapBlocks<T>)
    squeeze_excite_backward_map(const BackwardArguments<T> a, const Tiles tiles, const WeightGrads<T> weight_grads) {
  using acc_t = acc_type<T>;
  if (blockIdx.y < weight_grads.grid_rows) {
    SHARED_DYNAMIC(acc_t, shared);
    launch_dependent_grids();
    wait_for_primary_grid();
    weight_grads.compute(blockIdx.y * gridDim.x + blockIdx.x, shared);
    return;
  }
  grad_map_block<kChannelsLast, kClip>(
      a.maps, tiles, [&](int64_t n, const MapRange& range, acc_t* scale, acc_t* shift, acc_t* shared) {
        // Whole vectors of columns, beyond the range at both ends where they are there.
        constexpr int kW = kVectorWidth<T>;
        const Shape& shape = a.shape;
        const int rows = int(shape.hidden), count = int(range.count);
        const bool widened = a.layer_in_map && shape.channels % kW == 0;
        const int before = widened ? int(range.first % kW) : 0;
        const int columns = widened ? (before + count + kW - 1) / kW * kW : count;
        acc_t* const grad_hidden = shared;                                    // [rd], where ds is computed here
        T* const weights = reinterpret_cast<T*>(grad_hidden + padded(rows));  // [rd, columns]
        if (a.layer_in_map)
          stage_weights(a.parameters.reduce_weight + range.first - before, shape.channels, rows, columns, weights);
        wait_for_primary_grid();
        const acc_t* const gates = a.saved + n * shape.saved_columns() + shape.channels + shape.hidden + range.first;
        stage(scale, count, [&](int j) { return gates[j]; });
        if (a.layer_in_map) {
          const acc_t* const input = a.grad_hidden + n * rows;
          stage(grad_hidden, rows, [&](int r) { return input[r]; });
          __syncthreads();
          multiply_staged(weights + before, count, 1, rows, columns, grad_hidden,
                          [&](int j, acc_t sum) { shift[j] = sum / acc_t(shape.pixels); });
        } else {
          const acc_t* const means = a.grad_means + n * shape.channels + range.first;
          stage(shift, count, [&](int j) { return means[j]; });
        }
      });
}

}  // namespace attnkernels::squeeze_excite
