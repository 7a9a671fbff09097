// The gradients of the weights: sums over samples of outer products, in the samples' order.
#pragma once
#include "common/gate_weights.cuh"
#include "squeeze_excite/squeeze_excite_layers.cuh"

namespace attnkernels::squeeze_excite {

// Of rows[n, i] and columns[n, j], so far apart.
template <class T>
struct LayerSum : OuterSum<T> {
  using acc_t = acc_type<T>;
  const acc_t* rows;
  int64_t row_pitch;
  const acc_t* columns;
  int64_t column_pitch;
};

// d expand_weight = sum_n dv activation(u)^T (dv s^T in the single-layer excitation), d reduce_weight = sum_n du s^T,
// and the biases.
template <class T>
struct WeightGrads {
  using acc_t = acc_type<T>;
  LayerSum<T> sums[2];  // expand, reduce
  int64_t samples;
  Activation activation;
  bool activated_columns;  // the columns of sums[0] are pre-activations
  unsigned grid_rows = 0;  // of the second pass's grid, which compute them

  static constexpr size_t shared_bytes() { return OuterSum<T>::shared_bytes(); }
  __host__ __device__ int64_t blocks() const { return sums[0].tiles() + sums[1].tiles(); }

  __device__ __forceinline__ void compute(int64_t block, acc_t* shared) const {
    if (block >= blocks()) return;
    const bool of_reduce = block >= sums[0].tiles();
    const LayerSum<T>& sum = sums[of_reduce];
    if (of_reduce) block -= sums[0].tiles();
    const bool activated = !of_reduce && activated_columns;
    sum.compute(
        samples, block, shared,
        [&](int64_t n0, int64_t i0) {
          const acc_t* const from = sum.rows + n0 * sum.row_pitch + i0;
          return [from, &sum](int n, int i) { return from[n * sum.row_pitch + i]; };
        },
        [&](int64_t n0, int64_t j0) {
          const acc_t* const from = sum.columns + n0 * sum.column_pitch + j0;
          return [from, &sum](int n, int j) { return from[n * sum.column_pitch + j]; };
        },
        [&](acc_t loaded) { return activated ? activate(loaded, activation) : loaded; });
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
