// The CUDA kernels of the channel gate's fully connected layers. The last of two is linear: it is applied once to the sum
// over the pools.
#pragma once
#include "channel_spatial/channel_spatial_layers.h"
#include "common/gate_layers.cuh"
#include "common/gate_weights.cuh"
#include "common/pointwise.cuh"

namespace attnkernels::channel_spatial {

using namespace gate;

// sum_k rows[n, k, i], from the i-th on of rows [N, pools, count]; not all pools at once, as registers are few.
template <int kCount, class A>
__device__ __forceinline__ void load_pools(const A* rows, int pools, int i, int count, A (&sums)[kCount]) {
  load_sums(rows, i, count, sums);
#pragma unroll 1
  for (int pool = 1; pool < pools; ++pool) {
    A other[kCount];
    load_sums(rows + int64_t(pool) * count, i, count, other);
#pragma unroll
    for (int j = 0; j < kCount; ++j) sums[j] += other[j];
  }
}

template <class T>
struct ForwardLayers {
  using acc_t = acc_type<T>;
  const acc_t* pooled;  // [N, K, C]
  const T *reduce_weight, *reduce_bias, *expand_weight, *expand_bias;
  acc_t* hidden;  // [N, K, rd] or null
  acc_t* gate;    // [N, C]
  Layers shape;
  int64_t rows;  // N K
};

template <bool kGates, class T>
__host__ __device__ __forceinline__ Layer<T> layer_of(const ForwardLayers<T>& a) {
  const Layers& shape = a.shape;
  return {kGates ? a.expand_weight : a.reduce_weight, kGates ? shape.channels : shape.hidden,
          kGates ? shape.gate_inputs() : shape.channels, kGates ? shape.samples : a.rows};
}

// Blocks of a layer that a multiprocessor must have registers for: with 128 of them, half vectors spill.
template <class T>
inline constexpr int kForwardBlocks = sizeof(T) == 2 ? 1 : kLayerBlocks;

// hidden[n, k, r] = relu(sum_c reduce_weight[r, c] pooled[n, k, c] + reduce_bias[r]), or, with kGates,
// gate[n, c] = sigmoid(sum_r expand_weight[c, r] sum_k hidden[n, k, r] + K expand_bias[c]), of pooled in a single layer
template <class T, bool kGates, int kSamples>
__global__ void __launch_bounds__(kThreads, kForwardBlocks<T>)
    channel_spatial_layer(const ForwardLayers<T> a, const int group_warps) {
  using acc_t = acc_type<T>;
  launch_dependent_grids();
  const Layers& shape = a.shape;
  const T* const bias = kGates ? a.expand_bias : a.reduce_bias;
  const acc_t* const inner = shape.hidden ? a.hidden : a.pooled;  // what the last layer takes
  layer_block<kSamples>(
      layer_of<kGates>(a), group_warps, blockIdx.y, int64_t(blockIdx.x) * kSamples,
      [&](int64_t row) { return bias ? acc_t(kGates ? shape.pools : 1) * widen(bias[row]) : acc_t(0); },
      [&](int64_t n, int k, int inputs, auto& input, bool) {
        if constexpr (kGates) {
          load_pools(inner + n * shape.pools * inputs, int(shape.pools), k, inputs, input);
        } else {
          load_sums(a.pooled + n * inputs, k, inputs, input);
        }
      },
      [&](int64_t n, int64_t row, acc_t value) {
        if constexpr (kGates) {
          a.gate[n * shape.channels + row] = sigmoid(value);
        } else {
          a.hidden[n * shape.hidden + row] = relu(value);
        }
      });
}

template <class T>
struct BackwardLayers {
  using acc_t = acc_type<T>;
  const acc_t *grad_gate, *gate;  // [N, C]
  const acc_t *pooled, *hidden;   // [N, K, C], [N, K, rd]
  const T *reduce_weight, *expand_weight;
  acc_t* grad_hidden;  // [N, K, rd], before the ReLU
  acc_t* grad_pooled;  // [N, K, C]
  Layers shape;
  int64_t rows;         // N K
  int64_t pooled_rows;  // of which each has a gradient of pooled: N of a single layer, N K of two
};

// The layer whose transpose gives the gradient of the hidden numbers or, kPooled, of pooled; of a single layer once for
// all pools.
template <bool kPooled, class T>
__host__ __device__ __forceinline__ Layer<T> grad_layer_of(const BackwardLayers<T>& a) {
  const Layers& shape = a.shape;
  const bool of_logits = !kPooled || !shape.hidden;
  return {of_logits ? a.expand_weight : a.reduce_weight, of_logits ? shape.channels : shape.hidden,
          kPooled ? shape.channels : shape.hidden, kPooled ? a.pooled_rows : shape.samples};
}

// The gradient of the logit [n, c], dgc gc (1 - gc), from c on; zeros beyond the last.
template <class T, int kCount>
__device__ __forceinline__ void load_logit_grads(const BackwardLayers<T>& a, int64_t n, int c, int channels,
                                                 acc_type<T> (&grads)[kCount]) {
  acc_type<T> gates[kCount];
  load_sums(a.grad_gate + n * channels, c, channels, grads);
  load_sums(a.gate + n * channels, c, channels, gates);
#pragma unroll
  for (int i = 0; i < kCount; ++i) grads[i] *= gate_derivative(gates[i], Gate::kSigmoid);
}

// grad_hidden[n, k, r] = [hidden[n, k, r] is not <= 0] sum_c dt[n, c] expand_weight[c, r], dt that of the logits
template <class T, int kSamples>
__global__ void __launch_bounds__(kThreads, kLayerBlocks) channel_spatial_grad_hidden(const BackwardLayers<T> a) {
  using acc_t = acc_type<T>;
  launch_dependent_grids();
  const Layers& shape = a.shape;
  transposed_layer_block<kVectorsOfManyRows, kSamples>(
      grad_layer_of<false>(a), blockIdx.y, int64_t(blockIdx.x) * kSamples,
      [&](int64_t n, int k, int inputs, auto& input, bool) { load_logit_grads(a, n, k, inputs, input); },
      [&](int64_t n, int r, acc_t sum) {
        for (int64_t row = n * shape.pools; row < (n + 1) * shape.pools; ++row)
          a.grad_hidden[row * shape.hidden + r] = a.hidden[row * shape.hidden + r] <= acc_t(0) ? acc_t(0) : sum;
      });
}

// weight[i, j] = sum_n,k rows[n, i] columns[n, k, j] and bias[i] = sum_n,k rows[n, i], for the expanding layer, or both
// of n and k. With gates, rows are made as load_logit_grads makes them.
template <class T>
struct LayerSum : OuterSum<T> {
  const acc_type<T>*rows, *gates, *columns;  // gates: or null
  Divisor repeats;                           // so many rows of columns for each of rows
};

// d expand_weight = sum_n,k dt hidden^T (dt pooled^T of a single layer), d reduce_weight = sum_n,k grad_hidden pooled^T,
// and the biases.
template <class T>
struct LayerSums {
  using acc_t = acc_type<T>;
  LayerSum<T> sums[2];  // expand, reduce
  int64_t rows;         // N K
  unsigned grid_rows;   // of the grid, which compute them

  __host__ __device__ int64_t blocks() const { return sums[0].tiles() + sums[1].tiles(); }
  __device__ __forceinline__ void compute(int64_t block, acc_t* shared) const {
    if (block >= blocks()) return;
    const bool of_reduce = block >= sums[0].tiles();
    const LayerSum<T>& sum = sums[of_reduce];
    if (of_reduce) block -= sums[0].tiles();
    sum.compute(
        rows, block, shared,
        [&](int64_t n0, int64_t i0) {
          return [&sum, n0, i0](int n, int i) {
            const int64_t at = sum.repeats.quotient(uint32_t(n0) + n) * sum.row_count + i0 + i;
            const acc_t row = sum.rows[at];
            return sum.gates ? row * gate_derivative(sum.gates[at], Gate::kSigmoid) : row;
          };
        },
        [&](int64_t n0, int64_t j0) {
          const acc_t* const from = sum.columns + n0 * sum.column_count + j0;
          return [&sum, from](int n, int j) { return from[n * sum.column_count + j]; };
        },
        [](acc_t loaded) { return loaded; });
  }
};

// grad_pooled[n, k, c] = sum_r grad_hidden[n, k, r] reduce_weight[r, c], or sum_i dt[n, i] expand_weight[i, c] of a single
// layer. The first rows of the grid take the gradients of the weights instead.
template <class T, int kSamples>
__global__ void __launch_bounds__(kThreads, kLayerBlocks)
    channel_spatial_grad_layers(const BackwardLayers<T> a, const LayerSums<T> sums) {
  using acc_t = acc_type<T>;
  launch_dependent_grids();
  if (blockIdx.y < sums.grid_rows) {
    SHARED_DYNAMIC(acc_t, shared);
    wait_for_primary_grid();
    sums.compute(int64_t(blockIdx.y) * gridDim.x + blockIdx.x, shared);
    return;
  }
  const Layers& shape = a.shape;
  transposed_layer_block<kVectorsOfFewRows, kSamples>(
      grad_layer_of<true>(a), blockIdx.y - sums.grid_rows, int64_t(blockIdx.x) * kSamples,
      [&](int64_t n, int k, int inputs, auto& input, bool) {
        if (shape.hidden) {
          load_sums(a.grad_hidden + n * inputs, k, inputs, input);
        } else {
          load_logit_grads(a, n, k, inputs, input);
        }
      },
      [&](int64_t n, int c, acc_t sum) {
        const int64_t rows = shape.hidden ? 1 : shape.pools;
        for (int64_t row = n * rows; row < (n + 1) * rows; ++row) a.grad_pooled[row * shape.channels + c] = sum;
      });
}

}  // namespace attnkernels::channel_spatial
