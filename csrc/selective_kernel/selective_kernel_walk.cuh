// How the blocks of selective_kernel walk rows, and how they add up what they found.
#pragma once
#include "common/traverse.cuh"
#include "selective_kernel/selective_kernel_tiles.h"

namespace attnkernels::selective_kernel {

// Fetches of two branches, or of one, that a thread has underway at once: with 16 bytes each, a multiprocessor whose
// registers hold 1024 threads has 64 KB underway; DRAM's latency needs 32.
inline constexpr int kInFlight = 2;

// A block's tile of a sample, and what of it is the thread's.
struct Place {
  int64_t sample, channel, pixel;  // where the tile begins
  int split, channels, pixels;     // which one over the pixels, and its size
  int lane, group, groups, width;  // width: elements that the thread moves at once
  bool active;                     // some elements are this thread's
};

// backwards: the last sample first, since what the kernel before read last is still in the L2 cache.
template <class T, bool kChannelsLast>
__device__ __forceinline__ Place find_place(const Shape& shape, const Tiles& tiles, bool backwards) {
  Place place;
  const unsigned tile = blockIdx.x / tiles.splits, sample = tile / tiles.channel_tiles;
  place.split = blockIdx.x % tiles.splits;
  place.sample = backwards ? shape.samples - 1 - sample : sample;
  place.channel = int64_t(tile % tiles.channel_tiles) * tiles.channels;
  place.pixel = place.split * tiles.span;
  place.channels = int(min(int64_t(tiles.channels), shape.channels - place.channel));
  place.pixels = int(min(tiles.span, shape.pixels - place.pixel));
  place.lane = threadIdx.x % tiles.lanes;
  place.group = threadIdx.x / tiles.lanes;
  place.groups = kThreads / tiles.lanes;
  place.width = tiles.vectorised ? kVectorWidth<T> : 1;
  place.active = kChannelsLast ? place.group < place.groups && place.lane * place.width < place.channels
                               : place.group < place.channels;
  return place;
}

// The channel of the tile that a thread's sums and coefficients begin with.
template <bool kChannelsLast>
__device__ __forceinline__ int first_channel(const Place& place) {
  return kChannelsLast ? place.lane * place.width : place.group;
}

// A thread's elements of a map, of the pixels from the tile's first on.
template <class T, bool kChannelsLast>
struct Line {
  T* data;
  int64_t step;
  __device__ __forceinline__ T* at(int i) const { return data + (kChannelsLast ? i * step : i); }
};

template <bool kChannelsLast, class T>
__device__ __forceinline__ Line<T, kChannelsLast> line_of(const Rows<T>& map, const Place& place) {
  const int64_t channel = place.channel + first_channel<kChannelsLast>(place);
  const int64_t offset =
      kChannelsLast ? place.pixel * map.row_stride + channel : channel * map.row_stride + place.pixel;
  return {map.data + place.sample * map.sample_stride + offset, map.row_stride};
}

// visit(width, first, last, step, at) over the thread's pixels of the tile (split_range says what the arguments are);
// line: of any operand.
template <class T, bool kChannelsLast, class Visit>
__device__ __forceinline__ void walk(const Place& place, const Tiles& tiles, const T* line, Visit visit) {
  if constexpr (kChannelsLast) {
    const auto same = [](int i) { return i; };
    if (tiles.vectorised) {
      visit(std::integral_constant<int, kVectorWidth<T>>(), place.group, place.pixels, place.groups, same);
    } else {
      visit(std::integral_constant<int, 1>(), place.group, place.pixels, place.groups, same);
    }
  } else {
    split_range<kVectorWidth<T>>(place.pixels, tiles.vectorised, misalignment(line), place.lane, tiles.lanes, visit);
  }
}

// What a thread adds up at a time: one channel of planes, the channels of a vector of pixels.
template <class T, bool kChannelsLast>
inline constexpr int kChannelsOfThread = kChannelsLast ? kVectorWidth<T> : 1;

// sums += values of a vector, by channel
template <bool kChannelsLast, class A, int kSums, int kW>
__device__ __forceinline__ void add_values(A (&sums)[kSums], const A (&values)[kW]) {
#pragma unroll
  for (int k = 0; k < kW; ++k) sums[kChannelsLast ? k : 0] += values[k];
}

// emit(channel of the tile, sum over the threads) from each thread's sums; cells: kThreads * kSums in shared memory.
// Called by the whole block; ends with a barrier.
template <bool kChannelsLast, class A, int kSums, class Emit>
__device__ __forceinline__ void sum_threads(const A (&sums)[kSums], const Place& place, const Tiles& tiles, A* cells,
                                            Emit emit) {
  if constexpr (kChannelsLast) {
    if (place.active) {
      A* const row = cells + place.group * place.channels + place.lane * place.width;
#pragma unroll
      for (int k = 0; k < kSums; ++k)
        if (k < place.width) row[k] = sums[k];
    }
    sum_rows(cells, place.groups, place.channels, emit);
  } else {
    const int lanes = min(tiles.lanes, 32), parts = tiles.lanes / lanes;  // parts: warps that share a plane
    const A sum = sum_lanes(sums[0], lanes);
    if (threadIdx.x % lanes == 0) cells[threadIdx.x / lanes] = sum;
    __syncthreads();
    if (int(threadIdx.x) < place.channels) {
      A total = 0;
      for (int part = 0; part < parts; ++part) total += cells[threadIdx.x * parts + part];
      emit(int(threadIdx.x), total);
    }
    __syncthreads();
  }
}

// The channels of a block that adds partial sums.
struct FinishPlace {
  int64_t sample, channel;
  int channels, pitch;  // how many, and how many threads beside each other there are for them
};
__device__ __forceinline__ FinishPlace find_finish_place(const Shape& shape, const Tiles& tiles) {
  const int pitch = tiles.finish_channels();
  const unsigned blocks = unsigned(ceil_div(shape.channels, pitch));
  const int64_t channel = int64_t(blockIdx.x % blocks) * pitch;
  return {blockIdx.x / blocks, channel, int(min(shape.channels - channel, int64_t(pitch))), pitch};
}

// emit(row * place.pitch + channel, sum over the splits) for `rows` (at most kMaxBranches) rows of
// partial [samples, splits, rows, channels]; cells: kThreads in shared memory. Called by the whole block; ends with a
// barrier.
template <class A, class Emit>
__device__ __forceinline__ void sum_splits(const A* partial, int splits, int64_t channels, int rows,
                                           const FinishPlace& place, A* cells, Emit emit) {
  const int columns = rows * place.pitch, groups = kThreads / columns;
  const int column = threadIdx.x % columns, group = threadIdx.x / columns;
  const int channel = column % place.pitch, row = column / place.pitch;
  if (group < groups) {
    A sum = 0;
    if (channel < place.channels) {
      const A* const from = partial + (place.sample * splits * rows + row) * channels + place.channel + channel;
      strided<8>(
          group, splits, groups, [&](int split) { return from[split * rows * channels]; },
          [&](int, A value) { sum += value; });
    }
    cells[threadIdx.x] = sum;
  }
  sum_rows(cells, groups, columns, [&](int at, A total) {
    if (at % place.pitch < place.channels) emit(at, total);
  });
}

}  // namespace attnkernels::selective_kernel
