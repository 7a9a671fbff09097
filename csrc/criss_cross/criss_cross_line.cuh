// What the passes of criss_cross_attention on tensor cores have in common, where a line's pixels fit into a block.
#pragma once
#include "common/async_copy.cuh"
#include "criss_cross/criss_cross_tile.cuh"

namespace attnkernels::criss_cross {

// Tiles of 16 pixels in the kernels' instances: of lines of 33, 65 and 97 pixels, as CCNet's crops of 257, 513 and 769
// have them, and of the longest. A line is in the smallest that holds it, with zeros for the pixels that it lacks.
inline constexpr int kLineTiles[] = {3, 5, 7, 8};

struct LineTile {
  static constexpr int kPixels = 16;  // of a line, to a warp
  static constexpr int kMostPixels = 8 * kPixels;
  static constexpr int kChannels = 64;           // of queries and keys, and of a part of the values
  static constexpr int kStride = kChannels + 8;  // of 16-bit elements: eight rows are in different banks
  static constexpr int kSize = kPixels * kStride;
};

// 2^x, with denormal results flushed to zero.
__device__ __forceinline__ float power_of_two(float x) {
#ifdef ATTNKERNELS_EMULATED
  return exp2f(x);
#else
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#endif
}

template <class T>
__device__ __forceinline__ uint32_t pack(float first, float second) {
  Vector<T, 2> pair;
  pair.set({first, second});
  return pair.words[0];
}

// 64 channels of a line's pixels, from `channel` on, 16 bytes a thread at a time; zeros outside the map, whose address
// is a multiple of 16 bytes.
template <int kTiles, int kThreads, class T>
__device__ __forceinline__ void copy_line(T* to, const T* map, const Place& place, int channels, int channel) {
  constexpr int kRows = kThreads / 8;  // by all threads at once
  static_assert(kTiles * LineTile::kPixels % kRows == 0);
  const int first = threadIdx.x / 8, c = threadIdx.x % 8 * 8;
  const bool in_channels = channel + c < channels;
  const T* from = map + place.pixel(first) * channels + channel + c;
  const int64_t step = kRows * place.step * channels;
#pragma unroll
  for (int row = 0; row < kTiles * LineTile::kPixels; row += kRows) {
    copy_async(to + (first + row) * LineTile::kStride + c, from, in_channels && first + row < int(place.length));
    from += step;
  }
}

// The line that a block of the grid [N, lines] has.
__device__ __forceinline__ Place place_of_line(const Lines& lines, uint32_t line) {
  const uint32_t count = uint32_t(lines.count), step = uint32_t(lines.step), sample = line / count;
  const uint32_t line_of_sample = line - sample * count, block_of_lines = line_of_sample / step;
  return {(int64_t(sample) * count + block_of_lines * step) * lines.length + (line_of_sample - block_of_lines * step),
          lines.step, lines.length, 0, 0};
}

// Sums that a lane has of a warp's 16 rows and of 16 columns a tile: sums[2 tile + i / 4][i % 4] are of row `group`, or
// 8 more where i % 4 >= 2, and of column 8 (i / 4) + 2 member + i % 2 of the tile, with lane = 4 group + member.
template <int kTiles>
using LineSums = float[2 * kTiles][4];

// sums += rows [16][terms] times the transpose of columns [16 kTiles][terms], both in shared memory. Each matrix is
// loaded while the one before is multiplied.
template <class T, int kTiles>
__device__ __forceinline__ void add_products(LineSums<kTiles>& sums, const T* rows, const T* columns, int terms) {
  // Where a lane's rows of the matrices lie that ldmatrix loads: see multiply_on_tensor_cores.
  const int lane = threadIdx.x % 32, matrix_row = lane % 8, second = lane / 8 % 2 * 8, third = lane / 16 * 8;
  rows += (matrix_row + second) * LineTile::kStride + third;
  columns += (matrix_row + third) * LineTile::kStride + second;
#pragma unroll
  for (int term = 0; term < LineTile::kChannels; term += 16) {
    if (term >= terms) break;
    uint32_t a[4], b[2][4];
    load_matrices<false>(a, rows + term);
    load_matrices<false>(b[0], columns + term);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if (t + 1 < kTiles) load_matrices<false>(b[(t + 1) % 2], columns + (t + 1) * LineTile::kSize + term);
      const uint32_t (&now)[4] = b[t % 2];
      mma_m16n8k16<T>(sums[2 * t], a, {now[0], now[1]});
      mma_m16n8k16<T>(sums[2 * t + 1], a, {now[2], now[3]});
    }
  }
}

// sums += weights [16][16 kTiles] times 16 kGroups channels of [16 kTiles] pixels in shared memory;
// load_weights(tile, registers as mma.sync has them).
template <class T, int kTiles, int kGroups, class LoadWeights>
__device__ __forceinline__ void add_weighted(LineSums<kGroups>& sums, LoadWeights load_weights, const T* pixels) {
  const int lane = threadIdx.x % 32;
  pixels += lane % 16 * LineTile::kStride + lane / 16 * 8;
  const auto load_pixels = [&](int i, uint32_t (&to)[4]) {
    load_matrices<true>(to, pixels + i / kGroups * LineTile::kSize + i % kGroups * 16);
  };
  uint32_t a[2][4], b[2][4];
  load_weights(0, a[0]);
  load_pixels(0, b[0]);
#pragma unroll
  for (int i = 0; i < kTiles * kGroups; ++i) {
    const int t = i / kGroups, group = i % kGroups;
    if (i + 1 < kTiles * kGroups) load_pixels(i + 1, b[(i + 1) % 2]);
    if (group == 0 && t + 1 < kTiles) load_weights(t + 1, a[(t + 1) % 2]);
    const uint32_t (&now)[4] = b[i % 2];
    mma_m16n8k16<T>(sums[2 * group], a[t % 2], {now[0], now[1]});
    mma_m16n8k16<T>(sums[2 * group + 1], a[t % 2], {now[2], now[3]});
  }
}

// words[k] of lane m of every four becomes words[m] of lane k.
__device__ __forceinline__ void transpose_quads(uint32_t (&words)[4]) {
#pragma unroll
  for (int offset = 1; offset < 4; offset *= 2) {
    const bool upper = threadIdx.x & offset;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & offset) continue;
      const uint32_t given = upper ? words[i] : words[i + offset];
      const uint32_t taken = __shfl_xor_sync(0xffffffffu, given, offset);
      words[i] = upper ? taken : words[i];
      words[i + offset] = upper ? words[i + offset] : taken;
    }
  }
}

// Two pixels of a line that lie 8 apart, from `row` on, in maps of so many channels. Sums are of 16 kGroups of these,
// from `channel` on.
struct LineRows {
  const Place& place;
  int row, channels;

  // Zeros for what is not in the map.
  template <int kCount>
  __device__ __forceinline__ void load_sums(float (&sums)[kCount][4], const float* from, int channel) const {
    for_each_row(channel, [&](int r, int64_t at, int left) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        const auto pair = 8 * j < left ? load<2>(from + at + 8 * j + threadIdx.x % 4 * 2) : Vector<float, 2>{};
        sums[j][2 * r] = pair.words[0], sums[j][2 * r + 1] = pair.words[1];
      }
    });
  }

  template <int kCount>
  __device__ __forceinline__ void store_sums(float* to, const float (&sums)[kCount][4], int channel) const {
    for_each_row(channel, [&](int r, int64_t at, int left) {
#pragma unroll
      for (int j = 0; j < kCount; ++j)
        if (8 * j < left)
          store(to + at + 8 * j + threadIdx.x % 4 * 2, Vector<float, 2>{{sums[j][2 * r], sums[j][2 * r + 1]}});
    });
  }

  template <class T, int kCount>
  __device__ __forceinline__ void store_result(T* to, const float (&sums)[kCount][4], int channel) const {
    static_assert(kCount % 4 == 0);
#pragma unroll
    for (int first = 0; first < kCount; first += 4) {
      uint32_t words[2][4];
#pragma unroll
      for (int i = 0; i < 8; ++i)
        words[i / 4][i % 4] = pack<T>(sums[first + i % 4][i / 4 * 2], sums[first + i % 4][i / 4 * 2 + 1]);
      transpose_quads(words[0]);
      transpose_quads(words[1]);
      const int c = 8 * (first + int(threadIdx.x % 4));
      for_each_row(channel, [&](int r, int64_t at, int left) {
        if (c < left) store(to + at + c, Vector<T, 8>{{words[r][0], words[r][1], words[r][2], words[r][3]}});
      });
    }
  }

 private:
  // visit(r, the place of `channel`, channels that are left)
  template <class Visit>
  __device__ __forceinline__ void for_each_row(int channel, Visit visit) const {
#pragma unroll
    for (int r = 0; r < 2; ++r)
      visit(r, place.pixel(row + 8 * r) * channels + channel, row + 8 * r < int(place.length) ? channels - channel : 0);
  }
};

}  // namespace attnkernels::criss_cross
