// squeeze_excite in two passes over x: kernels for every architecture. Grids are (blocks of a sample, samples).
#pragma once
#include "squeeze_excite/squeeze_excite_layers.cuh"
#include "squeeze_excite/squeeze_excite_plan.h"

namespace attnkernels::squeeze_excite {

inline constexpr int kThreads = 256;  // Limits::threads, and those of the kernels between the passes
// Blocks that a multiprocessor must at least have registers for: 80 a thread, 128 for double. Unbounded, the compiler
// spills a few to reach an occupancy that these kernels do not need.
template <class T>
inline constexpr int kBlocks = sizeof(T) == 8 ? 2 : 3;
// Samples that share one reading of the weights in the hidden layer's own kernel.
inline constexpr int kHiddenSamples = 4;

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
  bool vectorised;  // x, residual and y are equally aligned
  bool fused_hidden;
  int64_t sum_splits;
  Reuse output_reuse;
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
  Parameters<T> parameters;
  Shape shape;
  bool sums_vectorised, map_vectorised;  // the operands of that pass are equally aligned
  int64_t sum_splits;
  Reuse output_reuse;
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
}

// The sum over splits of partial[split * channels + c], in their order.
template <class A>
__device__ __forceinline__ A sum_splits(const A* partial, int splits, int64_t channels, int64_t c) {
  A sum = 0;
  strided<8>(0, splits, 1, [&](int split) { return partial[split * channels + c]; }, [&](int, A part) { sum += part; });
  return sum;
}

// The means of sample n to `staged`, added up from the splits' sums, and then saved by one block.
template <class T>
__device__ void stage_means(const ForwardArguments<T>& a, int64_t n, accumulate_t<T>* staged, bool save) {
  using Sum = accumulate_t<T>;
  Sum* const saved = a.saved + n * a.shape.saved_columns();
  for (int64_t c = threadIdx.x; c < a.shape.channels; c += blockDim.x) {
    if (a.sum_splits == 1) {
      staged[c] = saved[c];
    } else {
      staged[c] = sum_splits(a.partial + n * a.sum_splits * a.shape.channels, int(a.sum_splits), a.shape.channels, c) /
                  Sum(a.shape.pixels);
      if (save) saved[c] = staged[c];
    }
  }
}

// activated[n, r] = activation(sum_c reduce_weight[r, c] mean[n, c] + reduce_bias[r])      a warp for each r
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    squeeze_excite_hidden(const ForwardArguments<T> a, const int samples_each) {
  using Sum = accumulate_t<T>;
  constexpr int kW = kVectorWidth<T>, kQuarter = 16 / sizeof(Sum);
  SHARED_DYNAMIC(Sum, shared);
  const Shape& shape = a.shape;
  const int lane = threadIdx.x % 32, channels = int(shape.channels);
  const int64_t row = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const int64_t first = int64_t(blockIdx.y) * samples_each;
  const int samples = int(min(int64_t(samples_each), shape.samples - first));
  const int64_t staged = staged_length<Sum>(shape.channels);
  if (staged) {  // otherwise they are too many for that: there are no splits then, and they are saved
    for (int s = 0; s < samples; ++s) stage_means(a, first + s, shared + s * staged, blockIdx.x == 0);
  }
  __syncthreads();

  Sum sums[kHiddenSamples] = {};
  // Shared and global memory in code of their own: nvcc 13.0 was seen to read a pointer that may be either as global.
  const auto multiply = [&](const Sum* means, int64_t pitch) {
    const T* const weights = a.parameters.reduce_weight + row * shape.channels;
    const auto walk = [&](auto width) {
      constexpr int kN = decltype(width)::value, kPart = kN < kQuarter ? kN : kQuarter;
      strided<4>(
          lane * kN, channels, 32 * kN, [&](int k) { return load<kN>(weights + k); },
          [&](int k, const auto& loaded) {
#pragma unroll
            for (int s = 0; s < kHiddenSamples; ++s) {
              if (s >= samples) break;
#pragma unroll
              for (int i = 0; i < kN; i += kPart) {
                const auto inputs = load<kPart>(means + s * pitch + k + i);
#pragma unroll
                for (int h = 0; h < kPart; ++h) sums[s] += loaded.get(i + h) * inputs.get(h);
              }
            }
          });
    };
    if (channels % kW == 0 && misalignment(a.parameters.reduce_weight) == 0 && misalignment(means) == 0) {
      walk(std::integral_constant<int, kW>());
    } else {
      walk(std::integral_constant<int, 1>());
    }
  };
  if (row < shape.hidden) {
    if (staged) {
      multiply(shared, staged);
    } else {
      multiply(a.saved + first * shape.saved_columns(), shape.saved_columns());
    }
  }
#pragma unroll
  for (int s = 0; s < kHiddenSamples; ++s) {
    const Sum sum = sum_lanes(sums[s], 32);
    if (lane == 0 && row < shape.hidden && s < samples) {
      const Sum u = a.parameters.reduce_bias ? sum + widen(a.parameters.reduce_bias[row]) : sum;
      a.saved[(first + s) * shape.saved_columns() + shape.channels + row] = u;
      a.activated[(first + s) * shape.hidden + row] = activate(u, shape.activation);
    }
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

template <bool kChannelsLast, class Map, class Sum>
__device__ void map_tile(const Map& map, const Shape& shape, const MapRange& range, const Sum* scale,
                         const Sum* shift) {
  constexpr int kW = Map::kWidth;
  const int columns = int(range.count), rows = int(range.end - range.begin);  // or elements, of planes
  if constexpr (!kChannelsLast) {
    map_planes(map.moved(range.begin), rows, shape.pixels, range.begin - range.first * shape.pixels, scale, shift);
  } else if (map.vectorised && columns % kW == 0) {
    map_columns<kW>(map.moved(range.begin * shape.channels + range.first), rows, shape.channels, columns,
                    kColumnVectors, scale, shift);
  } else {
    map_columns<1>(map.moved(range.begin * shape.channels + range.first), rows, shape.channels, columns,
                   kColumnVectors * kW, scale, shift);
  }
}

// y[n, c, p] = output_activation(x[n, c, p] gate(sum_r expand_weight[c, r] hidden[n, r] + expand_bias[c]) + residual)
template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    squeeze_excite_scale(const ForwardArguments<T> a, const Tiles tiles) {
  using Sum = accumulate_t<T>;
  SHARED_DYNAMIC(Sum, shared);
  const Shape& shape = a.shape;
  const int64_t staged_means = staged_length<Sum>(shape.channels), staged_hidden = staged_length<Sum>(shape.hidden);
  Sum* const means = shared;  // with fused_hidden or without a hidden layer
  Sum* const activated = means + (a.fused_hidden || !shape.hidden ? staged_means : 0);
  Sum* const gates = activated + staged_hidden;  // [tiles.channels]
  const MapRange range = map_range<kChannelsLast>(shape, tiles);
  const int64_t n = gridDim.y - 1 - blockIdx.y;
  Sum* const saved = a.saved + n * shape.saved_columns();
  if ((a.fused_hidden || !shape.hidden) && staged_means) {
    stage_means(a, n, means, blockIdx.x == 0);
    __syncthreads();
  }
  if (a.fused_hidden) {  // then both layers' inputs are staged
    multiply_rows(a.parameters.reduce_weight, shape.channels, int(shape.hidden), int(shape.channels), means,
                  [&](int r, Sum sum) {
                    const Sum u = a.parameters.reduce_bias ? sum + widen(a.parameters.reduce_bias[r]) : sum;
                    activated[r] = activate(u, shape.activation);
                    if (blockIdx.x == 0) saved[shape.channels + r] = u;
                  });
    __syncthreads();
  } else if (staged_hidden) {
    for (int64_t r = threadIdx.x; r < shape.hidden; r += blockDim.x) activated[r] = a.activated[n * shape.hidden + r];
    __syncthreads();
  }
  const int64_t width = shape.gate_inputs();
  const auto compute_gates = [&](const Sum* input) {
    multiply_rows(a.parameters.expand_weight + range.first * width, width, int(range.count), int(width), input,
                  [&](int j, Sum sum) {
                    const int64_t c = range.first + j;
                    const Sum v = a.parameters.expand_bias ? sum + widen(a.parameters.expand_bias[c]) : sum;
                    gates[j] = open_gate(v, shape.gate);
                    // Saved by the block that has the channel's first pixel.
                    if (range.begin <= (kChannelsLast ? 0 : c * shape.pixels))
                      saved[shape.channels + shape.hidden + c] = gates[j];
                  });
  };
  if (shape.hidden ? staged_hidden : staged_means) {
    compute_gates(shape.hidden ? activated : means);
  } else {
    compute_gates(shape.hidden ? a.activated + n * shape.hidden : saved);
  }
  __syncthreads();
  const int64_t offset = n * shape.channels * shape.pixels;
  const ScaleMap<T> map{a.x + offset, a.residual ? a.residual + offset : nullptr,         a.y + offset,
                        nullptr,      shape.output_activation == OutputActivation::kRelu, a.output_reuse,
                        a.vectorised};
  map_tile<kChannelsLast>(map, shape, range, gates, static_cast<const Sum*>(nullptr));
}

// partial[n, split, c] = sum_p dz[n, c, p] x[n, c, p]
template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    squeeze_excite_backward_sums(const BackwardArguments<T> a, const Tiles tiles) {
  using Sum = accumulate_t<T>;
  SHARED_DYNAMIC(Sum, cells);
  const Shape& shape = a.shape;
  const int64_t n = blockIdx.y;
  const int64_t offset = n * shape.channels * shape.pixels;
  const GradSource<T> source{a.grad_y + offset, a.x + offset, a.y ? a.y + offset : nullptr, a.sums_vectorised};
  sum_tile<kChannelsLast>(source, shape, tiles, cells, [&](int64_t channel, int64_t split, Sum sum) {
    a.partial[(n * tiles.splits + split) * shape.channels + channel] = sum;
  });
}

// dv[c] = gate'(v[c]) sum_split partial[split, c], as an array that is computed at each reading
template <class T>
struct GradLogits {
  using Sum = accumulate_t<T>;
  const Sum *partial, *gates;
  int splits;
  int64_t channels;
  Gate gate;
  __device__ GradLogits(const BackwardArguments<T>& a, int64_t n)
      : partial(a.partial + n * a.sum_splits * a.shape.channels),
        gates(a.saved + n * a.shape.saved_columns() + a.shape.channels + a.shape.hidden),
        splits(int(a.sum_splits)),
        channels(a.shape.channels),
        gate(a.shape.gate) {}
  __device__ Sum operator[](int64_t c) const {
    return sum_splits(partial, splits, channels, c) * gate_derivative(gates[c], gate);
  }
};

// Vectors of columns that a block of the hidden layer's gradient takes: 32 bytes of a row, one sector, so that there
// are many blocks and many rows at once.
inline constexpr int kHiddenGradVectors = 2;

// du[n, r] = activation'(u[n, r]) sum_c dv[n, c] expand_weight[c, r]; the first block also writes dv[n, :]
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) squeeze_excite_backward_hidden(const BackwardArguments<T> a) {
  using Sum = accumulate_t<T>;
  SHARED(Sum, cells, [kThreads * kVectorWidth<T>]);
  SHARED_DYNAMIC(Sum, staged);
  const Shape& shape = a.shape;
  const int64_t width = kHiddenGradVectors * kVectorWidth<T>, first = blockIdx.x * width;
  const int64_t n = blockIdx.y;
  const GradLogits<T> grad_logits(a, n);
  const bool is_staged = staged_length<Sum>(shape.channels);
  if (is_staged || blockIdx.x == 0) {
    for (int64_t c = threadIdx.x; c < shape.channels; c += blockDim.x) {
      const Sum dv = grad_logits[c];
      if (is_staged) staged[c] = dv;
      if (blockIdx.x == 0) a.grad_logits[n * shape.channels + c] = dv;
    }
  }
  __syncthreads();
  if (first >= shape.hidden) return;
  const Sum* const u = a.saved + n * shape.saved_columns() + shape.channels;
  const auto put = [&](int j, Sum sum) {
    a.grad_hidden[n * shape.hidden + first + j] = sum * activation_derivative(u[first + j], shape.activation);
  };
  const T* const weight = a.parameters.expand_weight + first;
  const int columns = int(min(width, shape.hidden - first)), channels = int(shape.channels);
  if (is_staged) {
    multiply_columns(weight, shape.hidden, channels, columns, kHiddenGradVectors, staged, cells, put);
  } else {
    multiply_columns(weight, shape.hidden, channels, columns, kHiddenGradVectors, grad_logits, cells, put);
  }
}

// grad_x[n, c, p] = dz g[n, c] + ds[n, c] / pixels, ds = reduce_weight^T du; grad_residual = dz
template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    squeeze_excite_backward_map(const BackwardArguments<T> a, const Tiles tiles) {
  using Sum = accumulate_t<T>;
  SHARED_DYNAMIC(Sum, shared);
  const Shape& shape = a.shape;
  Sum* const cells = shared;  // [threads * vector]
  Sum* scale = cells + blockDim.x * kVectorWidth<T>;
  Sum* shift = scale + tiles.channels + 2 * kVectorWidth<T>;
  const MapRange range = map_range<kChannelsLast>(shape, tiles);
  const int64_t n = gridDim.y - 1 - blockIdx.y;
  const Sum* const gates = a.saved + n * shape.saved_columns() + shape.channels + shape.hidden;
  const Sum* const input = shape.hidden ? a.grad_hidden + n * shape.hidden : a.grad_logits + n * shape.channels;
  if (a.grad_x) {
    // Whole vectors of columns, beyond the range at both ends where they are there: few rounds of wide loads.
    constexpr int kW = kVectorWidth<T>;
    const int64_t first = shape.channels % kW ? range.first : range.first / kW * kW;
    const int64_t end = range.first + range.count, last = shape.channels % kW ? end : (end + kW - 1) / kW * kW;
    const T* const weight = shape.hidden ? a.parameters.reduce_weight : a.parameters.expand_weight;
    multiply_columns(weight + first, shape.channels, int(shape.gate_inputs()), int(last - first), kColumnVectors, input,
                     cells, [&](int j, Sum sum) {
                       shift[j] = sum / Sum(shape.pixels);
                       scale[j] = gates[first + j];
                     });
    scale += range.first - first;
    shift += range.first - first;
  }
  const int64_t offset = n * shape.channels * shape.pixels;
  const GradMap<T> map{a.grad_y + offset,
                       a.y ? a.y + offset : nullptr,
                       a.grad_x ? a.grad_x + offset : nullptr,
                       a.grad_residual ? a.grad_residual + offset : nullptr,
                       nullptr,
                       a.output_reuse,
                       a.map_vectorised};
  const Sum* const none = nullptr;  // grad_residual alone takes no coefficients
  map_tile<kChannelsLast>(map, shape, range, a.grad_x ? scale : none, a.grad_x ? shift : none);
}

template <class T>
struct WeightGradArguments {
  using Sum = accumulate_t<T>;
  const Sum *grad_logits, *grad_hidden;                                              // [N, C], [N, rd]
  const Sum* saved;                                                                  // [N, 2 C + rd]
  T *grad_reduce_weight, *grad_reduce_bias, *grad_expand_weight, *grad_expand_bias;  // or null
  Shape shape;
};

// weight[i, j] = sum_n rows[n, i] f(columns[n, j]), bias[i] = sum_n rows[n, i]: the samples in their order
template <class T, class Map>
__device__ void outer_sum(int64_t samples, const accumulate_t<T>* rows, int64_t row_pitch, int64_t row_count,
                          const accumulate_t<T>* columns, int64_t column_pitch, int64_t column_count, T* weight,
                          T* bias, Map map) {
  using Sum = accumulate_t<T>;
  const int64_t weights = weight ? row_count * column_count : 0, outputs = weights + (bias ? row_count : 0);
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < outputs; i += int64_t(gridDim.x) * blockDim.x) {
    Sum sum = 0;
    if (i < weights) {
      const Sum* const row = rows + i / column_count;
      const Sum* const column = columns + i % column_count;
#pragma unroll 8
      for (int64_t n = 0; n < samples; ++n) sum += row[n * row_pitch] * map(column[n * column_pitch]);
      weight[i] = narrow<T>(sum);
    } else {
#pragma unroll 8
      for (int64_t n = 0; n < samples; ++n) sum += rows[n * row_pitch + i - weights];
      bias[i - weights] = narrow<T>(sum);
    }
  }
}

// d expand_weight = sum_n dv activation(u)^T, d reduce_weight = sum_n du s^T, and the biases       blockIdx.y: which
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    squeeze_excite_backward_weights(const WeightGradArguments<T> a) {
  using Sum = accumulate_t<T>;
  const Shape& shape = a.shape;
  const int64_t pitch = shape.saved_columns();
  const auto same = [](Sum value) { return value; };
  if (blockIdx.y == 0 && shape.hidden) {
    outer_sum(shape.samples, a.grad_logits, shape.channels, shape.channels, a.saved + shape.channels, pitch,
              shape.hidden, a.grad_expand_weight, a.grad_expand_bias,
              [&](Sum value) { return activate(value, shape.activation); });
  } else if (blockIdx.y == 0) {
    outer_sum(shape.samples, a.grad_logits, shape.channels, shape.channels, a.saved, pitch, shape.gate_inputs(),
              a.grad_expand_weight, a.grad_expand_bias, same);
  } else {
    outer_sum(shape.samples, a.grad_hidden, shape.hidden, shape.hidden, a.saved, pitch, shape.channels,
              a.grad_reduce_weight, a.grad_reduce_bias, same);
  }
}

}  // namespace attnkernels::squeeze_excite
