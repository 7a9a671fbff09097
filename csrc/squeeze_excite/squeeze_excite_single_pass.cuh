// squeeze_excite in one pass over x: a cluster of blocks holds a sample in its shared memory (compute capability 9.0).
// Block k of a cluster owns the channels [k channels, (k + 1) channels); what the layers need of the other blocks comes
// through distributed shared memory, added up in the order of the blocks.
#pragma once
#include "squeeze_excite/squeeze_excite_two_pass.cuh"

// Every compilation sees the same kernels; their bodies need clusters.
#if defined(ATTNKERNELS_EMULATED) || __CUDA_ARCH__ >= 900
#define ATTNKERNELS_HAS_CLUSTERS 1
#else
#define ATTNKERNELS_HAS_CLUSTERS 0
#endif

namespace attnkernels::squeeze_excite {

inline constexpr int kClusterThreads = 384;  // Limits::cluster_threads: two blocks have 80 registers a thread

// A block's part of a sample, and its shared memory.
template <class T>
struct Slab {
  using Sum = accumulate_t<T>;
  int64_t n, first, count;  // sample; channels [first, first + count); count may be 0
  T* data;                  // room for the copies, at a 128-bit boundary
  Sum *means, *scale;       // [channels of a full slab]; `means` are dv in the backward
  Sum* exchanged;           // [rd], what the other blocks read; single-layer: unused, they read `means`
  Sum* gathered;            // [rd], or [C] in the single-layer excitation: what came of all blocks
  Sum* cells;
};

template <class T>
__device__ Slab<T> make_slab(const Shape& shape, int64_t channels, int rank, int blocks, char* shared) {
  using Sum = accumulate_t<T>;
  Slab<T> slab;
  slab.n = blockIdx.x / blocks;
  slab.first = min(shape.channels, rank * channels);
  slab.count = min(channels, shape.channels - slab.first);
  slab.data = reinterpret_cast<T*>(shared);
  slab.means = reinterpret_cast<Sum*>(slab.data + slab_elements(channels, shape.pixels, kVectorWidth<T>));
  slab.scale = slab.means + padded(channels);
  slab.exchanged = slab.scale + padded(channels);
  slab.gathered = slab.exchanged + padded(shape.hidden);
  slab.cells = slab.gathered + padded(shape.hidden ? shape.hidden : shape.channels);
  return slab;
}

// Where the copies of a slab lie, for those who write them and those who read them. Planes lie as far past a 128-bit
// boundary as in x, `first` being x of the slab's first element; rows of pixels, which are moved as vectors only where
// they are aligned, at a boundary. Outputs are where torch put them: only where they are as aligned as x are copies
// read as vectors.
template <bool kChannelsLast, class T>
__device__ __forceinline__ T* copies_of(const Slab<T>& slab, const T* first) {
  return slab.data + (kChannelsLast ? 0 : misalignment(first));
}

// emit(channel of the slab, sum over its pixels); leaves the copies that map_slab takes
template <bool kChannelsLast, class T, class Source, class Emit>
__device__ void sum_slab(const Source& source, const Shape& shape, const Slab<T>& slab, bool short_planes, Emit emit) {
  constexpr int kW = kVectorWidth<T>;
  const int count = int(slab.count), pixels = int(shape.pixels);
  Source kept = source.moved(slab.first * (kChannelsLast ? 1 : pixels));
  kept.kept = copies_of<kChannelsLast>(slab, kept.x);
  if constexpr (kChannelsLast) {
    if (source.vectorised && count % kW == 0 && slab.first % kW == 0) {
      sum_columns<kW>(kept, pixels, shape.channels, count, kColumnVectors, slab.cells, emit);
    } else {
      sum_columns<1>(kept, pixels, shape.channels, count, kColumnVectors * kW, slab.cells, emit);
    }
  } else {
    if (short_planes) {
      sum_short_planes(kept, pixels, count, slab.cells, emit);
    } else {
      const int segments = max(1, int(blockDim.x) / 32 / max(1, count));
      sum_planes(kept, pixels, pixels, count, segments, 32, slab.cells, emit);
    }
  }
}

// Maps the slab's channels, from the copies in shared memory; first: x of its first element, of planes.
template <bool kChannelsLast, class T, class Map>
__device__ void map_slab(const Map& map, const T* first, const Shape& shape, const Slab<T>& slab,
                         const accumulate_t<T>* shift) {
  const accumulate_t<T>* const scale = slab.scale;
  const int pixels = int(shape.pixels), count = int(slab.count);
  const T* const copies = copies_of<kChannelsLast>(slab, first);
  Map tile = map.moved(slab.first * (kChannelsLast ? 1 : pixels));
  tile.copy = copies;
  if constexpr (!kChannelsLast) {
    map_planes(tile, count * pixels, pixels, 0, scale, shift);
  } else if (map.vectorised && count % Map::kWidth == 0 && slab.first % Map::kWidth == 0) {
    map_columns<Map::kWidth>(tile, pixels, shape.channels, count, kColumnVectors, scale, shift);
  } else {
    map_columns<1>(tile, pixels, shape.channels, count, kColumnVectors * Map::kWidth, scale, shift);
  }
}

// y = output_activation(x gate(W2 activation(W1 mean(x) + b1) + b2) + residual)
template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kClusterThreads, sizeof(T) == 8 ? 1 : 2)
    squeeze_excite_single_pass(const ForwardArguments<T> a, const int64_t channels, const bool short_planes) {
#if ATTNKERNELS_HAS_CLUSTERS
  using Sum = accumulate_t<T>;
  SHARED_DYNAMIC(char, shared);
  const auto cluster = cooperative_groups::this_cluster();
  const int rank = int(cluster.block_rank()), blocks = int(cluster.num_blocks());
  const Shape& shape = a.shape;
  const Slab<T> slab = make_slab<T>(shape, channels, rank, blocks, shared);
  const int64_t offset = slab.n * shape.channels * shape.pixels;
  Sum* const saved = a.saved + slab.n * shape.saved_columns();

  const PoolSource<T> source{a.x + offset, a.vectorised};
  sum_slab<kChannelsLast>(source, shape, slab, short_planes, [&](int c, Sum sum) {
    slab.means[c] = sum / Sum(shape.pixels);
    saved[slab.first + c] = slab.means[c];
  });
  __syncthreads();

  if (shape.hidden) {  // each block multiplies its own means: a part of every hidden sum
    multiply_rows(a.parameters.reduce_weight + slab.first, shape.channels, int(shape.hidden), int(slab.count),
                  slab.means, [&](int r, Sum sum) { slab.exchanged[r] = sum; });
    cluster.sync();
    for (int64_t r = threadIdx.x; r < shape.hidden; r += blockDim.x) {
      Sum u = 0;
      for (int block = 0; block < blocks; ++block) u += cluster.map_shared_rank(slab.exchanged, block)[r];
      if (a.parameters.reduce_bias) u += widen(a.parameters.reduce_bias[r]);
      slab.gathered[r] = activate(u, shape.activation);
      if (rank == 0) saved[shape.channels + r] = u;
    }
  } else {
    cluster.sync();
    for (int64_t c = threadIdx.x; c < shape.channels; c += blockDim.x)
      slab.gathered[c] = cluster.map_shared_rank(slab.means, int(c / channels))[c % channels];
  }
  cluster.sync();  // no block may end while another reads its shared memory

  const int64_t width = shape.gate_inputs();
  multiply_rows(a.parameters.expand_weight + slab.first * width, width, int(slab.count), int(width), slab.gathered,
                [&](int j, Sum sum) {
                  const int64_t c = slab.first + j;
                  const Sum v = a.parameters.expand_bias ? sum + widen(a.parameters.expand_bias[c]) : sum;
                  slab.scale[j] = open_gate(v, shape.gate);
                  saved[shape.channels + shape.hidden + c] = slab.scale[j];
                });
  __syncthreads();
  const ScaleMap<T> map{nullptr,     a.residual ? a.residual + offset : nullptr,         a.y + offset,
                        nullptr,     shape.output_activation == OutputActivation::kRelu, a.output_reuse,
                        a.vectorised};
  map_slab<kChannelsLast>(map, a.x + offset + slab.first * int(shape.pixels), shape, slab,
                          static_cast<const Sum*>(nullptr));
#endif
}

// grad_x = dz g + ds / pixels, grad_residual = dz; dz stays in shared memory while x streams by
template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kClusterThreads, sizeof(T) == 8 ? 1 : 2)
    squeeze_excite_backward_single_pass(const BackwardArguments<T> a, const int64_t channels, const bool short_planes) {
#if ATTNKERNELS_HAS_CLUSTERS
  using Sum = accumulate_t<T>;
  SHARED_DYNAMIC(char, shared);
  const auto cluster = cooperative_groups::this_cluster();
  const int rank = int(cluster.block_rank()), blocks = int(cluster.num_blocks());
  const Shape& shape = a.shape;
  const Slab<T> slab = make_slab<T>(shape, channels, rank, blocks, shared);
  const int64_t offset = slab.n * shape.channels * shape.pixels;
  const Sum* const saved = a.saved + slab.n * shape.saved_columns();
  const Sum* const gates = saved + shape.channels + shape.hidden + slab.first;

  const GradSource<T> source{a.grad_y + offset, a.x + offset, a.y ? a.y + offset : nullptr, a.sums_vectorised};
  sum_slab<kChannelsLast>(source, shape, slab, short_planes, [&](int c, Sum sum) {
    slab.means[c] = sum * gate_derivative(gates[c], shape.gate);
    a.grad_logits[slab.n * shape.channels + slab.first + c] = slab.means[c];
  });
  __syncthreads();

  if (shape.hidden) {
    multiply_columns(a.parameters.expand_weight + slab.first * shape.hidden, shape.hidden, int(slab.count),
                     int(shape.hidden), kColumnVectors, slab.means, slab.cells,
                     [&](int r, Sum sum) { slab.exchanged[r] = sum; });
    cluster.sync();
    for (int64_t r = threadIdx.x; r < shape.hidden; r += blockDim.x) {
      Sum sum = 0;
      for (int block = 0; block < blocks; ++block) sum += cluster.map_shared_rank(slab.exchanged, block)[r];
      slab.gathered[r] = sum * activation_derivative(saved[shape.channels + r], shape.activation);
      if (rank == 0) a.grad_hidden[slab.n * shape.hidden + r] = slab.gathered[r];
    }
  } else {
    cluster.sync();
    for (int64_t c = threadIdx.x; c < shape.channels; c += blockDim.x)
      slab.gathered[c] = cluster.map_shared_rank(slab.means, int(c / channels))[c % channels];
  }
  cluster.sync();  // no block may end, nor overwrite `means`, while another reads its shared memory

  const T* const weight = shape.hidden ? a.parameters.reduce_weight : a.parameters.expand_weight;
  multiply_columns(weight + slab.first, shape.channels, int(shape.gate_inputs()), int(slab.count), kColumnVectors,
                   slab.gathered, slab.cells, [&](int c, Sum sum) {
                     slab.means[c] = sum / Sum(shape.pixels);
                     slab.scale[c] = gates[c];
                   });
  const GradMap<T> map{nullptr, nullptr,        a.grad_x + offset, a.grad_residual ? a.grad_residual + offset : nullptr,
                       nullptr, a.output_reuse, a.map_vectorised};
  map_slab<kChannelsLast>(map, a.x + (slab.n * shape.channels + slab.first) * shape.pixels, shape, slab,
                          static_cast<const Sum*>(slab.means));
#endif
}

}  // namespace attnkernels::squeeze_excite
