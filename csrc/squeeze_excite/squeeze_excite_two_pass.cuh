// squeeze_excite in two passes over x: kernels for every architecture. A pass has tiles.blocks() blocks a sample.
#pragma once
#include "squeeze_excite/squeeze_excite_layers.cuh"
#include "squeeze_excite/squeeze_excite_plan.h"

namespace attnkernels::squeeze_excite {

inline constexpr int kThreads = 128;  // Limits::threads
// Blocks that a multiprocessor must at least have registers for: 80 a thread, 128 for double. Unbounded, the compiler
// spills a few to reach an occupancy that these kernels do not need.
template <class T>
inline constexpr int kBlocks = sizeof(T) == 8 ? 4 : 6;
// Vectors that a thread of a map loads at once: 16-byte loads of 24 warps are 48 KB underway on a multiprocessor, or
// 24 KB where registers are short.
template <class T>
inline constexpr int kMapInFlight = sizeof(T) == 8 ? 2 : 4;

template <class T>
struct ForwardArguments {
  using Sum = accumulate_t<T>;
  const T *x, *residual;  // residual: or null
  T* y;
  Sum* saved;      // [N, 2 C + rd]: means, hidden pre-activations, gates
  Sum* partial;    // [N, splits, C] sums over pixels
  Sum* activated;  // [N, rd]
  Parameters<T> parameters;
  Shape shape;
  bool vectorised;  // x, residual and y are equally aligned
  bool own_gates;   // the gates are in `saved` before the second pass
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
  Sum* grad_means;            // [N, C] ds / pixels
  Parameters<T> parameters;
  Shape shape;
  bool sums_vectorised, map_vectorised;  // the operands of that pass are equally aligned
  int64_t sum_splits;
  Reuse output_reuse;
};

// Which part of which sample a block of a pass has.
struct Part {
  int64_t n, tile, split;
  __device__ Part(const Tiles& tiles, uint32_t block) {
    const uint32_t splits = uint32_t(tiles.splits), blocks = uint32_t(tiles.tiles) * splits, rest = block % blocks;
    n = block / blocks;
    tile = rest / splits;
    split = rest % splits;
  }
};

// Elements of a copy in shared memory that is aligned as its original, and ends at a 128-bit boundary.
template <class T>
__device__ int64_t copy_stride(int64_t channels, int64_t pixels) {
  constexpr int kW = kVectorWidth<T>;
  return (channels * pixels + kW + kW - 1) / kW * kW;
}

// emit(channel, split, sum over the pixels of this block's split) for the channels of this block's tile
template <bool kChannelsLast, class Source, class Emit>
__device__ void sum_tile(const Source& source, const Shape& shape, const Tiles& tiles, const Part& part, char* shared,
                         Emit emit) {
  using T = std::remove_pointer_t<decltype(source.kept)>;
  using Sum = typename Source::Sum;
  constexpr int kW = Source::kWidth;
  const int64_t split = part.split, first = part.tile * tiles.channels;
  const int count = int(min(tiles.channels, shape.channels - first));
  const int64_t begin = split * tiles.span;
  const int length = int(min(shape.pixels - begin, tiles.span));
  const auto put = [&](int channel, Sum sum) { emit(first + channel, split, sum); };
  if constexpr (kChannelsLast) {
    Sum* const cells = reinterpret_cast<Sum*>(shared);
    const Source tile = source.moved(begin * shape.channels + first);
    if (source.vectorised && count % kW == 0) {
      sum_columns<kW>(tile, length, shape.channels, count, kColumnVectors, cells, put);
    } else {
      sum_columns<1>(tile, length, shape.channels, count, kColumnVectors * kW, cells, put);
    }
  } else {
    Source walked = source.moved(first * shape.pixels + begin);
    Sum* cells = reinterpret_cast<Sum*>(shared);
    if (tiles.staged) {
      const int64_t stride = copy_stride<T>(tiles.channels, shape.pixels);
      T* const buffer = reinterpret_cast<T*>(shared);
      walked = walked.keeping(buffer, stride);
      sum_range(walked, count * length, threadIdx.x, blockDim.x);
      __syncthreads();
      walked = walked.resident();
      cells = reinterpret_cast<Sum*>(buffer + Source::kOperands * stride);
    }
    sum_planes(walked, shape.pixels, length, count, tiles.segments, tiles.lanes, cells, put);
  }
}

// partial[n, split, c] = sum_p x[n, c, p]
template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads) squeeze_excite_pool(const ForwardArguments<T> a, const Tiles tiles) {
  using Sum = accumulate_t<T>;
  SHARED_DYNAMIC(char, shared);
  const Shape& shape = a.shape;
  const Part part(tiles, blockIdx.x);
  const PoolSource<T> source{a.x + part.n * shape.channels * shape.pixels, a.vectorised};
  sum_tile<kChannelsLast>(source, shape, tiles, part, shared, [&](int64_t channel, int64_t split, Sum sum) {
    a.partial[(part.n * tiles.splits + split) * shape.channels + channel] = sum;
  });
}

// The first layer, to saved u and `activated`, or (kGates) the second, to saved g:
// out[n, o] = f(sum_i weight[o, i] in[n, i] + bias[o])
template <class T, bool kGates>
__global__ void __launch_bounds__(kThreads) squeeze_excite_layer(const ForwardArguments<T> a) {
  using Sum = accumulate_t<T>;
  const Shape& shape = a.shape;
  const Parameters<T>& parameters = a.parameters;
  const bool from_means = !kGates || !shape.hidden;
  const int64_t count = from_means ? shape.channels : shape.hidden;
  const int64_t outputs = kGates ? shape.channels : shape.hidden;
  const T* const weight = kGates ? parameters.expand_weight : parameters.reduce_weight;
  const T* const bias = kGates ? parameters.expand_bias : parameters.reduce_bias;
  const int64_t pitch = shape.saved_columns(), row_blocks = layer_row_blocks<T>(outputs, count);
  const int64_t first_sample = blockIdx.x / row_blocks * kLayerSamples, row_block = blockIdx.x % row_blocks;
  const LayerInput<Sum> input =
      from_means ? LayerInput<Sum>{a.partial, a.sum_splits * shape.channels, a.sum_splits, shape.channels}
                 : LayerInput<Sum>{a.activated, shape.hidden, 1, 0};
  const auto finish = [&](int64_t, int64_t, Sum value) { return from_means ? value / Sum(shape.pixels) : value; };
  const auto keep = [&](int64_t n, int64_t i, Sum value) {
    if (from_means && row_block == 0) a.saved[n * pitch + i] = value;
  };
  layer_rows(weight, outputs, count, row_block, first_sample, shape.samples, input, finish, keep,
             [&](int64_t n, int64_t row, Sum sum) {
               const Sum value = bias ? sum + widen(bias[row]) : sum;
               if (kGates) {
                 a.saved[n * pitch + shape.channels + shape.hidden + row] = open_gate(value, shape.gate);
               } else {
                 a.saved[n * pitch + shape.channels + row] = value;
                 a.activated[n * shape.hidden + row] = activate(value, shape.activation);
               }
             });
}

// The channels that a block of the second pass touches, and its elements or pixels.
struct MapRange {
  int64_t first, count;  // channels
  int64_t begin, end;    // pixels, or elements of the sample where tiles.flat
};

__device__ inline MapRange map_range(const Shape& shape, const Tiles& tiles, const Part& part) {
  const int64_t begin = part.split * tiles.span;
  if (!tiles.flat) {
    const int64_t first = part.tile * tiles.channels;
    return {first, min(tiles.channels, shape.channels - first), begin, min(shape.pixels, begin + tiles.span)};
  }
  const int64_t end = min(shape.channels * shape.pixels, begin + tiles.span);
  const int64_t first = begin / shape.pixels;
  return {first, (end - 1) / shape.pixels - first + 1, begin, end};
}

// scale and shift (null: zeros) start with the first channel of the range.
template <bool kChannelsLast, class Map, class Sum>
__device__ void map_tile(const Map& map, const Shape& shape, const Tiles& tiles, const MapRange& range,
                         const Sum* scale, const Sum* shift) {
  constexpr int kW = Map::kWidth;
  const int columns = int(range.count), rows = int(range.end - range.begin);
  if constexpr (!kChannelsLast) {
    if (tiles.flat) {
      map_planes(map.moved(range.begin), rows, shape.pixels, range.begin - range.first * shape.pixels, scale, shift);
    } else {
      map_long_planes(map.moved(range.first * shape.pixels + range.begin), shape.pixels, rows, columns, tiles.segments,
                      scale, shift);
    }
  } else if (map.vectorised && columns % kW == 0) {
    map_columns<kW>(map.moved(range.begin * shape.channels + range.first), rows, shape.channels, columns,
                    kColumnVectors, scale, shift);
  } else {
    map_columns<1>(map.moved(range.begin * shape.channels + range.first), rows, shape.channels, columns,
                   kColumnVectors * kW, scale, shift);
  }
}

// y[n, c, p] = output_activation(x[n, c, p] g[n, c] + residual[n, c, p]), g saved or
// g = gate(sum_r expand_weight[c, r] hidden[n, r] + expand_bias[c])
template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    squeeze_excite_scale(const ForwardArguments<T> a, const Tiles tiles) {
  using Sum = accumulate_t<T>;
  SHARED_DYNAMIC(Sum, shared);  // [tiles.channels], unless own_gates
  const Shape& shape = a.shape;
  // Against the order of the first pass: what that read last is the likeliest to be still in the cache.
  const Part part(tiles, gridDim.x - 1 - blockIdx.x);
  const MapRange range = map_range(shape, tiles, part);
  Sum* const saved = a.saved + part.n * shape.saved_columns() + shape.channels + shape.hidden + range.first;
  const Sum* gates = saved;
  if (!a.own_gates) {
    multiply_rows(a.parameters.expand_weight + range.first * shape.hidden, shape.hidden, int(range.count),
                  int(shape.hidden), a.activated + part.n * shape.hidden, [&](int j, Sum sum) {
                    const int64_t c = range.first + j;
                    const Sum v = a.parameters.expand_bias ? sum + widen(a.parameters.expand_bias[c]) : sum;
                    shared[j] = open_gate(v, shape.gate);
                    // Saved by the block that has the channel's first pixel.
                    if (range.begin <= (tiles.flat ? c * shape.pixels : 0)) saved[j] = shared[j];
                  });
    gates = shared;
    __syncthreads();
  }
  const int64_t offset = part.n * shape.channels * shape.pixels;
  const ScaleMap<T, kMapInFlight<T>> map{
      a.x + offset, a.residual ? a.residual + offset : nullptr,         a.y + offset,
      nullptr,      shape.output_activation == OutputActivation::kRelu, a.output_reuse,
      a.vectorised};
  map_tile<kChannelsLast>(map, shape, tiles, range, gates, static_cast<const Sum*>(nullptr));
}

// partial[n, split, c] = sum_p dz[n, c, p] x[n, c, p]
template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads)
    squeeze_excite_backward_sums(const BackwardArguments<T> a, const Tiles tiles) {
  using Sum = accumulate_t<T>;
  SHARED_DYNAMIC(char, shared);
  const Shape& shape = a.shape;
  const Part part(tiles, blockIdx.x);
  const int64_t offset = part.n * shape.channels * shape.pixels;
  const GradSource<T> source{a.grad_y + offset, a.x + offset, a.y ? a.y + offset : nullptr, a.sums_vectorised};
  sum_tile<kChannelsLast>(source, shape, tiles, part, shared, [&](int64_t channel, int64_t split, Sum sum) {
    a.partial[(part.n * tiles.splits + split) * shape.channels + channel] = sum;
  });
}

// dv[n, c] = gate'(v[n, c]) sum_split partial[n, split, c],
// du[n, r] = activation'(u[n, r]) sum_c dv[n, c] expand_weight[c, r], or ds / pixels without a hidden layer
template <class T>
__global__ void __launch_bounds__(kLayerGradThreads) squeeze_excite_backward_hidden(const BackwardArguments<T> a) {
  using Sum = accumulate_t<T>;
  const Shape& shape = a.shape;
  const int64_t columns = shape.hidden ? shape.hidden : shape.channels, pitch = shape.saved_columns();
  const int64_t column_blocks = layer_column_blocks<T>(shape.channels, columns);
  const int64_t first_sample = blockIdx.x / column_blocks * kLayerSamples, column_block = blockIdx.x % column_blocks;
  const Sum* const gates = a.saved + shape.channels + shape.hidden;
  layer_columns(
      a.parameters.expand_weight, shape.channels, columns, column_block, first_sample, shape.samples,
      LayerInput<Sum>{a.partial, a.sum_splits * shape.channels, a.sum_splits, shape.channels},
      [&](int64_t n, int64_t c, Sum value) { return value * gate_derivative(gates[n * pitch + c], shape.gate); },
      [&](int64_t n, int64_t c, Sum value) {
        if (column_block == 0) a.grad_logits[n * shape.channels + c] = value;
      },
      [&](int64_t n, int64_t j, Sum sum) {
        if (shape.hidden) {
          const Sum u = a.saved[n * pitch + shape.channels + j];
          a.grad_hidden[n * shape.hidden + j] = sum * activation_derivative(u, shape.activation);
        } else {
          a.grad_means[n * shape.channels + j] = sum / Sum(shape.pixels);
        }
      });
}

// ds[n, c] / pixels = sum_r du[n, r] reduce_weight[r, c] / pixels
template <class T>
__global__ void __launch_bounds__(kLayerGradThreads) squeeze_excite_backward_means(const BackwardArguments<T> a) {
  using Sum = accumulate_t<T>;
  const Shape& shape = a.shape;
  const int64_t column_blocks = layer_column_blocks<T>(shape.hidden, shape.channels);
  layer_columns(
      a.parameters.reduce_weight, shape.hidden, shape.channels, blockIdx.x % column_blocks,
      blockIdx.x / column_blocks * kLayerSamples, shape.samples, LayerInput<Sum>{a.grad_hidden, shape.hidden, 1, 0},
      [](int64_t, int64_t, Sum value) { return value; }, [](int64_t, int64_t, Sum) {},
      [&](int64_t n, int64_t c, Sum sum) { a.grad_means[n * shape.channels + c] = sum / Sum(shape.pixels); });
}

// grad_x[n, c, p] = dz g[n, c] + ds[n, c] / pixels; grad_residual = dz          one block fewer: two outputs, no spill
template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, kBlocks<T> - 1)
    squeeze_excite_backward_map(const BackwardArguments<T> a, const Tiles tiles) {
  using Sum = accumulate_t<T>;
  const Shape& shape = a.shape;
  const Part part(tiles, gridDim.x - 1 - blockIdx.x);  // against the order of the first pass
  const MapRange range = map_range(shape, tiles, part);
  const int64_t offset = part.n * shape.channels * shape.pixels;
  const GradMap<T, kMapInFlight<T>> map{a.grad_y + offset,
                                        a.y ? a.y + offset : nullptr,
                                        a.grad_x ? a.grad_x + offset : nullptr,
                                        a.grad_residual ? a.grad_residual + offset : nullptr,
                                        nullptr,
                                        a.output_reuse,
                                        a.map_vectorised};
  // grad_residual alone takes no coefficients
  const Sum* const scale =
      a.grad_x ? a.saved + part.n * shape.saved_columns() + shape.channels + shape.hidden + range.first : nullptr;
  const Sum* const shift = a.grad_x ? a.grad_means + part.n * shape.channels + range.first : nullptr;
  map_tile<kChannelsLast>(map, shape, tiles, range, scale, shift);
}

template <class T>
struct WeightGradArguments {
  using Sum = accumulate_t<T>;
  const Sum *grad_logits, *grad_hidden;                                              // [N, C], [N, rd]
  const Sum* saved;                                                                  // [N, 2 C + rd]
  T *grad_reduce_weight, *grad_reduce_bias, *grad_expand_weight, *grad_expand_bias;  // or null
  Shape shape;
};

// Rows of a weight's gradient that a thread computes: they share one reading of a column.
inline constexpr int kOuterRows = 8;

// weight[i, j] = sum_n rows[n, i] f(columns[n, j]), bias[i] = sum_n rows[n, i]: the samples in their order
template <class T, class Map>
__device__ void outer_sum(int64_t samples, const accumulate_t<T>* rows, int64_t row_pitch, int64_t row_count,
                          const accumulate_t<T>* columns, int64_t column_pitch, int64_t column_count, T* weight,
                          T* bias, Map map) {
  using Sum = accumulate_t<T>;
  const int64_t tiles = weight ? (row_count + kOuterRows - 1) / kOuterRows * column_count : 0;
  const int64_t outputs = tiles + (bias ? row_count : 0);
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < outputs; i += int64_t(gridDim.x) * blockDim.x) {
    if (i < tiles) {
      const int64_t first = i / column_count * kOuterRows, j = i % column_count;
      const int count = int(min(int64_t(kOuterRows), row_count - first));
      Sum sums[kOuterRows] = {};
#pragma unroll 2
      for (int64_t n = 0; n < samples; ++n) {
        const Sum column = map(columns[n * column_pitch + j]);
#pragma unroll
        for (int k = 0; k < kOuterRows; ++k) sums[k] += rows[n * row_pitch + first + min(k, count - 1)] * column;
      }
#pragma unroll
      for (int k = 0; k < kOuterRows; ++k)
        if (k < count) weight[(first + k) * column_count + j] = narrow<T>(sums[k]);
    } else {
      Sum sum = 0;
#pragma unroll 4
      for (int64_t n = 0; n < samples; ++n) sum += rows[n * row_pitch + i - tiles];
      bias[i - tiles] = narrow<T>(sum);
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
    outer_sum(shape.samples, a.grad_logits, shape.channels, shape.channels, a.saved, pitch, shape.channels,
              a.grad_expand_weight, a.grad_expand_bias, same);
  } else {
    outer_sum(shape.samples, a.grad_hidden, shape.hidden, shape.hidden, a.saved, pitch, shape.channels,
              a.grad_reduce_weight, a.grad_reduce_bias, same);
  }
}

}  // namespace attnkernels::squeeze_excite
