// squeeze_excite in two passes over x: kernels for every architecture. Grids are (blocks of a sample, samples).
#pragma once
#include "squeeze_excite/squeeze_excite_layers.cuh"
#include "squeeze_excite/squeeze_excite_plan.h"
#include "squeeze_excite/squeeze_excite_weights.cuh"

namespace attnkernels::squeeze_excite {

// Of the second passes.
template <class T>
inline constexpr int kMapBlocks = sizeof(T) == 8 ? 2 : 4;

template <class T>
struct ForwardArguments {
  using Sum = accumulate_t<T>;
  const T *x, *residual;  // residual: or null
  T* y;
  Sum* saved;      // [N, 2 C + rd]: means, hidden pre-activations, gates
  Sum* partial;    // [N, splits, C] sums over pixels, where splits > 1
  Sum* activated;  // [N, rd], where the hidden layer has its own kernel
  Parameters<T> parameters;
  Shape shape;
  bool vectorised;    // x, residual and y are equally aligned
  bool layer_in_map;  // the blocks of the second pass compute their gates
  int64_t sum_splits;
  Reuse output_reuse;
  Divisor pixel_divisor;  // PlaneWalk::divisor(pixels)
};

template <class T>
struct BackwardArguments {
  using Sum = accumulate_t<T>;
  const T *grad_y, *x, *y;    // y: null without output activation
  T *grad_x, *grad_residual;  // or null
  const Sum* saved;           // [N, 2 C + rd]
  Sum* partial;               // [N, splits, C] sums of dz x
  Sum* grad_logits;           // [N, C] dv
  Sum* grad_hidden;           // [N, rd] du
  Sum* grad_means;            // [N, C] ds / pixels, where the second pass does not compute it
  Parameters<T> parameters;
  Shape shape;
  bool layer_in_map;                     // the blocks of the second pass compute their ds
  bool sums_vectorised, map_vectorised;  // the operands of that pass are equally aligned
  int64_t sum_splits;
  Reuse output_reuse;
  Divisor pixel_divisor;  // PlaneWalk::divisor(pixels)
};

// emit(channel, split, sum over the pixels of this block's split) for the channels of this block's tile
template <bool kChannelsLast, class Source, class Emit>
__device__ void sum_tile(const Source& source, const Shape& shape, const Tiles& tiles, typename Source::Sum* cells,
                         Emit emit) {
  using Sum = typename Source::Sum;
  constexpr int kW = Source::kWidth;
  const int64_t split = blockIdx.x % tiles.splits, first = blockIdx.x / tiles.splits * tiles.channels;
  const int count = int(min(tiles.channels, shape.channels - first));
  const int64_t begin = split * tiles.span;
  const int length = int(min(shape.pixels - begin, tiles.span));
  const auto put = [&](int channel, Sum sum) { emit(first + channel, split, sum); };
  const Source tile = source.moved(kChannelsLast ? begin * shape.channels + first : first * shape.pixels + begin);
  if constexpr (kChannelsLast) {
    if (source.vectorised && count % kW == 0) {
      sum_columns<kW>(tile, length, shape.channels, count, kColumnVectors, cells, put);
    } else {
      sum_columns<1>(tile, length, shape.channels, count, kColumnVectors * kW, cells, put);
    }
  } else if (tiles.short_planes) {
    sum_short_planes(tile, length, count, cells, put);
  } else {
    sum_planes(tile, shape.pixels, length, count, tiles.segments, tiles.lanes, cells, put);
  }
}

// saved[n, c] = sum_p x[n, c, p] / pixels, or the sums of each split into partial[n, split, c]
template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads) squeeze_excite_pool(const ForwardArguments<T> a, const Tiles tiles) {
  using Sum = accumulate_t<T>;
  SHARED_DYNAMIC(Sum, cells);
  launch_dependent_grids();
  const Shape& shape = a.shape;
  const int64_t n = blockIdx.y;
  const PoolSource<T> source{a.x + n * shape.channels * shape.pixels, a.vectorised};
  sum_tile<kChannelsLast>(source, shape, tiles, cells, [&](int64_t channel, int64_t split, Sum sum) {
    if (tiles.splits == 1) {
      a.saved[n * shape.saved_columns() + channel] = sum / Sum(shape.pixels);
    } else {
      a.partial[(n * tiles.splits + split) * shape.channels + channel] = sum;
    }
  });
  wait_for_primary_grid();  // it needs nothing of the samples before
}

// Elements [k, k + kW) of a row of `count`, as a vector where the row is one of vectors; zeros beyond its end.
template <class T>
__device__ __forceinline__ Vector<T, kVectorWidth<T>> load_part(const T* row, int k, int count, bool vectorised) {
  constexpr int kW = kVectorWidth<T>;
  Vector<T, kW> part = {};
  if (vectorised) {
    if (k < count) part = load<kW>(row + k);
    return part;
  }
  accumulate_t<T> values[kW];
#pragma unroll
  for (int i = 0; i < kW; ++i) values[i] = k + i < count ? widen(row[k + i]) : accumulate_t<T>(0);
  part.set(values);
  return part;
}
// The same of kCount sums.
template <int kCount, class Sum>
__device__ __forceinline__ void load_sums(const Sum* row, int k, int count, Sum (&values)[kCount]) {
  constexpr int kQuarter = 16 / sizeof(Sum) < kCount ? 16 / sizeof(Sum) : kCount;
  if (count % kQuarter == 0 && misalignment(row) == 0 && k % kQuarter == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += kQuarter) {
      Vector<Sum, kQuarter> quarter = {};
      if (k + i < count) quarter = load<kQuarter>(row + k + i);
#pragma unroll
      for (int j = 0; j < kQuarter; ++j) values[i + j] = quarter.get(j);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = k + i < count ? row[k + i] : Sum(0);
}

// The means of channels [c, c + kW) of sample n, zeros beyond the last; saved, where splits' sums make them.
template <class T, int kW>
__device__ __forceinline__ void load_means(const ForwardArguments<T>& a, int64_t n, int c, accumulate_t<T> (&means)[kW],
                                           bool save) {
  using Sum = accumulate_t<T>;
  const int channels = int(a.shape.channels);
  Sum* const saved = a.saved + n * a.shape.saved_columns();
  if (a.sum_splits == 1) return load_sums(saved, c, channels, means);
  const Sum* const partial = a.partial + n * a.sum_splits * channels;
#pragma unroll
  for (int i = 0; i < kW; ++i) means[i] = 0;
#pragma unroll 8
  for (int split = 0; split < int(a.sum_splits); ++split) {
    Sum part[kW];
    load_sums(partial + split * channels, c, channels, part);
#pragma unroll
    for (int i = 0; i < kW; ++i) means[i] += part[i];
  }
#pragma unroll
  for (int i = 0; i < kW; ++i) {
    means[i] /= Sum(a.shape.pixels);
    if (save && c + i < channels) saved[c + i] = means[i];
  }
}

// Rows of weights that a group of warps takes together.
inline constexpr int kLayerRows = 8;

// A layer in a kernel of its own, blocks (rows, groups of samples):
// activated[n, r] = activation(sum_c reduce_weight[r, c] mean[n, c] + reduce_bias[r]), or, with kGates,
// gates[n, c] = gate(sum_r expand_weight[c, r] activated[n, r] + expand_bias[c])
// These kernels are all latency: a thread has a vector of inputs of several samples and the weights of several rows for
// them, all asked for at once, the weights even before the inputs are there.
template <class T, bool kGates, int kSamples>
__global__ void __launch_bounds__(kThreads, 2)
    squeeze_excite_layer(const ForwardArguments<T> a, const int group_warps) {
  using Sum = accumulate_t<T>;
  constexpr int kW = kVectorWidth<T>, kCount = kLayerRows * kSamples;
  SHARED(Sum, cells, [kThreads / 32 * kCount]);
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
  Vector<T, kW> weights[kLayerRows];
  const auto fetch = [&](int k) {
#pragma unroll
    for (int r = 0; r < kLayerRows; ++r)
      weights[r] = load_part(weight + min(first_row + r, rows - 1) * inputs, k, inputs, vectorised);
  };
  int k = (warp % group_warps * 32 + threadIdx.x % 32) * kW;
  fetch(k);
  // What this thread will have to do with a sum.
  const int64_t row = block_row + threadIdx.x / kSamples, n = first + threadIdx.x % kSamples;
  const bool has_sum = threadIdx.x < groups * kCount && row < rows && n < shape.samples;
  const Sum added = has_sum && bias ? widen(bias[row]) : Sum(0);

  wait_for_primary_grid();
  Sum values[kCount] = {};
  for (; k < inputs; k += step) {
    Sum input[kSamples][kW];
#pragma unroll
    for (int s = 0; s < kSamples; ++s) {
      const int64_t of = min(first + s, shape.samples - 1);
      if (kGates && shape.hidden) {
        load_sums(a.activated + of * inputs, k, inputs, input[s]);
      } else {
        load_means(a, of, k, input[s], first_row == 0 && of == first + s);
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
  Sum value = added;
  for (int w = 0; w < group_warps; ++w)
    value += cells[(threadIdx.x / kCount * group_warps + w) * kCount + threadIdx.x % kCount];
  Sum* const saved = a.saved + n * shape.saved_columns() + shape.channels;
  if constexpr (kGates) {
    saved[shape.hidden + row] = open_gate(value, shape.gate);
  } else {
    saved[row] = value;
    a.activated[n * shape.hidden + row] = activate(value, shape.activation);
  }
}

// The channels whose coefficients a block of the second pass needs, and its elements or pixels.
struct MapRange {
  int64_t first, count;  // channels
  int64_t begin, end;    // elements of the sample, or pixels where channels_last
};

template <bool kChannelsLast>
__device__ MapRange map_range(const Shape& shape, const Tiles& tiles) {
  // Against the order of the first pass: what that read last is the likeliest to be still in the cache.
  const int64_t block = gridDim.x - 1 - blockIdx.x;
  const int64_t begin = block % tiles.splits * tiles.span;
  if constexpr (kChannelsLast) {
    const int64_t first = block / tiles.splits * tiles.channels;
    return {first, min(tiles.channels, shape.channels - first), begin, min(shape.pixels, begin + tiles.span)};
  } else {
    const int64_t end = min(shape.channels * shape.pixels, begin + tiles.span);
    const int64_t first = begin / shape.pixels;
    return {first, (end - 1) / shape.pixels - first + 1, begin, end};
  }
}

// A block's part of a map, whose first elements are fetched when it is made.
template <bool kChannelsLast, class Map>
class MapTile {
 public:
  __device__ __forceinline__ MapTile(const Map& map, const Shape& shape, const MapRange& range, const Divisor& pixels)
      : map_(map.moved(kChannelsLast ? range.begin * shape.channels + range.first : range.begin)),
        walk_(pixels, shape.pixels, range.begin - range.first * shape.pixels),
        rows_(int(range.end - range.begin)),
        columns_(int(range.count)),
        pitch_(shape.channels) {
    if constexpr (!kChannelsLast) {
      fetch_planes_ahead(map_, rows_, walk_, ahead_);
    } else if (vectorised()) {
      fetch_columns_ahead<Map::kWidth>(map_, rows_, pitch_, columns_, kColumnVectors, ahead_);
    }
  }

  // scale and shift (null: zeros): of the range's channels
  template <class Sum>
  __device__ __forceinline__ void apply(const Sum* scale, const Sum* shift) {
    if constexpr (!kChannelsLast) {
      map_planes(map_, rows_, walk_, scale, shift, ahead_);
    } else if (vectorised()) {
      map_columns<Map::kWidth>(map_, rows_, pitch_, columns_, kColumnVectors, scale, shift, ahead_);
    } else {
      constexpr int kLanes = kColumnVectors * Map::kWidth;
      Ahead<Map, 1> ahead;
      fetch_columns_ahead<1>(map_, rows_, pitch_, columns_, kLanes, ahead);
      map_columns<1>(map_, rows_, pitch_, columns_, kLanes, scale, shift, ahead);
    }
  }

 private:
  __device__ bool vectorised() const { return map_.vectorised && columns_ % Map::kWidth == 0; }

  Map map_;
  PlaneWalk walk_;
  int rows_, columns_;  // rows_: pixels, or elements of planes
  int64_t pitch_;
  Ahead<Map> ahead_;
};

// y[n, c, p] = output_activation(x[n, c, p] gate(sum_r expand_weight[c, r] hidden[n, r] + expand_bias[c]) + residual)
template <class T, bool kChannelsLast, bool kResidual>
__global__ void __launch_bounds__(kThreads, kMapBlocks<T>)
    squeeze_excite_scale(const ForwardArguments<T> a, const Tiles tiles) {
  using Sum = accumulate_t<T>;
  SHARED_DYNAMIC(Sum, shared);
  launch_dependent_grids();
  const Shape& shape = a.shape;
  const MapRange range = map_range<kChannelsLast>(shape, tiles);
  const int64_t n = gridDim.y - 1 - blockIdx.y, offset = n * shape.channels * shape.pixels;
  // x and the residual are older than the kernels of this call.
  MapTile<kChannelsLast, ScaleMap<T, kResidual>> tile(
      {a.x + offset, kResidual ? a.residual + offset : nullptr, a.y + offset,
       shape.output_activation == OutputActivation::kRelu, a.output_reuse, a.vectorised},
      shape, range, a.pixel_divisor);
  const int count = int(range.count), width = int(shape.hidden);
  Sum* const gates = shared;                             // [tiles.channels]
  Sum* const bias = gates + padded(tiles.channels);      // [tiles.channels], where the gates are computed here
  Sum* const activated = bias + padded(tiles.channels);  // [rd]
  T* const weights = reinterpret_cast<T*>(activated + padded(width));  // [count, rd]
  if (a.layer_in_map) {
    stage_weights(a.parameters.expand_weight + range.first * width, 0, 1, count * width, weights);
    const T* const biases = a.parameters.expand_bias;
    stage(bias, count, [&](int j) { return biases ? widen(biases[range.first + j]) : Sum(0); });
  }
  wait_for_primary_grid();
  Sum* const saved = a.saved + n * shape.saved_columns() + shape.channels + shape.hidden;
  if (a.layer_in_map) {
    const Sum* const input = a.activated + n * width;
    stage(activated, width, [&](int r) { return input[r]; });
    __syncthreads();
    multiply_staged(weights, count, width, width, 1, activated, [&](int j, Sum sum) {
      gates[j] = open_gate(sum + bias[j], shape.gate);
      // Saved by the block that has the channel's first pixel.
      const int64_t c = range.first + j;
      if (range.begin <= (kChannelsLast ? 0 : c * shape.pixels)) saved[c] = gates[j];
    });
  } else {
    stage(gates, count, [&](int j) { return saved[range.first + j]; });
  }
  __syncthreads();
  tile.apply(gates, static_cast<const Sum*>(nullptr));
}

// dv[n, c] = gate'(v[n, c]) sum_p dz[n, c, p] x[n, c, p], or the sums of each split into partial[n, split, c]
template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    squeeze_excite_backward_sums(const BackwardArguments<T> a, const Tiles tiles) {
  using Sum = accumulate_t<T>;
  SHARED_DYNAMIC(Sum, cells);
  launch_dependent_grids();
  const Shape& shape = a.shape;
  const int64_t n = blockIdx.y;
  const int64_t offset = n * shape.channels * shape.pixels;
  const GradSource<T> source{a.grad_y + offset, a.x + offset, a.y ? a.y + offset : nullptr, a.sums_vectorised};
  const Sum* const gates = a.saved + n * shape.saved_columns() + shape.channels + shape.hidden;
  sum_tile<kChannelsLast>(source, shape, tiles, cells, [&](int64_t channel, int64_t split, Sum sum) {
    if (tiles.splits == 1) {
      a.grad_logits[n * shape.channels + channel] = sum * gate_derivative(gates[channel], shape.gate);
    } else {
      a.partial[(n * tiles.splits + split) * shape.channels + channel] = sum;
    }
  });
  wait_for_primary_grid();  // it needs nothing of the samples before
}

// dv of channels [c, c + kCount) of sample n, zeros beyond the last; written, where splits' sums make them.
template <class T, int kCount>
__device__ __forceinline__ void load_logit_grads(const BackwardArguments<T>& a, int64_t n, int c,
                                                 accumulate_t<T> (&grads)[kCount], bool write) {
  using Sum = accumulate_t<T>;
  const int channels = int(a.shape.channels);
  Sum* const grad_logits = a.grad_logits + n * channels;
  if (a.sum_splits == 1) return load_sums(grad_logits, c, channels, grads);
  const Sum* const partial = a.partial + n * a.sum_splits * channels;
  const Sum* const gates = a.saved + n * a.shape.saved_columns() + channels + a.shape.hidden;
  Sum opened[kCount];
  load_sums(gates, c, channels, opened);
#pragma unroll
  for (int i = 0; i < kCount; ++i) grads[i] = 0;
#pragma unroll 8
  for (int split = 0; split < int(a.sum_splits); ++split) {
    Sum part[kCount];
    load_sums(partial + split * channels, c, channels, part);
#pragma unroll
    for (int i = 0; i < kCount; ++i) grads[i] += part[i];
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    grads[i] *= gate_derivative(opened[i], a.shape.gate);
    if (write && c + i < channels) grad_logits[c + i] = grads[i];
  }
}

// Vectors of columns that a block of a layer's gradient takes. Few where the sums are long: 32 bytes of a row, one
// sector, and many rows at once.
template <bool kMeans>
inline constexpr int kGradVectors = kMeans ? 16 : 2;
inline constexpr int kGradRows = 4;  // that a thread has under way

// The gradient of a layer's inputs in a kernel of its own, blocks (columns, groups of samples):
// du[n, r] = activation'(u[n, r]) sum_c dv[n, c] expand_weight[c, r], or, with kMeans,
// ds[n, c] = sum_r du[n, r] reduce_weight[r, c] / pixels (of dv and expand_weight in the single-layer excitation)
// The first blocks also write dv where it is not yet there.
template <class T, bool kMeans, int kSamples>
__global__ void __launch_bounds__(kThreads, 2) squeeze_excite_backward_layer(const BackwardArguments<T> a) {
  using Sum = accumulate_t<T>;
  constexpr int kW = kVectorWidth<T>, kLanes = kGradVectors<kMeans>, kGroups = kThreads / kLanes;
  constexpr int kCount = kW * kSamples, kHeld = spread_count<kCount, kLanes>;
  constexpr int kColumns = kLanes * kW;
  SHARED(Sum, cells, [kThreads / 32 * kColumns * kSamples]);
  launch_dependent_grids();
  const Shape& shape = a.shape;
  const bool of_logits = !kMeans || !shape.hidden;
  const int inputs = int(!of_logits ? shape.hidden : shape.constant_gates ? 0 : shape.channels);
  const int outputs = int(kMeans ? shape.channels : shape.hidden);
  const T* const weight = of_logits ? a.parameters.expand_weight : a.parameters.reduce_weight;
  const int64_t first = int64_t(blockIdx.y) * kSamples;
  const bool vectorised = outputs % kW == 0 && misalignment(weight) == 0;
  const int first_column = blockIdx.x * kColumns, column = first_column + threadIdx.x % kLanes * kW;
  // Neighbouring groups take neighbouring rows.
  Vector<T, kW> weights[kGradRows];
  const auto fetch = [&](int k) {
#pragma unroll
    for (int j = 0; j < kGradRows; ++j)
      weights[j] = load_part(weight + int64_t(min(k + j, inputs - 1)) * outputs, column, outputs, vectorised);
  };
  int k = int(threadIdx.x) / kLanes * kGradRows;
  if (outputs && inputs) fetch(k);

  wait_for_primary_grid();
  Sum values[kCount] = {};
  for (; k < inputs; k += kGroups * kGradRows) {
    Sum input[kSamples][kGradRows];
#pragma unroll
    for (int s = 0; s < kSamples; ++s) {
      const int64_t n = min(first + s, shape.samples - 1);
      if (of_logits) {
        load_logit_grads(a, n, k, input[s], !kMeans && n == first + s && blockIdx.x == 0 && threadIdx.x % kLanes == 0);
      } else {
        load_sums(a.grad_hidden + n * inputs, k, inputs, input[s]);
      }
    }
#pragma unroll
    for (int j = 0; j < kGradRows; ++j)
#pragma unroll
      for (int s = 0; s < kSamples; ++s)
#pragma unroll
        for (int i = 0; i < kW; ++i) values[s * kW + i] += weights[j].get(i) * input[s][j];
    if (outputs && k + kGroups * kGradRows < inputs) fetch(k + kGroups * kGradRows);
  }
  sum_spread<kCount, kLanes>(values);
  // cells[warp][value][vector of columns]
  if (leads_spread<kCount, kLanes>()) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
      cells[(threadIdx.x / 32 * kCount + first_spread<kCount, kLanes>() + i) * kLanes + threadIdx.x % kLanes] =
          values[i];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kCount * kLanes; i += kThreads) {
    const int output = first_column + i % kLanes * kW + i / kLanes % kW;
    const int64_t n = first + i / kColumns;
    if (output >= outputs || n >= shape.samples) continue;
    Sum sum = 0;
#pragma unroll
    for (int warp = 0; warp < kThreads / 32; ++warp) sum += cells[warp * kCount * kLanes + i];
    if constexpr (kMeans) {
      a.grad_means[n * shape.channels + output] = sum / Sum(shape.pixels);
    } else {
      const Sum u = a.saved[n * shape.saved_columns() + shape.channels + output];
      a.grad_hidden[n * shape.hidden + output] = sum * activation_derivative(u, shape.activation);
    }
  }
}

// grad_x[n, c, p] = dz g[n, c] + ds[n, c] / pixels, ds = reduce_weight^T du; grad_residual = dz. The first rows of the
// grid take the gradients of the weights instead.
template <class T, bool kChannelsLast, bool kClip>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    squeeze_excite_backward_map(const BackwardArguments<T> a, const Tiles tiles, const WeightGrads<T> weight_grads) {
  using Sum = accumulate_t<T>;
  SHARED_DYNAMIC(Sum, shared);
  launch_dependent_grids();
  const Shape& shape = a.shape;
  if (blockIdx.y < weight_grads.grid_rows) {
    wait_for_primary_grid();
    weight_grads.compute(blockIdx.y * gridDim.x + blockIdx.x, shared);
    return;
  }
  const MapRange range = map_range<kChannelsLast>(shape, tiles);
  const int64_t n = gridDim.y - 1 - blockIdx.y, offset = n * shape.channels * shape.pixels;
  // dy and y are older than the kernels of this call.
  MapTile<kChannelsLast, GradMap<T, kClip>> tile(
      {a.grad_y + offset, kClip ? a.y + offset : nullptr, a.grad_x ? a.grad_x + offset : nullptr,
       a.grad_residual ? a.grad_residual + offset : nullptr, a.output_reuse, a.map_vectorised},
      shape, range, a.pixel_divisor);
  // Whole vectors of columns, beyond the range at both ends where they are there.
  constexpr int kW = kVectorWidth<T>;
  const int rows = int(shape.hidden), count = int(range.count);
  const bool widened = a.layer_in_map && shape.channels % kW == 0;
  const int before = widened ? int(range.first % kW) : 0;
  const int columns = widened ? (before + count + kW - 1) / kW * kW : count;
  Sum* const scale = shared;                                            // [tiles.channels]
  Sum* const shift = scale + padded(tiles.channels);                    // [tiles.channels]
  Sum* const grad_hidden = shift + padded(tiles.channels);              // [rd], where ds is computed here
  T* const weights = reinterpret_cast<T*>(grad_hidden + padded(rows));  // [rd, columns]
  if (a.grad_x && a.layer_in_map)
    stage_weights(a.parameters.reduce_weight + range.first - before, shape.channels, rows, columns, weights);
  wait_for_primary_grid();
  if (a.grad_x) {
    const Sum* const gates = a.saved + n * shape.saved_columns() + shape.channels + shape.hidden + range.first;
    stage(scale, count, [&](int j) { return gates[j]; });
    if (a.layer_in_map) {
      const Sum* const input = a.grad_hidden + n * rows;
      stage(grad_hidden, rows, [&](int r) { return input[r]; });
      __syncthreads();
      multiply_staged(weights + before, count, 1, rows, columns, grad_hidden,
                      [&](int j, Sum sum) { shift[j] = sum / Sum(shape.pixels); });
    } else {
      const Sum* const means = a.grad_means + n * shape.channels + range.first;
      stage(shift, count, [&](int j) { return means[j]; });
    }
    __syncthreads();
  }
  const Sum* const none = nullptr;  // grad_residual alone takes no coefficients
  tile.apply(a.grad_x ? scale : none, a.grad_x ? shift : none);
}

}  // namespace attnkernels::squeeze_excite
