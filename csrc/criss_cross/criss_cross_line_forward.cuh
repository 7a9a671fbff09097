// The forward pass of criss_cross_attention by whole lines: a block's queries, keys and values are copied to shared
// memory at once, its probabilities never leave the registers.
//
// What mma.sync gives as energies is, exponentiated and rounded to 16 bits, what it takes as weights. A pass that
// follows another is launched to start early: all but the sums of the pass before is ready when it waits for that.
#pragma once
#include "criss_cross/criss_cross.cuh"
#include "criss_cross/criss_cross_line.cuh"

namespace attnkernels::criss_cross {

// Value channels of a block: as many as there are up to the larger number, which repeats the energies least.
inline constexpr int kLineChannels[] = {128, 256};

constexpr size_t line_shared_bytes(int tiles, int stages) { return (2 + stages) * tiles * LineTile::kSize * 2; }

// What criss_cross_attention_pass computes. A block has a line of at most 16 kTiles pixels, a warp for every 16 of
// them, and kStages times 64 value channels. Query channels are at most 64, and all channels multiples of 8.
//                                                                                      blocks [N, lines, tiles of C]
template <class T, int kStages, int kTiles>
__global__ void __launch_bounds__(32 * kTiles, 2)
    criss_cross_attention_line(const AttentionPass<T> pass, const uint32_t rests) {
  using Tile = LineTile;
  constexpr int kSize = kTiles * Tile::kSize;
  SHARED_DYNAMIC(T, shared);
  const int warp = threadIdx.x / 32, member = threadIdx.x % 4, row = warp * 16 + threadIdx.x % 32 / 4;
  const uint32_t line = blockIdx.x / rests, rest = blockIdx.x - line * rests;
  const Lines& lines = pass.lines;
  const Place place = place_of_line(lines, line);
  const int length = int(lines.length);
  const int value_channels = int(pass.value_channels), query_channels = int(pass.query_channels);
  T* const query = shared;
  T* const key = query + kSize;
  T* const values = key + kSize;
  const int channel = int(rest) * (kStages * Tile::kChannels);
  if (!pass.is_last) launch_dependent_grids();
  copy_line<kTiles, 32 * kTiles>(query, pass.query, place, query_channels, 0);
  copy_line<kTiles, 32 * kTiles>(key, pass.key, place, query_channels, 0);
  commit_copies();
#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) {
    copy_line<kTiles, 32 * kTiles>(values + stage * kSize, pass.value, place, value_channels,
                                   channel + stage * Tile::kChannels);
    commit_copies();
  }

  LineSums<kTiles> energy = {};
  wait_for_copies<kStages>();
  __syncthreads();
  add_products<T, kTiles>(energy, query + warp * Tile::kSize, key, query_channels);

  // The softmax over the line, of rows `row` and `row + 8`.
  constexpr float kLog2E = 1.4426950408889634f;
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    if (16 * t + 16 > length || (lines.skips_itself && t == warp)) {  // where not every pair is a query and a key
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
  uint32_t weights[kTiles][4];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
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

  const LineRows rows{place, row, value_channels};
  LineSums<4> before;
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
    if (stage > 0 && pass.before.sum) rows.load_sums(before, pass.partial, first_channel);
    LineSums<4> out = {};
    add_weighted<T, kTiles, 4>(
        out,
        [&](int t, uint32_t (&to)[4]) {
#pragma unroll
          for (int i = 0; i < 4; ++i) to[i] = weights[t][i];
        },
        values + stage * kSize);
    if (stage == 0) {
      if (pass.before.sum) {
        wait_for_primary_grid();
        rows.load_sums(before, pass.partial, first_channel);
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
      for (int i = 0; i < 32; ++i) out[i / 4][i % 4] += before[i / 4][i % 4] * scale_before[i % 4 / 2];
    }
    if (pass.is_last) {
      rows.store_result(pass.out, out, first_channel);
    } else {
      rows.store_sums(pass.partial, out, first_channel);
    }
  }
}

}  // namespace attnkernels::criss_cross
