// The backward pass of criss_cross_attention by whole lines: all three gradients in one pass along an axis.
//
// A block has its line's probabilities in shared memory from the start, for the log_sum_exp is known. Of 64 channels of
// grad_out and of the values at a time, it then takes the products of their pixels, and weights grad_out with the
// probabilities. Queries and keys are copied twice rather than held all along: lines of 97 pixels then take 91 KB
// instead of 123, which devices with 99 KB a block have too.
#pragma once
#include "criss_cross/criss_cross_line.cuh"

namespace attnkernels::criss_cross {

// Gradients that are not wanted are null.
template <class T>
struct GradientLinePass {
  Lines lines;
  int64_t query_channels, value_channels;
  const T *query, *key, *value, *grad_out;
  const float *log_sum_exp, *delta;
  float *partial_query, *partial_key, *partial_value;  // not used by an only pass
  T *grad_query, *grad_key, *grad_value;
  bool is_first, is_last;
};

// Of a row of weights: eight of them are in different banks.
constexpr int line_weights_stride(int tiles) { return tiles * LineTile::kPixels + 8; }

constexpr size_t line_backward_shared_bytes(int tiles) {
  return (tiles * LineTile::kPixels * line_weights_stride(tiles) + 4 * tiles * LineTile::kSize) * 2;
}

// Two warps have 16 rows of every product: half of its columns each, or half of 64 channels.
constexpr int line_backward_threads(int tiles) { return 64 * tiles; }

// What criss_cross_gradient_pass computes, of all gradients. A block has a line of at most 16 kTiles pixels. Query
// channels are at most 64, and all channels multiples of 8.
//                                                                                                   blocks [N, lines]
template <class T, int kTiles>
__global__ void __launch_bounds__(line_backward_threads(kTiles), kTiles > 5 ? 1 : 2)
    criss_cross_gradient_line(const GradientLinePass<T> pass) {
  using Tile = LineTile;
  constexpr int kSize = kTiles * Tile::kSize, kWeightsStride = line_weights_stride(kTiles);
  constexpr int kThreads = line_backward_threads(kTiles), kHalf = (kTiles + 1) / 2;
  SHARED_DYNAMIC(T, shared);
  const int lane = threadIdx.x % 32, member = lane % 4, first_row = threadIdx.x / 64 * Tile::kPixels;
  const int half = threadIdx.x / 32 % 2, first_tile = half * (kTiles - kHalf);
  const int row = first_row + lane / 4, own_channel = half * (Tile::kChannels / 2);
  // Of an odd number of tiles, one is computed twice and the first half's counts.
  const auto is_of_other = [&](int t) { return kTiles % 2 && half && t == 0; };
  const Lines& lines = pass.lines;
  const Place place = place_of_line(lines, blockIdx.x);
  const int length = int(lines.length), query_channels = int(pass.query_channels);
  const int value_channels = int(pass.value_channels);
  const int stages = (value_channels + Tile::kChannels - 1) / Tile::kChannels;
  const bool wants_energies = pass.grad_query || pass.grad_key;
  // Weights are [query][key]: first the probabilities, then the gradients of the energies. A buffer has the rows and
  // the columns of a product: grad_out and values, or queries and keys.
  T* const weights = shared;
  T* const buffers = weights + kTiles * Tile::kPixels * kWeightsStride;
  const auto rows_of = [&](int stage) { return buffers + (stage & 1) * 2 * kSize; };
  const auto copy_energies = [&](int stage) {
    copy_line<kTiles, kThreads>(rows_of(stage), pass.query, place, query_channels, 0);
    copy_line<kTiles, kThreads>(rows_of(stage) + kSize, pass.key, place, query_channels, 0);
  };
  const auto copy_stage = [&](int stage) {
    const int channel = stage * Tile::kChannels;
    copy_line<kTiles, kThreads>(rows_of(stage), pass.grad_out, place, value_channels, channel);
    if (wants_energies) copy_line<kTiles, kThreads>(rows_of(stage) + kSize, pass.value, place, value_channels, channel);
  };
  if (!pass.is_last) launch_dependent_grids();
  copy_energies(1);
  commit_copies();
  copy_stage(0);
  commit_copies();

  float log_sum_exp[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) log_sum_exp[r] = row + 8 * r < length ? pass.log_sum_exp[place.pixel(row + 8 * r)] : 0.f;
  T* const own_weights = weights + row * kWeightsStride + first_tile * Tile::kPixels + 2 * member;
  const auto pair_of_weights = [&](int t, int i) {  // of the sums of add_products
    return reinterpret_cast<Vector<T, 2>*>(own_weights + i % 2 * 8 * kWeightsStride + 16 * t + i / 2 * 8);
  };
  const T* const own_columns = buffers + kSize + first_tile * Tile::kSize;
  LineSums<kHalf> sums = {};
  wait_for_copies<1>();
  __syncthreads();
  add_products<T, kHalf>(sums, rows_of(1) + first_row * Tile::kStride, own_columns + 2 * kSize, query_channels);
#pragma unroll
  for (int t = 0; t < kHalf; ++t) {
    if (is_of_other(t)) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float pair[2];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const int of_row = row + i % 2 * 8, column = (first_tile + t) * Tile::kPixels + i / 2 * 8 + 2 * member + k;
        const bool is_pair = of_row < length && column < length && !(lines.skips_itself && of_row == column);
        constexpr float kLog2E = 1.4426950408889634f;
        const float energy = sums[2 * t + i / 2][i % 2 * 2 + k] - log_sum_exp[i % 2];
        pair[k] = is_pair ? power_of_two(energy * kLog2E) : 0.f;
      }
      pair_of_weights(t, i)->words[0] = pack<T>(pair[0], pair[1]);
    }
  }
#pragma unroll
  for (int i = 0; i < 8 * kHalf; ++i) sums[i / 4][i % 4] = 0;

  // Gradients of the warp's 16 pixels and 32 channels: what the passes before left, the weights or their transpose
  // times pixels, and what becomes of the sums.
  const auto start = [&](LineSums<2>& gradient, int channels, int channel, const float* partial) {
    if (!pass.is_first) LineRows{place, row, channels}.load_sums(gradient, partial, channel + own_channel);
  };
  const auto add_pixels = [&](auto transposed, LineSums<2>& gradient, const T* pixels) {
    const int lower = lane % 16, right = lane / 16 * 8;  // see multiply_on_tensor_cores
    const T* const from = transposed ? weights + (lane % 8 + right) * kWeightsStride + first_row + lane / 8 % 2 * 8
                                     : weights + (first_row + lower) * kWeightsStride + right;
    add_weighted<T, kTiles, 2>(
        gradient,
        [&](int t, uint32_t (&to)[4]) {
          load_matrices<transposed>(to, from + t * Tile::kPixels * (transposed ? kWeightsStride : 1));
        },
        pixels + own_channel);
  };
  const auto finish = [&](const LineSums<2>& gradient, int channels, int channel, float* partial, T* result) {
    if (pass.is_last) {
      LineRows{place, row, channels}.store_result(result, gradient, channel + own_channel);
    } else {
      LineRows{place, row, channels}.store_sums(partial, gradient, channel + own_channel);
    }
  };
  if (!pass.is_first) wait_for_primary_grid();
  LineSums<2> next = {};  // what is to be added to the values' gradients of the next stage
  if (pass.grad_value) start(next, value_channels, 0, pass.partial_value);
#pragma unroll 1
  for (int stage = 0; stage < stages; ++stage) {
    const int channel = stage * Tile::kChannels;
    wait_for_copies<0>();
    __syncthreads();  // the copies are seen, and nothing is read from the other buffer any more
    LineSums<2> of_values;
#pragma unroll
    for (int i = 0; i < 16; ++i) of_values[i / 4][i % 4] = next[i / 4][i % 4];
    if (stage + 1 < stages) {
      copy_stage(stage + 1);
      if (pass.grad_value) start(next, value_channels, channel + Tile::kChannels, pass.partial_value);
    } else if (wants_energies) {
      copy_energies(stage + 1);
    }
    commit_copies();
    const T* const grad_out = rows_of(stage);
    if (pass.grad_value) {
      add_pixels(std::true_type{}, of_values, grad_out);
      finish(of_values, value_channels, channel, pass.partial_value, pass.grad_value);
    }
    if (wants_energies)
      add_products<T, kHalf>(sums, grad_out + first_row * Tile::kStride, own_columns + (stage & 1) * 2 * kSize,
                             value_channels - channel);
  }
  if (!wants_energies) return;

  float delta[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) delta[r] = row + 8 * r < length ? pass.delta[place.pixel(row + 8 * r)] : 0.f;
  const T *const queries = rows_of(stages), *const keys = queries + kSize;
  wait_for_copies<0>();
  __syncthreads();  // no probability is read any more but here
#pragma unroll
  for (int t = 0; t < kHalf; ++t) {
    if (is_of_other(t)) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      Vector<T, 2>* const pair = pair_of_weights(t, i);
      const float* const products = sums[2 * t + i / 2] + i % 2 * 2;
      pair->words[0] =
          pack<T>(pair->get(0) * (products[0] - delta[i % 2]), pair->get(1) * (products[1] - delta[i % 2]));
    }
  }
  __syncthreads();
  if (pass.grad_query) {
    LineSums<2> gradient = {};
    start(gradient, query_channels, 0, pass.partial_query);
    add_pixels(std::false_type{}, gradient, keys);
    finish(gradient, query_channels, 0, pass.partial_query, pass.grad_query);
  }
  if (pass.grad_key) {
    LineSums<2> gradient = {};
    start(gradient, query_channels, 0, pass.partial_key);
    add_pixels(std::true_type{}, gradient, queries);
    finish(gradient, query_channels, 0, pass.partial_key, pass.grad_key);
  }
}

}  // namespace attnkernels::criss_cross
