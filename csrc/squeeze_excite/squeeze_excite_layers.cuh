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
// row, so that weights are read in whole sectors. Weights come from the L2 cache: each thread asks for several rows at
// once and waits for them together. input is best in shared memory, at a 128-bit boundary.
template <class T, class Emit>
__device__ void multiply_rows(const T* weight, int64_t pitch, int rows, int count, const accumulate_t<T>* input,
                              Emit emit) {
  using Sum = accumulate_t<T>;
  constexpr int kW = kVectorWidth<T>, kRows = 4, kQuarter = 16 / sizeof(Sum);
  const bool vectorised = pitch % kW == 0 && count % kW == 0 && misalignment(weight) == 0 && misalignment(input) == 0;
  const int lanes = lanes_for(vectorised ? count / kW : count);
  const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes, groups = blockDim.x / lanes;
  for (int start = 0; start < rows; start += kRows * groups) {  // the same count for every lane of a warp: shuffles
    Sum sums[kRows] = {};
    const auto multiply = [&](auto width) {
      constexpr int kN = decltype(width)::value, kPart = kN < kQuarter ? kN : kQuarter;
#pragma unroll 1  // four rows are enough in flight, and more take registers from the kernel around it
      for (int k = lane * kN; k < count; k += lanes * kN) {
        Vector<T, kN> weights[kRows] = {};
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
          const int row = start + j * groups + group;
          if (row < rows) weights[j] = load<kN>(weight + row * pitch + k);
        }
#pragma unroll
        for (int i = 0; i < kN; i += kPart) {
          const auto inputs = load<kPart>(input + k + i);
#pragma unroll
          for (int j = 0; j < kRows; ++j) {
#pragma unroll
            for (int h = 0; h < kPart; ++h) sums[j] += weights[j].get(i + h) * inputs.get(h);
          }
        }
      }
    };
    if (vectorised) {
      multiply(std::integral_constant<int, kW>());
    } else {
      multiply(std::integral_constant<int, 1>());
    }
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const Sum sum = sum_lanes(sums[j], lanes);
      const int row = start + j * groups + group;
      if (row < rows && lane == 0) emit(row, sum);
    }
  }
}

// emit(j, sum_k input[k] weight[k, j]) for `columns` columns, over `rows` rows of `pitch` elements; at most max_lanes
// vectors of columns at a time; cells: blockDim.x * kVectorWidth sums in shared memory. Ends with a barrier.
template <class T, class Input, class Emit>
__device__ void multiply_columns(const T* weight, int64_t pitch, int rows, int columns, int max_lanes,
                                 const Input& input, accumulate_t<T>* cells, Emit emit) {
  using Sum = accumulate_t<T>;
  const auto multiply = [&](auto width, int most_lanes) {
    constexpr int kN = decltype(width)::value;
    const int vectors = columns / kN;
    for (int start = 0; start < vectors; start += most_lanes) {
      const int lanes = min(most_lanes, vectors - start), groups = blockDim.x / lanes, group = threadIdx.x / lanes;
      const int column = (start + threadIdx.x % lanes) * kN;
      if (group < groups) {
        Sum sums[kN] = {};
        strided<4>(
            group, rows, groups, [&](int k) { return load<kN>(weight + k * pitch + column); },
            [&](int k, const auto& loaded) {
              const Sum factor = input[k];
#pragma unroll
              for (int i = 0; i < kN; ++i) sums[i] += loaded.get(i) * factor;
            });
#pragma unroll
        for (int i = 0; i < kN; ++i) cells[threadIdx.x * kN + i] = sums[i];
      }
      sum_rows(cells, groups, lanes * kN, [&](int j, Sum sum) { emit(start * kN + j, sum); });
    }
  };
  constexpr int kW = kVectorWidth<T>;
  if (pitch % kW == 0 && columns % kW == 0 && misalignment(weight) == 0) {
    multiply(std::integral_constant<int, kW>(), min(max_lanes, int(blockDim.x)));
  } else {
    multiply(std::integral_constant<int, 1>(), min(max_lanes * kW, int(blockDim.x)));
  }
}

}  // namespace attnkernels::squeeze_excite
