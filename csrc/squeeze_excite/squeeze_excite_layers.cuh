// The two fully connected layers and their transposes: by one block for itself, and tiles of the whole layer.
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
  constexpr int kW = kVectorWidth<T>, kRows = 4;  // rows of a thread at once, a load of each in flight
  const bool vectorised = pitch % kW == 0 && count % kW == 0 && misalignment(weight) == 0;
  const int lanes = lanes_for(vectorised ? count / kW : count);
  const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes, groups = blockDim.x / lanes;
  for (int start = 0; start < rows; start += kRows * groups) {  // the same count for every lane: shuffles follow
    accumulate_t<T> sums[kRows] = {};
    const auto multiply = [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      for (int k = lane * kWidth; k < count; k += lanes * kWidth) {
        Vector<T, kWidth> loaded[kRows];
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
          const int row = start + j * groups + group;
          if (row < rows) loaded[j] = load<kWidth>(weight + row * pitch + k);
        }
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          const accumulate_t<T> value = input[k + i];
#pragma unroll
          for (int j = 0; j < kRows; ++j)
            if (start + j * groups + group < rows) sums[j] += loaded[j].get(i) * value;
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
      const int row = start + j * groups + group;
      const accumulate_t<T> sum = sum_lanes(sums[j], lanes);
      if (row < rows && lane == 0) emit(row, sum);
    }
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

// Samples that share one reading of the weights.
inline constexpr int kLayerSamples = 4;
// Inputs of a tile: 16 KB of shared memory for four samples (32 KB of doubles), and four vectors of a 16-bit row for
// each lane of a warp.
inline constexpr int kLayerTile = 1024;
inline constexpr int kLayerThreads = 128;
// More, as each thread has four samples' sums of every column of its vectors, and the rows are split between threads.
inline constexpr int kLayerGradThreads = 256;

// Blocks that share the outputs of a layer with rows of `count` elements, for each group of kLayerSamples samples.
template <class T>
__host__ __device__ inline int64_t layer_row_blocks(int64_t outputs, int64_t count) {
  const int rows = kLayerThreads / lanes_for(count % kVectorWidth<T> ? count : count / kVectorWidth<T>);
  return (outputs + rows - 1) / rows;
}

// The inputs of a layer: those of sample n at from[n * sample_pitch + i], summed over `splits`, `split_pitch` apart.
template <class A>
struct LayerInput {
  const A* from;
  int64_t sample_pitch, splits, split_pitch;
};

// staged[s * kPitch + i * kStep] = finish(n, start + i, input), which keep(n, start + i, value) may save, for the
// samples n = first_sample + s and i < length; past the last sample: that one's again.
template <int kPitch, int kStep, class A, class Finish, class Keep>
__device__ __forceinline__ void stage_inputs(A* staged, int64_t start, int length, int64_t first_sample,
                                             int64_t samples, const LayerInput<A>& input, Finish finish, Keep keep) {
  constexpr int kInputs = 2;  // of a thread and sample at once
  const A* from[kLayerSamples];
#pragma unroll
  for (int s = 0; s < kLayerSamples; ++s)
    from[s] = input.from + min(first_sample + s, samples - 1) * input.sample_pitch + start;
  for (int first = threadIdx.x; first < length; first += kInputs * blockDim.x) {
    A values[kInputs][kLayerSamples] = {};
    const int second = min(first + int(blockDim.x), length - 1);  // past the end: the last one again
    const int at[kInputs] = {first, second};
#pragma unroll 4
    for (int split = 0; split < int(input.splits); ++split) {
#pragma unroll
      for (int j = 0; j < kInputs; ++j) {
#pragma unroll
        for (int s = 0; s < kLayerSamples; ++s) values[j][s] += from[s][split * input.split_pitch + at[j]];
      }
    }
#pragma unroll
    for (int j = 0; j < kInputs; ++j) {
#pragma unroll
      for (int s = 0; s < kLayerSamples; ++s)
        values[j][s] = finish(min(first_sample + s, samples - 1), start + at[j], values[j][s]);
    }
#pragma unroll
    for (int j = 0; j < kInputs; ++j) {
      if (first + j * int(blockDim.x) >= length) break;
#pragma unroll
      for (int s = 0; s < kLayerSamples; ++s) {
        staged[s * kPitch + at[j] * kStep] = values[j][s];
        if (first_sample + s < samples) keep(first_sample + s, start + at[j], values[j][s]);
      }
    }
  }
}

// emit(n, row, sum_i weight[row, i] input[n, i]) for the rows of block `row_block` and kLayerSamples samples. A group
// of lanes has a row, and asks for its weights before the inputs are staged.
template <class T, class Finish, class Keep, class Emit>
__device__ void layer_rows(const T* weight, int64_t rows, int64_t count, int64_t row_block, int64_t first_sample,
                           int64_t samples, const LayerInput<accumulate_t<T>>& input, Finish finish, Keep keep,
                           Emit emit) {
  using Sum = accumulate_t<T>;
  constexpr int kW = kVectorWidth<T>, kWide = kVectorWidth<Sum>, kInFlight = kLayerTile / (32 * kW);
  using Wide = Vector<Sum, kWide>;
  SHARED(Wide, staged, [kLayerSamples * kLayerTile / kWide]);
  Sum* const inputs = reinterpret_cast<Sum*>(staged);
  const bool vectorised = count % kW == 0 && misalignment(weight) == 0;
  // Those of layer_row_blocks, which does not know the alignment.
  const int lanes = lanes_for(count % kW ? count : count / kW);
  const int lane = threadIdx.x % lanes;
  const int64_t row = row_block * (blockDim.x / lanes) + threadIdx.x / lanes;
  const T* const weights = weight + min(row, rows - 1) * count;
  Sum sums[kLayerSamples] = {};
  for (int64_t start = 0; start < count; start += kLayerTile) {
    const int length = int(min(int64_t(kLayerTile), count - start));
    Vector<T, kW> loaded[kInFlight];
    if (vectorised) {
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        const int i = (j * lanes + lane) * kW;
        if (i < length) loaded[j] = load<kW>(weights + start + i);
      }
    }
    if (start) __syncthreads();
    stage_inputs<kLayerTile, 1>(inputs, start, length, first_sample, samples, input, finish, keep);
    __syncthreads();
    if (vectorised) {
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        const int i = (j * lanes + lane) * kW;
        if (i >= length) continue;
#pragma unroll
        for (int s = 0; s < kLayerSamples; ++s) {
#pragma unroll
          for (int k = 0; k < kW; k += kWide) {
            const Wide values = load<kWide>(inputs + s * kLayerTile + i + k);
#pragma unroll
            for (int e = 0; e < kWide; ++e) sums[s] += loaded[j].get(k + e) * values.get(e);
          }
        }
      }
    } else {
      strided<4>(
          lane, length, lanes, [&](int i) { return load<1>(weights + start + i); },
          [&](int i, const auto& element) {
#pragma unroll
            for (int s = 0; s < kLayerSamples; ++s) sums[s] += element.get(0) * inputs[s * kLayerTile + i];
          });
    }
  }
#pragma unroll
  for (int s = 0; s < kLayerSamples; ++s) {
    const Sum sum = sum_lanes(sums[s], lanes);
    if (lane == 0 && row < rows && first_sample + s < samples) emit(first_sample + s, row, sum);
  }
}

// Vectors of columns of a block: a sector of 32 bytes at least, and four rows for each thread.
template <class T>
__host__ __device__ inline int layer_lanes(int64_t rows) {
  const int lanes = lanes_for(int64_t(4) * kLayerGradThreads / (rows < 1 ? 1 : rows));
  return lanes < 2 ? 2 : lanes;
}
// Blocks that share the columns of a transposed layer, for each group of kLayerSamples samples.
template <class T>
__host__ __device__ inline int64_t layer_column_blocks(int64_t rows, int64_t columns) {
  const int width = layer_lanes<T>(rows) * kVectorWidth<T>;
  return (columns + width - 1) / width;
}

// emit(n, j, sum_k input[n, k] weight[k, j]) for the columns of block `column_block` and kLayerSamples samples
template <class T, class Finish, class Keep, class Emit>
__device__ void layer_columns(const T* weight, int64_t rows, int64_t columns, int64_t column_block,
                              int64_t first_sample, int64_t samples, const LayerInput<accumulate_t<T>>& input,
                              Finish finish, Keep keep, Emit emit) {
  using Sum = accumulate_t<T>;
  constexpr int kW = kVectorWidth<T>, kTile = kLayerTile, kInFlight = 8;
  using Row = Vector<Sum, kLayerSamples>;
  // First the inputs, [k][sample], and then the sums, [group][element][lane][sample]: in one, as both are large.
  constexpr int kCells = kLayerGradThreads * kW * kLayerSamples;
  SHARED(Row, shared, [(kCells > kTile * kLayerSamples ? kCells : kTile * kLayerSamples) / kLayerSamples]);
  Sum* const cells = reinterpret_cast<Sum*>(shared);
  const bool vectorised = columns % kW == 0 && misalignment(weight) == 0;
  const int lanes = layer_lanes<T>(rows), lane = threadIdx.x % lanes;
  const int group = threadIdx.x / lanes, groups = kLayerGradThreads / lanes;
  const int64_t column = (column_block * lanes + lane) * kW;
  // Threads past the last column load that again; their sums are dropped.
  const T* const from = weight + max(min(column, columns - kW), int64_t(0));
  Sum sums[kW][kLayerSamples] = {};
  for (int64_t start = 0; start < rows; start += kTile) {
    const int length = int(min(int64_t(kTile), rows - start));
    if (start) __syncthreads();
    stage_inputs<1, kLayerSamples>(cells, start, length, first_sample, samples, input, finish, keep);
    __syncthreads();
    const auto multiply = [&](int k, const auto& loaded) {
      const Row values = shared[k];
#pragma unroll
      for (int e = 0; e < kW; ++e) {
#pragma unroll
        for (int s = 0; s < kLayerSamples; ++s) sums[e][s] += loaded.get(e) * values.get(s);
      }
    };
    if (vectorised) {
      strided<kInFlight>(
          group, length, groups, [&](int k) { return load<kW>(from + (start + k) * columns); }, multiply);
    } else {
      strided<2>(
          group, length, groups,
          [&](int k) {
            Sum values[kW];
#pragma unroll
            for (int e = 0; e < kW; ++e)
              values[e] = widen(weight[(start + k) * columns + min(column + e, columns - 1)]);
            Vector<T, kW> loaded;
            loaded.set(values);
            return loaded;
          },
          multiply);
    }
  }
  __syncthreads();
  const int row_cells = lanes * kW * kLayerSamples;
#pragma unroll
  for (int e = 0; e < kW; ++e) {
    Row sum;
    sum.set(sums[e]);
    shared[(group * kW + e) * lanes + lane] = sum;
  }
  sum_rows(cells, groups, row_cells, [&](int cell, Sum sum) {
    const int at = cell / kLayerSamples;  // [element][lane]
    const int64_t n = first_sample + cell % kLayerSamples, j = (column_block * lanes + at % lanes) * kW + at / lanes;
    if (n < samples && j < columns) emit(n, j, sum);
  });
}

}  // namespace attnkernels::squeeze_excite
