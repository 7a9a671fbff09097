// How blocks walk feature maps: ranges of contiguous elements (planes of [N, C, HW]) and columns of a row-major matrix
// (channels of [N, HW, C], and weights). Sums take a Source, element-wise work takes a Map, both with pointers to the
// first element that is walked:
//
//   Source  moved(offset)    fetch<W>(index) -> Loaded<W>    add(loaded, acc_t sums[W])
//   Map     moved(offset)    fetch<W>(index) -> Loaded<W>    apply(index, loaded, coefficients)
//
// Both tell by `vectorised` whether all their pointers are equally aligned, by
// misaligned() how, and by kInFlight how many fetches registers hold at once: two or four of 16 bytes per thread and
// operand are the 32 KB that a multiprocessor must have underway to hide the latency of DRAM.
#pragma once
#include <algorithm>

#include "common/numeric.cuh"
#include "common/reduce.cuh"

namespace attnkernels {

// use(i, fetch(i)) for i = first, first + step, ... < last
template <int kInFlight, class Index, class Fetch, class Use>
__device__ __forceinline__ void strided(Index first, Index last, Index step, Fetch fetch, Use use) {
  for (Index i = first; i < last; i += kInFlight * step) {
    decltype(fetch(i)) loaded[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k)
      if (i + k * step < last) loaded[k] = fetch(i + k * step);
#pragma unroll
    for (int k = 0; k < kInFlight; ++k)
      if (i + k * step < last) use(i + k * step, loaded[k]);
  }
}

// loaded = fetch(first), fetch(first + step), ..., as many as it holds: the first part of `rolling`.
template <int kInFlight, class Index, class Loaded, class Fetch>
__device__ __forceinline__ void fetch_ahead(Index first, Index last, Index step, Loaded (&loaded)[kInFlight],
                                            Fetch fetch) {
#pragma unroll
  for (int k = 0; k < kInFlight; ++k)
    if (first + k * step < last) loaded[k] = fetch(first + k * step);
}

// use(i, fetch(i)) for i = first, first + step, ... < last, of which the first have been fetched ahead: each that is
// used makes room for another fetch, so that there are always as many under way.
template <int kInFlight, class Index, class Loaded, class Fetch, class Use>
__device__ __forceinline__ void rolling(Index first, Index last, Index step, Loaded (&loaded)[kInFlight], Fetch fetch,
                                        Use use) {
  for (Index i = first; i < last; i += kInFlight * step) {
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const Index now = i + k * step, next = now + kInFlight * step;
      if (now < last) use(now, loaded[k]);
      if (next < last) loaded[k] = fetch(next);
    }
  }
}

// visit(width, first, last, step, at) over the parts of [0, length) that widths of 1 and of kWidth cover: the elements
// before the first 128-bit boundary and after the last, then the vectors between; everything singly where the operands
// are not equally aligned. at(i) is the index that a step stands for.
template <int kWidth, class Visit>
__device__ __forceinline__ void split_range(int length, bool vectorised, int misaligned, int lane, int lanes,
                                            Visit visit) {
  const int head = vectorised ? min(length, (kWidth - misaligned) % kWidth) : length;
  const int gap = (length - head) / kWidth * kWidth;
  visit(std::integral_constant<int, 1>(), lane, length - gap, lanes, [=](int i) { return i < head ? i : i + gap; });
  visit(std::integral_constant<int, kWidth>(), head + lane * kWidth, head + gap, lanes * kWidth,
        [](int i) { return i; });
}

// Sum over `length` elements, each of `lanes` threads its part.
template <class Source>
__device__ __forceinline__ typename Source::acc_t sum_range(const Source& source, int length, int lane, int lanes) {
  typename Source::acc_t total = 0;
  split_range<Source::kWidth>(length, source.vectorised, source.misaligned(), lane, lanes,
                              [&](auto width, int first, int last, int step, auto at) {
                                constexpr int kW = decltype(width)::value;
                                strided<Source::kInFlight>(
                                    first, last, step, [&](int i) { return source.template fetch<kW>(at(i)); },
                                    [&](int i, const auto& loaded) {
                                      typename Source::acc_t sums[kW] = {};
                                      source.add(loaded, sums);
#pragma unroll
                                      for (int k = 0; k < kW; ++k) total += sums[k];
                                    });
                              });
  return total;
}

// emit(plane, sum over `length` elements) for `count` planes, `pixels` elements apart; each plane by `segments` groups
// of `lanes` threads; cells: shared memory for count * segments sums.
template <class Source, class Emit>
__device__ void sum_planes(const Source& source, int64_t pixels, int length, int count, int segments, int lanes,
                           typename Source::acc_t* cells, Emit emit) {
  const int group = threadIdx.x / lanes, groups = blockDim.x / lanes, lane = threadIdx.x % lanes;
  const int units = count * segments;
  const int step = segments * Source::kWidth, span = (length + step - 1) / step * Source::kWidth;
  for (int start = 0; start < units; start += groups) {  // the same count for every lane of a warp: shuffles follow
    const int unit = start + group;
    typename Source::acc_t sum = 0;
    if (unit < units) {
      const int plane = unit / segments;
      const int begin = min(length, (unit - plane * segments) * span);
      sum = sum_range(source.moved(plane * pixels + begin), min(span, length - begin), lane, lanes);
    }
    sum = sum_lanes(sum, lanes);
    if (unit < units && lane == 0) cells[unit] = sum;
  }
  __syncthreads();
  for (int plane = threadIdx.x; plane < count; plane += blockDim.x) {
    typename Source::acc_t sum = 0;
    for (int segment = 0; segment < segments; ++segment) sum += cells[plane * segments + segment];
    emit(plane, sum);
  }
}

// Cells in shared memory that sum_short_planes needs.
template <class Source>
__host__ __device__ constexpr int64_t short_plane_cells(int64_t pixels, int64_t count) {
  return count * pixels / Source::kWidth + 3 + count;
}

// emit(plane, sum) for `count` planes of `pixels` (at least kWidth) elements, one after the other in memory. Threads
// take vectors as they come, whatever planes they lie in: with a warp for each plane most lanes of it would be idle,
// and a plane of 49 elements starts at a 128-bit boundary only by chance.
template <class Source, class Emit>
__device__ void sum_short_planes(const Source& source, int pixels, int count, typename Source::acc_t* cells,
                                 Emit emit) {
  using acc_t = typename Source::acc_t;
  constexpr int kW = Source::kWidth;
  const int length = count * pixels;
  // Group 0 is what lies before the first 128-bit boundary, then come the vectors, then what is left.
  const int head = source.vectorised ? min(length, (kW - source.misaligned()) % kW) : 0;
  const int vectors = (length - head) / kW, groups = 1 + (length - head + kW - 1) / kW;
  acc_t* const begun = cells;             // [groups] sums of a group's elements in the plane where the group begins
  acc_t* const entered = cells + groups;  // [count] sums of a plane's elements in the group that began before it

  if (source.vectorised) {
    strided<Source::kInFlight>(
        int(threadIdx.x), vectors, int(blockDim.x), [&](int v) { return source.template fetch<kW>(head + v * kW); },
        [&](int v, const auto& loaded) {
          const int at = head + v * kW, plane = uint32_t(at) / uint32_t(pixels);
          const int boundary = (plane + 1) * pixels - at;
          acc_t sums[kW] = {}, own = 0, next = 0;
          source.add(loaded, sums);
#pragma unroll
          for (int k = 0; k < kW; ++k) (k < boundary ? own : next) += sums[k];
          begun[1 + v] = own;
          if (boundary < kW) entered[plane + 1] = next;
        });
  }
  // The first and the last group, or all of them where there are no vectors.
  for (int i = threadIdx.x; i < (source.vectorised ? min(2, groups) : groups); i += blockDim.x) {
    const int group = source.vectorised ? i * (groups - 1) : i;
    if (source.vectorised && group > 0 && group <= vectors) continue;
    const int at = group == 0 ? 0 : head + (group - 1) * kW, end = group == 0 ? head : min(length, at + kW);
    const int plane = at / pixels, boundary = (plane + 1) * pixels;
    acc_t own = 0, next = 0;
    for (int k = at; k < end; ++k) {
      const auto loaded = source.template fetch<1>(k);
      acc_t sums[1] = {};
      source.add(loaded, sums);
      (k < boundary ? own : next) += sums[0];
    }
    begun[group] = own;
    if (boundary < end) entered[plane + 1] = next;
  }
  __syncthreads();

  const int lanes = lanes_for((pixels + 4 * kW - 1) / (4 * kW));
  const int lane = threadIdx.x % lanes, team = threadIdx.x / lanes, teams = blockDim.x / lanes;
  const auto first_group = [&](int plane) { return plane == 0 ? 0 : 1 + (plane * pixels - head + kW - 1) / kW; };
  for (int start = 0; start < count; start += teams) {  // the same count for every lane of a warp: shuffles follow
    const int plane = start + team;
    acc_t sum = 0;
    if (plane < count) {
      if (lane == 0 && plane > 0 && (plane * pixels - head) % kW != 0) sum = entered[plane];
      const int end = plane + 1 == count ? groups : first_group(plane + 1);
      for (int group = first_group(plane) + lane; group < end; group += lanes) sum += begun[group];
    }
    sum = sum_lanes(sum, lanes);
    if (plane < count && lane == 0) emit(plane, sum);
  }
}

// emit(column, sum over `rows` rows) for `columns` columns of a matrix with `pitch` elements a row; at most max_lanes
// vectors of columns at a time; cells: blockDim.x * kWidth sums. Ends with a barrier.
template <int kWidth, class Source, class Emit>
__device__ void sum_columns(const Source& source, int rows, int64_t pitch, int columns, int max_lanes,
                            typename Source::acc_t* cells, Emit emit) {
  const int vectors = columns / kWidth;
  max_lanes = min(max_lanes, int(blockDim.x));
  for (int start = 0; start < vectors; start += max_lanes) {
    const int lanes = min(max_lanes, vectors - start);
    const int groups = blockDim.x / lanes, group = threadIdx.x / lanes;
    const int column = (start + threadIdx.x % lanes) * kWidth;
    if (group < groups) {
      typename Source::acc_t sums[kWidth] = {};
      strided<Source::kInFlight>(
          group, rows, groups, [&](int i) { return source.template fetch<kWidth>(i * pitch + column); },
          [&](int i, const auto& loaded) { source.add(loaded, sums); });
#pragma unroll
      for (int k = 0; k < kWidth; ++k) cells[threadIdx.x * kWidth + k] = sums[k];
    }
    sum_rows(cells, groups, lanes * kWidth, [&](int j, auto sum) { emit(start * kWidth + j, sum); });
  }
}

// The coefficients of one vector's elements: of the plane where it begins and, from element `boundary` on, of the next.
template <class A>
struct PlaneCoefficients {
  A scales[2], shifts[2];
  int boundary;
  __device__ __forceinline__ A scale(int k) const { return k < boundary ? scales[0] : scales[1]; }
  __device__ __forceinline__ A shift(int k) const { return k < boundary ? shifts[0] : shifts[1]; }
};

// Those of a vector that lies in one plane.
template <class A>
struct PlaneCoefficient {
  A one_scale, one_shift;
  __device__ __forceinline__ A scale(int) const { return one_scale; }
  __device__ __forceinline__ A shift(int) const { return one_shift; }
};

// Those of a vector of columns.
template <class A, int kWidth>
struct ColumnCoefficients {
  A scales[kWidth], shifts[kWidth];
  __device__ __forceinline__ A scale(int k) const { return scales[k]; }
  __device__ __forceinline__ A shift(int k) const { return shifts[k]; }
};

// What a thread fetches of a map before its coefficients are known.
template <class Map, int kWidth = Map::kWidth>
using Ahead = typename Map::template Loaded<kWidth>[Map::kInFlight];

// The place of a walk over planes that starts at element `start` of its first one. Offsets are of 32 bits: of planes
// longer than 2^30, at most two of which a walk of at most 2^30 elements touches, only the end of the first matters.
struct PlaneWalk {
  static constexpr int64_t kLongest = int64_t(1) << 30;
  Divisor pixels;  // of min(pixels, kLongest)
  uint32_t start;

  static __host__ Divisor divisor(int64_t pixels) {
    return Divisor(uint32_t(std::clamp<int64_t>(pixels, 1, kLongest)));
  }
  __device__ PlaneWalk(const Divisor& divisor, int64_t pixels, int64_t first)
      : pixels(divisor), start(uint32_t(pixels > kLongest ? max(kLongest - (pixels - first), int64_t(0)) : first)) {}

  // A vector may lie in two planes, not in more.
  template <class Map>
  __device__ bool vectorised(const Map& map) const {
    return map.vectorised && pixels.value >= uint32_t(Map::kWidth);
  }
  // Whether every vector lies in one plane.
  template <class Map>
  __device__ bool uniform(const Map& map) const {
    return pixels.value % Map::kWidth == 0 && start % Map::kWidth == 0 && map.misaligned() == 0;
  }
};

template <class Map>
__device__ __forceinline__ void fetch_planes_ahead(const Map& map, int length, const PlaneWalk& walk,
                                                   Ahead<Map>& ahead) {
  split_range<Map::kWidth>(length, walk.vectorised(map), map.misaligned(), threadIdx.x, blockDim.x,
                           [&](auto width, int first, int last, int step, auto at) {
                             constexpr int kW = decltype(width)::value;
                             if constexpr (kW == Map::kWidth)
                               fetch_ahead(first, last, step, ahead,
                                           [&](int i) { return map.template fetch<kW>(at(i)); });
                           });
}

// map.apply over `length` elements (at most 2^30) of planes; scale and shift (null: zeros) start with the first plane;
// ahead: by fetch_planes_ahead.
template <class Map, class A>
__device__ __forceinline__ void map_planes(const Map& map, int length, const PlaneWalk& walk, const A* scale,
                                           const A* shift, Ahead<Map>& ahead) {
  const auto apply = [&](auto single, int i, const auto& loaded) {
    const uint32_t offset = walk.start + i, plane = walk.pixels.quotient(offset);
    if constexpr (decltype(single)::value) {
      map.apply(i, loaded, PlaneCoefficient<A>{scale ? scale[plane] : A(0), shift ? shift[plane] : A(0)});
    } else {
      PlaneCoefficients<A> coefficients{};
      coefficients.boundary = int(min((plane + 1) * walk.pixels.value - offset, uint32_t(Map::kWidth)));
      const uint32_t next = coefficients.boundary < Map::kWidth ? plane + 1 : plane;
      if (scale) coefficients.scales[0] = scale[plane], coefficients.scales[1] = scale[next];
      if (shift) coefficients.shifts[0] = shift[plane], coefficients.shifts[1] = shift[next];
      map.apply(i, loaded, coefficients);
    }
  };
  split_range<Map::kWidth>(
      length, walk.vectorised(map), map.misaligned(), threadIdx.x, blockDim.x,
      [&](auto width, int first, int last, int step, auto at) {
        constexpr int kW = decltype(width)::value;
        const auto fetch = [&](int i) { return map.template fetch<kW>(at(i)); };
        if constexpr (kW < Map::kWidth) {  // the few at either end, or all where operands are unequally aligned
          strided<Map::kInFlight>(first, last, step, fetch,
                                  [&](int i, const auto& loaded) { apply(std::true_type(), at(i), loaded); });
        } else if (walk.uniform(map)) {
          rolling(first, last, step, ahead, fetch,
                  [&](int i, const auto& loaded) { apply(std::true_type(), i, loaded); });
        } else {
          rolling(first, last, step, ahead, fetch,
                  [&](int i, const auto& loaded) { apply(std::false_type(), i, loaded); });
        }
      });
}

// map.fetch of a thread's first rows, for columns that map_columns walks with the same arguments.
template <int kWidth, class Map>
__device__ __forceinline__ void fetch_columns_ahead(const Map& map, int rows, int64_t pitch, int columns, int max_lanes,
                                                    Ahead<Map, kWidth>& ahead, int start = 0) {
  const int lanes = min(min(max_lanes, int(blockDim.x)), columns / kWidth - start);
  const int groups = blockDim.x / lanes, group = threadIdx.x / lanes;
  const int column = (start + threadIdx.x % lanes) * kWidth;
  if (group < groups)
    fetch_ahead(group, rows, groups, ahead, [&](int i) { return map.template fetch<kWidth>(i * pitch + column); });
}

// map.apply over `rows` rows of `columns` columns of a matrix with `pitch` elements a row; scale and shift (null:
// zeros) by column; ahead: by fetch_columns_ahead.
template <int kWidth, class Map, class A>
__device__ __forceinline__ void map_columns(const Map& map, int rows, int64_t pitch, int columns, int max_lanes,
                                            const A* scale, const A* shift, Ahead<Map, kWidth>& ahead) {
  const int vectors = columns / kWidth;
  max_lanes = min(max_lanes, int(blockDim.x));
  for (int start = 0; start < vectors; start += max_lanes) {
    const int lanes = min(max_lanes, vectors - start);
    const int groups = blockDim.x / lanes, group = threadIdx.x / lanes;
    const int column = (start + threadIdx.x % lanes) * kWidth;
    if (group >= groups) continue;
    if (start) fetch_columns_ahead<kWidth>(map, rows, pitch, columns, max_lanes, ahead, start);
    ColumnCoefficients<A, kWidth> coefficients;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      coefficients.scales[k] = scale ? scale[column + k] : A(0);
      coefficients.shifts[k] = shift ? shift[column + k] : A(0);
    }
    rolling(
        group, rows, groups, ahead, [&](int i) { return map.template fetch<kWidth>(i * pitch + column); },
        [&](int i, const auto& loaded) { map.apply(i * pitch + column, loaded, coefficients); });
  }
}

}  // namespace attnkernels
