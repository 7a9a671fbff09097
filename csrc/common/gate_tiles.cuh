// A block's tile of sums and of a map, for ops that scale a map by gates. Grids are (blocks of a sample, samples).
#pragma once
#include "common/gate_maps.cuh"
#include "common/gate_plan.h"

namespace attnkernels::gate {

// Blocks that a multiprocessor must at least have registers for. Unbounded, the compiler spills a few to reach an
// occupancy that these kernels do not need; from compute capability 10.0 on it needs a few more.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
inline constexpr int kFewerBlocks = 1;
#else
inline constexpr int kFewerBlocks = 0;
#endif
template <class T>
inline constexpr int kSumBlocks = sizeof(T) == 8 ? 2 : 3;
template <class T>
inline constexpr int kMapBlocks = sizeof(T) == 8 ? 2 : 4 - kFewerBlocks;
template <class T>
inline constexpr int kGradMapBlocks = sizeof(T) == 8 ? 2 : 3 - kFewerBlocks;

// emit(channel, split, sum over the pixels of this block's split) for the channels of this block's tile
template <bool kChannelsLast, class Source, class Emit>
__device__ void sum_tile(const Source& source, const MapShape& shape, const Tiles& tiles, typename Source::acc_t* cells,
                         Emit emit) {
  using acc_t = typename Source::acc_t;
  constexpr int kW = Source::kWidth;
  const int64_t split = blockIdx.x % tiles.splits, first = blockIdx.x / tiles.splits * tiles.channels;
  const int count = int(min(tiles.channels, shape.channels - first));
  const int64_t begin = split * tiles.span;
  const int length = int(min(shape.pixels - begin, tiles.span));
  const auto put = [&](int channel, acc_t sum) { emit(first + channel, split, sum); };
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

// The channels whose coefficients a block of the second pass needs, and its elements or pixels.
struct MapRange {
  int64_t first, count;  // channels
  int64_t begin, end;    // elements of the sample, or pixels where channels_last

  // Of its channel j: one block of all that have it.
  template <bool kChannelsLast>
  __device__ bool has_first_pixel(int j, int64_t pixels) const {
    return begin <= (kChannelsLast ? 0 : (first + j) * pixels);
  }
};

template <bool kChannelsLast>
__device__ MapRange map_range(const MapShape& shape, const Tiles& tiles) {
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
  __device__ __forceinline__ MapTile(const Map& map, const MapShape& shape, const MapRange& range,
                                     const Divisor& pixels)
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
  template <class acc_t>
  __device__ __forceinline__ void apply(const acc_t* scale, const acc_t* shift) {
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

// to[i] = fetch(i) for i < count: what a kernel waits for before it can begin, all of it under way at once.
template <class acc_t, class Fetch>
__device__ __forceinline__ void stage(acc_t* to, int count, Fetch fetch) {
  strided<4>(int(threadIdx.x), count, int(blockDim.x), fetch, [&](int i, const acc_t& loaded) { to[i] = loaded; });
}

// Numbers [k, k + kCount) of a row of `count`, zeros beyond its end.
template <int kCount, class acc_t>
__device__ __forceinline__ void load_sums(const acc_t* row, int k, int count, acc_t (&values)[kCount]) {
  constexpr int kQuarter = 16 / sizeof(acc_t) < kCount ? 16 / sizeof(acc_t) : kCount;
  if (count % kQuarter == 0 && misalignment(row) == 0 && k % kQuarter == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += kQuarter) {
      Vector<acc_t, kQuarter> quarter = {};
      if (k + i < count) quarter = load<kQuarter>(row + k + i);
#pragma unroll
      for (int j = 0; j < kQuarter; ++j) values[i + j] = quarter.get(j);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = k + i < count ? row[k + i] : acc_t(0);
}

// Numbers [c, c + kCount) of `channels`, each added up from the sums of splits, in their order; zeros beyond the last.
template <int kCount, class acc_t>
__device__ __forceinline__ void add_splits(const acc_t* partial, int splits, int c, int channels,
                                           acc_t (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) sums[i] = 0;
#pragma unroll 8
  for (int split = 0; split < splits; ++split) {
    acc_t part[kCount];
    load_sums(partial + split * channels, c, channels, part);
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[i] += part[i];
  }
}

}  // namespace attnkernels::gate
