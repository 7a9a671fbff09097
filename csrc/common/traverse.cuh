// How blocks walk feature maps: ranges of contiguous elements (planes of [N, C, HW]) and columns of a row-major matrix
// (channels of [N, HW, C], and weights). Sums take a Source, element-wise work takes a Map:
//
//   Source  fetch<W>(index) -> Loaded<W>    add(loaded, Sum sums[W])    keep(loaded, index of the copy in shared memory)
//   Map     fetch<W>(index, index of the copy in shared memory)         apply(index, loaded, scale[W], shift[W])
//
// Both tell by `vectorised` whether all that they touch is equally aligned, and by misaligned(index) how.
#pragma once
#include "common/numeric.cuh"
#include "common/reduce.cuh"

namespace attnkernels {

// use(i, fetch(i)) for i = first, first + step, ... < last, with up to four fetches in flight: at 16 bytes each, 1024
// threads have the 40 KB underway that a multiprocessor needs to hide the latency of DRAM.
template <class Fetch, class Use>
__device__ __forceinline__ void strided(int64_t first, int64_t last, int64_t step, Fetch fetch, Use use) {
  constexpr int kInFlight = 4;
  for (int64_t i = first; i < last; i += kInFlight * step) {
    decltype(fetch(i)) loaded[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k)
      if (i + k * step < last) loaded[k] = fetch(i + k * step);
#pragma unroll
    for (int k = 0; k < kInFlight; ++k)
      if (i + k * step < last) use(i + k * step, loaded[k]);
  }
}

// visit(width, first, last, step, at) over the parts of [begin, end) that W = 1 and W = kVectorWidth cover: the elements
// before the first 128-bit boundary and after the last, then the vectors between; everything singly where the operands
// are not equally aligned. at(i) is the index that a step stands for.
template <int kWidth, class Visit>
__device__ __forceinline__ void split_range(int64_t begin, int64_t end, bool vectorised, int misaligned, int lane,
                                            int lanes, Visit visit) {
  const int64_t head = vectorised ? min(end, begin + (kWidth - misaligned) % kWidth) : end;
  const int64_t gap = (end - head) / kWidth * kWidth;
  visit(std::integral_constant<int, 1>(), begin + lane, end - gap, int64_t(lanes),
        [=](int64_t i) { return i < head ? i : i + gap; });
  visit(std::integral_constant<int, kWidth>(), head + int64_t(lane) * kWidth, head + gap, int64_t(lanes) * kWidth,
        [](int64_t i) { return i; });
}

// Sum over [begin, end), each of `lanes` threads its part; keeps copies where the source has a place for them.
template <class Source>
__device__ typename Source::Sum sum_range(const Source& source, int64_t begin, int64_t end, int lane, int lanes) {
  typename Source::Sum total = 0;
  split_range<Source::kWidth>(
      begin, end, source.vectorised, source.misaligned(begin), lane, lanes,
      [&](auto width, int64_t first, int64_t last, int64_t step, auto at) {
        constexpr int kW = decltype(width)::value;
        strided(first, last, step, [&](int64_t i) { return source.template fetch<kW>(at(i)); },
                [&](int64_t i, const auto& loaded) {
                  typename Source::Sum sums[kW] = {};
                  source.add(loaded, sums);
#pragma unroll
                  for (int k = 0; k < kW; ++k) total += sums[k];
                  source.keep(loaded, at(i) - source.kept_first);
                });
      });
  return total;
}

// emit(plane, sum over `length` pixels from element first + plane * pixels on) for planes [0, count); each plane by
// `segments` groups of `lanes` threads; cells: shared memory for count * segments sums.
template <class Source, class Emit>
__device__ void sum_planes(const Source& source, int64_t first, int64_t pixels, int64_t length, int count, int segments,
                           int lanes, typename Source::Sum* cells, Emit emit) {
  const int group = threadIdx.x / lanes, groups = blockDim.x / lanes, lane = threadIdx.x % lanes;
  const int units = count * segments;
  const int64_t step = int64_t(segments) * Source::kWidth;
  const int64_t span = (length + step - 1) / step * Source::kWidth;
  for (int start = 0; start < units; start += groups) {  // the same count for every lane of a warp: shuffles follow
    const int unit = start + group;
    typename Source::Sum sum = 0;
    if (unit < units) {
      const int64_t plane = first + unit / segments * pixels;
      const int64_t begin = min(length, unit % segments * span);
      sum = sum_range(source, plane + begin, plane + min(length, begin + span), lane, lanes);
    }
    sum = sum_lanes(sum, lanes);
    if (unit < units && lane == 0) cells[unit] = sum;
  }
  __syncthreads();
  for (int plane = threadIdx.x; plane < count; plane += blockDim.x) {
    typename Source::Sum sum = 0;
    for (int segment = 0; segment < segments; ++segment) sum += cells[plane * segments + segment];
    emit(plane, sum);
  }
}

// emit(column - first_column, sum over rows) for `columns` columns of a matrix with `pitch` elements a row, rows
// [first_row, last_row); at most `lanes` vectors of columns at a time; cells: blockDim.x * kWidth sums.
template <int kWidth, class Source, class Emit>
__device__ void sum_columns(const Source& source, int64_t first_row, int64_t last_row, int64_t pitch,
                            int64_t first_column, int64_t columns, int max_lanes, typename Source::Sum* cells,
                            Emit emit) {
  const int64_t vectors = columns / kWidth;
  max_lanes = min(max_lanes, int(blockDim.x));
  for (int64_t start = 0; start < vectors; start += max_lanes) {
    const int lanes = int(min(int64_t(max_lanes), vectors - start));
    const int rows = blockDim.x / lanes, row = threadIdx.x / lanes;
    const int64_t local = (start + threadIdx.x % lanes) * kWidth, column = first_column + local;
    if (row < rows) {
      typename Source::Sum sums[kWidth] = {};
      strided(first_row + row, last_row, rows,
              [&](int64_t i) { return source.template fetch<kWidth>(i * pitch + column, i); },
              [&](int64_t i, const auto& loaded) {
                source.add(loaded, sums);
                source.keep(loaded, (i - first_row) * columns + local);
              });
#pragma unroll
      for (int k = 0; k < kWidth; ++k) cells[(row * lanes + threadIdx.x % lanes) * kWidth + k] = sums[k];
    }
    sum_rows(cells, rows, lanes * kWidth, [&](int j, auto sum) { emit(start * kWidth + j, sum); });
  }
}

// map.apply over elements [begin, end) of planes of `pixels`; scale and shift (null: zeros) start with the plane
// first_plane; the copy in shared memory, where there is one, starts with element `begin`.
template <class Map, class A>
__device__ void map_planes(const Map& map, int64_t begin, int64_t end, int64_t pixels, int64_t first_plane,
                           const A* scale, const A* shift) {
  split_range<Map::kWidth>(
      begin, end, map.vectorised, map.misaligned(begin), threadIdx.x, blockDim.x,
      [&](auto width, int64_t first, int64_t last, int64_t step, auto at) {
        constexpr int kW = decltype(width)::value;
        strided(first, last, step, [&](int64_t i) { return map.template fetch<kW>(at(i), at(i) - begin); },
                [&](int64_t i, const auto& loaded) {
                  int64_t offset = at(i) - first_plane * pixels;
                  int64_t plane = 0;
                  if (offset >= pixels) {  // 32-bit division where it is enough: the other costs as much as the rest
                    plane = offset <= UINT32_MAX ? uint32_t(offset) / uint32_t(pixels) : offset / pixels;
                    offset -= plane * pixels;
                  }
                  A scales[kW], shifts[kW];
                  const A first_scale = scale ? scale[plane] : A(0), first_shift = shift ? shift[plane] : A(0);
#pragma unroll
                  for (int k = 0; k < kW; ++k) {
                    scales[k] = first_scale;
                    shifts[k] = first_shift;
                  }
                  if (offset + kW > pixels) {  // the vector goes on in the next planes
#pragma unroll
                    for (int k = 1; k < kW; ++k) {
                      if (++offset == pixels) {
                        offset = 0;
                        ++plane;
                      }
                      scales[k] = scale ? scale[plane] : A(0);
                      shifts[k] = shift ? shift[plane] : A(0);
                    }
                  }
                  map.apply(at(i), loaded, scales, shifts);
                });
      });
}

// map.apply over rows [first_row, last_row) of `columns` columns from first_column on; scale and shift (null: zeros)
// start with first_column, the copy in shared memory with the first element.
template <int kWidth, class Map, class A>
__device__ void map_columns(const Map& map, int64_t first_row, int64_t last_row, int64_t pitch, int64_t first_column,
                            int64_t columns, int max_lanes, const A* scale, const A* shift) {
  const int64_t vectors = columns / kWidth;
  max_lanes = min(max_lanes, int(blockDim.x));
  for (int64_t start = 0; start < vectors; start += max_lanes) {
    const int lanes = int(min(int64_t(max_lanes), vectors - start));
    const int rows = blockDim.x / lanes, row = threadIdx.x / lanes;
    const int64_t local = (start + threadIdx.x % lanes) * kWidth, column = first_column + local;
    if (row >= rows) continue;
    A scales[kWidth], shifts[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      scales[k] = scale ? scale[local + k] : A(0);
      shifts[k] = shift ? shift[local + k] : A(0);
    }
    strided(first_row + row, last_row, rows,
            [&](int64_t i) {
              return map.template fetch<kWidth>(i * pitch + column, (i - first_row) * columns + local);
            },
            [&](int64_t i, const auto& loaded) { map.apply(i * pitch + column, loaded, scales, shifts); });
  }
}

}  // namespace attnkernels
