// The two fully connected layers and their transposes, by one block.
#pragma once
#include "squeeze_excite/squeeze_excite_maps.cuh"

namespace attnkernels::squeeze_excite {

template <class A>
__device__ __forceinline__ A activate(A value, Activation activation) {
  return activation == Activation::kRelu ? relu(value) : silu(value);
}

// activation'(u); NaN passes the gradient on, as torch's threshold_backward
template <class A>
__device__ __forceinline__ A activation_derivative(A u, Activation activation) {
  return activation == Activation::kRelu ? (u <= A(0) ? A(0) : A(1)) : silu_derivative(u);
}

template <class A>
__device__ __forceinline__ A open_gate(A value, Gate gate) {
  return gate == Gate::kSigmoid ? sigmoid(value) : hard_sigmoid(value);
}

// gate'(v) from g = gate(v)
template <class A>
__device__ __forceinline__ A gate_derivative(A g, Gate gate) {
  if (gate == Gate::kSigmoid) return g * (A(1) - g);
  return g > A(0) && g < A(1) ? A(1) / A(6) : A(0);
}

// emit(row, sum_k weight[row, first_column + k] input[k], k < count) for rows [first_row, last_row) of a weight with
// `pitch` elements a row; neighbouring lanes share a row, so that weights are read in whole sectors.
template <class T, class Emit>
__device__ void multiply_rows(const T* weight, int64_t pitch, int64_t first_row, int64_t last_row, int64_t first_column,
                              int64_t count, const accumulate_t<T>* input, Emit emit) {
  constexpr int kW = kVectorWidth<T>;
  const T* const corner = weight + first_row * pitch + first_column;
  const bool vectorised = pitch % kW == 0 && count % kW == 0 && misalignment(corner) == 0;
  const int lanes = lanes_for(vectorised ? count / kW : count);
  const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes, groups = blockDim.x / lanes;
  for (int64_t start = 0; start < last_row - first_row; start += groups) {  // the same count for every lane of a warp
    const int64_t row = start + group;
    accumulate_t<T> sum = 0;
    if (row < last_row - first_row) {
      const T* const weights = corner + row * pitch;
      if (vectorised) {
        strided(lane * kW, count, lanes * kW, [&](int64_t k) { return load<kW>(weights + k); },
                [&](int64_t k, const auto& loaded) {
#pragma unroll
                  for (int i = 0; i < kW; ++i) sum += widen(loaded.values[i]) * input[k + i];
                });
      } else {
        strided(lane, count, lanes, [&](int64_t k) { return weights[k]; },
                [&](int64_t k, T loaded) { sum += widen(loaded) * input[k]; });
      }
    }
    sum = sum_lanes(sum, lanes);
    if (row < last_row - first_row && lane == 0) emit(first_row + row, sum);
  }
}

// emit(j, sum_k input[k] weight[k, first_column + j]) for `columns` columns, over all `rows` rows; cells: blockDim.x *
// kVectorWidth sums in shared memory. Ends with a barrier.
template <class T, class Input, class Emit>
__device__ void multiply_columns(const T* weight, int64_t pitch, int64_t rows, int64_t first_column, int64_t columns,
                                 int max_lanes, Input input, accumulate_t<T>* cells, Emit emit) {
  constexpr int kW = kVectorWidth<T>;
  const WeightSource<T, Input> source{weight, input};
  if (pitch % kW == 0 && columns % kW == 0 && misalignment(weight + first_column) == 0) {
    sum_columns<kW>(source, 0, rows, pitch, first_column, columns, max_lanes, cells, emit);
  } else {
    sum_columns<1>(source, 0, rows, pitch, first_column, columns, max_lanes * kW, cells, emit);
  }
}

}  // namespace attnkernels::squeeze_excite
