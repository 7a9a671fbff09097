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

// emit(row, sum_k weight[row, k] input[k], k < count) for `rows` rows of `pitch` elements; neighbouring lanes share a
// row, so that weights are read in whole sectors.
template <class T, class Emit>
__device__ void multiply_rows(const T* weight, int64_t pitch, int rows, int count, const accumulate_t<T>* input,
                              Emit emit) {
  constexpr int kW = kVectorWidth<T>, kInFlight = 2;
  const bool vectorised = pitch % kW == 0 && count % kW == 0 && misalignment(weight) == 0;
  const int lanes = lanes_for(vectorised ? count / kW : count);
  const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes, groups = blockDim.x / lanes;
  for (int start = 0; start < rows; start += groups) {  // the same count for every lane of a warp: shuffles follow
    const int row = start + group;
    accumulate_t<T> sum = 0;
    if (row < rows) {
      const T* const weights = weight + row * pitch;
      const auto multiply = [&](int k, const auto& loaded) {
#pragma unroll
        for (int i = 0; i < int(sizeof(loaded) / sizeof(T)); ++i) sum += loaded.get(i) * input[k + i];
      };
      if (vectorised) {
        strided<kInFlight>(lane * kW, count, lanes * kW, [&](int k) { return load<kW>(weights + k); }, multiply);
      } else {
        strided<kInFlight>(lane, count, lanes, [&](int k) { return load<1>(weights + k); }, multiply);
      }
    }
    sum = sum_lanes(sum, lanes);
    if (row < rows && lane == 0) emit(row, sum);
  }
}

// emit(j, sum_k input[k] weight[k, j]) for `columns` columns, over `rows` rows of `pitch` elements; cells: blockDim.x *
// kVectorWidth sums in shared memory. Ends with a barrier.
template <class T, class Input, class Emit>
__device__ void multiply_columns(const T* weight, int64_t pitch, int rows, int columns, int max_lanes, Input input,
                                 accumulate_t<T>* cells, Emit emit) {
  constexpr int kW = kVectorWidth<T>;
  const WeightSource<T, Input> source{weight, input};
  if (pitch % kW == 0 && columns % kW == 0 && misalignment(weight) == 0) {
    sum_columns<kW>(source, rows, pitch, columns, max_lanes, cells, emit);
  } else {
    sum_columns<1>(source, rows, pitch, columns, max_lanes * kW, cells, emit);
  }
}

}  // namespace attnkernels::squeeze_excite
