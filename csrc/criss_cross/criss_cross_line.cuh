// The forward pass of criss_cross_attention on tensor cores, where a line's pixels fit into a block: its queries, keys
// and values are copied to shared memory at once, its probabilities never leave the registers.
//
// A warp has 16 queries of the line and all its keys. What mma.sync gives as energies is, exponentiated and rounded to
// 16 bits, what it takes as weights. A pass that follows another is launched to start early: all but the sums of the
// pass before is ready when it waits for that.
#pragma once
#include "common/async_copy.cuh"
#include "criss_cross/criss_cross.cuh"

namespace attnkernels::criss_cross {

// Value channels of a block: as many as there are up to the larger number, which repeats the energies least.
inline constexpr int kLineChannels[] = {128, 256};

struct LineTile {
  static constexpr int kMostPixels = 128;
  static constexpr int kPixels = 16;             // of a line, to a warp
  static constexpr int kChannels = 64;           // of queries and keys, and of the values that are in one stage
  static constexpr int kStride = kChannels + 8;  // of 16-bit elements: eight rows are in different banks

  static constexpr size_t shared_bytes(int64_t tiles, int stages) {
    return (2 + stages) * tiles * kPixels * kStride * 2;
  }
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

// 64 channels of a line's pixels, from `channel` on, by four vectors a thread; zeros outside the map.
template <class T>
__device__ __forceinline__ void copy_line(T* to, const T* map, const Place& place, int channels, int channel) {
  const int first = threadIdx.x / 8, c = threadIdx.x % 8 * 8, rows = blockDim.x / 8;
  const bool in_channels = channel + c < channels;
  const T* from = map + place.pixel(first) * channels + channel + c;
  const int64_t step = rows * place.step * channels;
  if (misalignment(map) == 0) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int row = first + k * rows;
      copy_async(to + row * LineTile::kStride + c, from, in_channels && row < int(place.length));
      from += step;
    }
  } else {
#pragma unroll 1
    for (int row = first; row < 4 * rows; row += rows) {
      const bool inside = in_channels && row < int(place.length);
#pragma unroll 1
      for (int k = 0; k < 8; ++k) to[row * LineTile::kStride + c + k] = inside ? from[k] : narrow<T>(0);
      from += step;
    }
  }
}

// What criss_cross_attention_pass computes. A block has a warp for every 16 pixels of a line, kMostTiles at most, and
// kStages times 64 value channels. Query channels are at most 64, and all channels multiples of 8.
//                                                                                      blocks [N, lines, tiles of C]
template <class T, int kStages, int kMostTiles>
__global__ void __launch_bounds__(32 * kMostTiles, 2)
    criss_cross_attention_line(const AttentionPass<T> pass, const uint32_t rests) {
  using Tile = LineTile;
  SHARED_DYNAMIC(T, shared);
  const int tiles = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group = lane / 4, member = lane % 4;
  const uint32_t line = blockIdx.x / rests, rest = blockIdx.x - line * rests;
  const Lines& lines = pass.lines;
  const uint32_t count = uint32_t(lines.count), step = uint32_t(lines.step), sample = line / count;
  const uint32_t line_of_sample = line - sample * count, block_of_lines = line_of_sample / step;
  const int length = int(lines.length), size = tiles * 16 * Tile::kStride;
  const int value_channels = int(pass.value_channels), query_channels = int(pass.query_channels);
  const Place place{
      (int64_t(sample) * count + block_of_lines * step) * length + (line_of_sample - block_of_lines * step), lines.step,
      lines.length, 0, 0};
  T* const query = shared;
  T* const key = query + size;
  T* const values = key + size;
  const int channel = int(rest) * (kStages * Tile::kChannels);
  if (!pass.is_last) launch_dependent_grids();
  copy_line(query, pass.query, place, query_channels, 0);
  copy_line(key, pass.key, place, query_channels, 0);
  commit_copies();
#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) {
    copy_line(values + stage * size, pass.value, place, value_channels, channel + stage * Tile::kChannels);
    commit_copies();
  }

  // Where a lane's rows of the matrices lie that ldmatrix loads: see multiply_on_tensor_cores.
  const int matrix_row = lane % 8, second = lane / 8 % 2 * 8, third = lane / 16 * 8;
  T* const own = query + warp * (16 * Tile::kStride);  // the warp's queries, later its results
  float energy[2 * kMostTiles][4] = {};
  wait_for_copies<kStages>();
  __syncthreads();
#pragma unroll
  for (int term = 0; term < Tile::kChannels; term += 16) {
    if (term >= query_channels) break;
    uint32_t rows[4];
    load_matrices<false>(rows, own + (matrix_row + second) * Tile::kStride + third + term);
#pragma unroll
    for (int t = 0; t < kMostTiles; ++t) {
      if (t >= tiles) break;
      uint32_t columns[4];
      load_matrices<false>(columns, key + (t * 16 + matrix_row + third) * Tile::kStride + second + term);
      mma_m16n8k16<T>(energy[2 * t], rows, {columns[0], columns[1]});
      mma_m16n8k16<T>(energy[2 * t + 1], rows, {columns[2], columns[3]});
    }
  }

  // The softmax over the line, of rows `group` and `group + 8` of the warp.
  constexpr float kLog2E = 1.4426950408889634f;
  const int row = warp * 16 + group;
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
#pragma unroll
  for (int t = 0; t < kMostTiles; ++t) {
    if (t >= tiles) break;
    if (t == tiles - 1 || (lines.skips_itself && t == warp)) {  // where not every pair is a query and a key
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int column = 16 * t + i / 4 * 8 + 2 * member + i % 2;
        if (column >= length || (lines.skips_itself && column == row + i % 4 / 2 * 8))
          energy[2 * t + i / 4][i % 4] = -INFINITY;
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i)  // a NaN is passed over here and comes back with the exponentials
      largest[i % 4 / 2] = fmaxf(largest[i % 4 / 2], energy[2 * t + i / 4][i % 4]);
  }
  float base[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int offset = 2; offset > 0; offset /= 2)
      largest[r] = fmaxf(largest[r], __shfl_xor_sync(0xffffffffu, largest[r], offset));
    base[r] = largest[r] == -INFINITY ? 0.f : largest[r] * kLog2E;  // no key counts yet: 2^(-inf - 0) is 0
  }
  uint32_t weights[kMostTiles][4];
#pragma unroll
  for (int t = 0; t < kMostTiles; ++t) {
    if (t >= tiles) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // of columns 8 (i / 2) + 2 member and the next, row `group` or 8 more
      float pair[2];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        pair[k] = power_of_two(energy[2 * t + i / 2][i % 2 * 2 + k] * kLog2E - base[i % 2]);
        sum[i % 2] += pair[k];
      }
      weights[t][i] = pack<T>(pair[0], pair[1]);
    }
  }
  sum[0] = sum_lanes(sum[0], 4);
  sum[1] = sum_lanes(sum[1], 4);

  // Of a row outside the line, the sums before are those of the warp's first row: loads need no branch.
  const auto row_of_sums = [&](int r) {
    return place.pixel(row + 8 * r < length ? row + 8 * r : warp * 16) * value_channels;
  };
  Vector<float, 2> before[2][8];
  const auto load_before = [&](int first_channel) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float* const from = pass.partial + row_of_sums(r) + first_channel + 2 * member;
#pragma unroll
      for (int j = 0; j < 8; ++j) before[r][j] = load<2>(from + (first_channel + 8 * j < value_channels ? 8 * j : 0));
    }
  };
  float scale[2] = {1, 1}, scale_before[2] = {};
#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) {
    const int first_channel = channel + stage * Tile::kChannels;
    if (first_channel >= value_channels) break;
    if (stage == 0) wait_for_copies<kStages - 1>();
    if (stage == 1) wait_for_copies<(kStages > 2 ? kStages - 2 : 0)>();
    if (stage == 2) wait_for_copies<(kStages > 3 ? kStages - 3 : 0)>();
    if (stage == 3) wait_for_copies<0>();
    __syncthreads();
    if (stage > 0 && pass.before.sum) load_before(first_channel);
    const T* const value = values + stage * size + (matrix_row + second) * Tile::kStride + third;
    float out[8][4] = {};
#pragma unroll
    for (int t = 0; t < kMostTiles; ++t) {
      if (t >= tiles) break;
#pragma unroll
      for (int c = 0; c < 4; ++c) {  // 16 channels
        uint32_t columns[4];
        load_matrices<true>(columns, value + t * (16 * Tile::kStride) + c * 16);
        mma_m16n8k16<T>(out[2 * c], weights[t], {columns[0], columns[1]});
        mma_m16n8k16<T>(out[2 * c + 1], weights[t], {columns[2], columns[3]});
      }
    }
    if (stage == 0) {
      if (pass.before.sum) {
        wait_for_primary_grid();
        load_before(first_channel);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int i = row + 8 * r;
        const bool inside = i < length, continues = pass.before.sum && inside;
        const float largest_before = continues ? pass.before.largest[place.pixel(i)] : -INFINITY;
        const float sum_before = continues ? pass.before.sum[place.pixel(i)] : 0.f;
        const float now = fmaxf(largest_before, largest[r]), shift = now == -INFINITY ? 0.f : now;
        scale[r] = exponential(largest[r] - shift);
        scale_before[r] = exponential(largest_before - shift);
        const float total = sum[r] * scale[r] + sum_before * scale_before[r];
        if (pass.is_last) {
          const float inverse = 1 / total;
          scale[r] *= inverse;
          scale_before[r] *= inverse;
        }
        if (rest || member || !inside) continue;
        if (pass.is_last) {
          pass.log_sum_exp[place.pixel(i)] = now + logarithm(total);
        } else {
          pass.after.largest[place.pixel(i)] = now;
          pass.after.sum[place.pixel(i)] = total;
        }
      }
    }
    if (pass.before.sum || pass.is_last) {
#pragma unroll
      for (int i = 0; i < 32; ++i) out[i / 4][i % 4] *= scale[i % 4 / 2];
    }
    if (pass.before.sum) {
#pragma unroll
      for (int i = 0; i < 32; ++i) out[i / 4][i % 4] += before[i % 4 / 2][i / 4].words[i % 2] * scale_before[i % 4 / 2];
    }
    if (!pass.is_last) {
      __syncwarp();  // the first row is read for others
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float* const to = pass.partial + row_of_sums(r) + first_channel + 2 * member;
        const int left = row + 8 * r < length ? value_channels - first_channel : 0;
#pragma unroll
        for (int j = 0; j < 8; ++j)
          if (8 * j < left) store(to + 8 * j, Vector<float, 2>{{out[j][2 * r], out[j][2 * r + 1]}});
      }
      continue;
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int j = i / 2, r = i % 2;
      *reinterpret_cast<Vector<T, 2>*>(own + (group + 8 * r) * Tile::kStride + 8 * j + 2 * member) =
          Vector<T, 2>{{pack<T>(out[j][2 * r], out[j][2 * r + 1])}};
    }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int i = lane / 8 + 4 * k, c = lane % 8 * 8;
      if (warp * 16 + i < length && first_channel + c < value_channels)
        store(pass.out + place.pixel(warp * 16 + i) * value_channels + first_channel + c,
              load<8>(own + i * Tile::kStride + c));
    }
    __syncwarp();
  }
}

}  // namespace attnkernels::criss_cross
