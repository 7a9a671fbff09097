// The two fully connected layers and their transposes, by one block.
#pragma once
#include "common/gate_passes.cuh"
#include "squeeze_excite/squeeze_excite_plan.h"

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

}  // namespace attnkernels::squeeze_excite
