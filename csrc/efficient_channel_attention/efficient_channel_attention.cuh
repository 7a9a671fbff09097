// The CUDA kernels of efficient_channel_attention; the symbols are those of
// attnkernels/ops/efficient_channel_attention/reference.py. Each direction takes two: the convolution over the channels
// is so small that every block of the second pass computes its own part of it.
#pragma once
#include "common/gate_passes.cuh"
#include "efficient_channel_attention/efficient_channel_attention_launch.h"

namespace attnkernels::efficient_channel_attention {

using namespace gate;

// The sum of one channel over the pixels, from those of its splits in partial [samples, splits, channels], in their
// order.
template <class acc_t>
__device__ __forceinline__ acc_t sum_of_splits(const acc_t* partial, int64_t n, int64_t splits, int64_t channels,
                                               int64_t channel) {
  acc_t sum = 0;
#pragma unroll 2
  for (int64_t split = 0; split < splits; ++split) sum += partial[(n * splits + split) * channels + channel];
  return sum;
}

template <class T>
struct ForwardArguments {
  using acc_t = acc_type<T>;
  ForwardMaps<T> maps;
  const T* weight;
  acc_t* saved;    // [N, 2 C]: means, gates
  acc_t* partial;  // [N, splits, C] sums over pixels, where splits > 1
  Shape shape;
  int64_t sum_splits;
};

template <class T>
struct BackwardArguments {
  using acc_t = acc_type<T>;
  BackwardMaps<T> maps;
  const T* weight;
  const acc_t* saved;  // [N, 2 C]
  acc_t* partial;      // [N, splits, C] sums of dz x, where splits > 1
  acc_t* grad_logits;  // [N, C] dv, where splits == 1
  Shape shape;
  int64_t sum_splits;

  __device__ __forceinline__ acc_t gate(int64_t n, int64_t channel) const {
    return saved[n * shape.saved_columns() + shape.channels + channel];
  }
  __device__ __forceinline__ acc_t grad_logit(int64_t n, int64_t channel) const {
    if (sum_splits == 1) return grad_logits[n * shape.channels + channel];
    const acc_t sum = sum_of_splits(partial, n, sum_splits, shape.channels, channel);
    return sum * gate_derivative(gate(n, channel), shape.gate);
  }
};

// The numbers by which a block's part of the convolution multiplies the taps, of channels from `first` - taps / 2 on.
template <class acc_t, class Fetch>
__device__ __forceinline__ void stage_channels(const Shape& shape, int64_t first, int count, acc_t* to, Fetch fetch) {
  stage(to, count + shape.taps - 1, [&](int i) {
    const int64_t channel = shape.channel_at(first - shape.taps / 2 + i);
    return channel < 0 ? acc_t(0) : fetch(channel);
  });
}

// saved[n, c] = sum_p x[n, c, p] / pixels, or the sums of each split into partial[n, split, c]
template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads)
    efficient_channel_attention_pool(const ForwardArguments<T> a, const Tiles tiles) {
  pool_block<kChannelsLast>(a.maps, tiles, a.partial, [&](int64_t n, int64_t channel, acc_type<T> sum) {
    a.saved[n * a.shape.saved_columns() + channel] = sum / acc_type<T>(a.shape.pixels);
  });
}

// y[n, c, p] = output_activation(x[n, c, p] gate(sum_j weight[j] m[n, c + j - k / 2]) + residual)
template <class T, bool kChannelsLast, bool kResidual>
__global__ void __launch_bounds__(kThreads, kMapBlocks<T>)
    efficient_channel_attention_scale(const ForwardArguments<T> a, const Tiles tiles) {
  using acc_t = acc_type<T>;
  scale_block<kChannelsLast, kResidual>(a.maps, tiles, [&](int64_t n, const MapRange& range, acc_t* shared) {
    const Shape& shape = a.shape;
    const int count = int(range.count), half = shape.taps / 2;
    acc_t* const gates = shared;                                            // [tiles.channels]
    acc_t* const means = gates + padded(tiles.channels);                    // [tiles.channels + taps - 1]
    acc_t* const weight = means + padded(tiles.channels + shape.taps - 1);  // [taps]
    acc_t* const saved = a.saved + n * shape.saved_columns();
    stage(weight, shape.taps, [&](int j) { return widen(a.weight[j]); });
    wait_for_primary_grid();
    stage_channels(shape, range.first, count, means, [&](int64_t channel) {
      if (a.sum_splits == 1) return saved[channel];
      return sum_of_splits(a.partial, n, a.sum_splits, shape.channels, channel) / acc_t(shape.pixels);
    });
    __syncthreads();
    for (int j = threadIdx.x; j < count; j += kThreads) {
      acc_t sum = 0;
      for (int k = 0; k < shape.taps; ++k) sum += weight[k] * means[j + k];
      gates[j] = open_gate(sum, shape.gate);
      if (!range.template has_first_pixel<kChannelsLast>(j, shape.pixels)) continue;
      saved[shape.channels + range.first + j] = gates[j];
      if (a.sum_splits > 1) saved[range.first + j] = means[j + half];
    }
    __syncthreads();
    return gates;
  });
}

// dv[n, c] = gate'(v[n, c]) sum_p dz[n, c, p] x[n, c, p], or the sums of each split into partial[n, split, c]
template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, kSumBlocks<T>)
    efficient_channel_attention_backward_sums(const BackwardArguments<T> a, const Tiles tiles) {
  grad_sum_block<kChannelsLast>(a.maps, tiles, a.partial, [&](int64_t n, int64_t channel, acc_type<T> sum) {
    a.grad_logits[n * a.shape.channels + channel] = sum * gate_derivative(a.gate(n, channel), a.shape.gate);
  });
}

// dweight[j] = sum_n,c dv[n, c] m[n, c + j - k / 2]. Each block takes some samples, all taps of them; where there are
// several blocks, a kernel of its own adds up what they have.
template <class T>
struct WeightGrad {
  using acc_t = acc_type<T>;
  BackwardArguments<T> a;  // of all samples
  T* grad_weight;          // or null
  acc_t* parts;            // [blocks, taps]
  WeightBlocks division;
  unsigned grid_rows = 0;  // of the second pass's grid, which compute it

  __host__ __device__ int64_t blocks() const { return grad_weight ? division.blocks : 0; }

  __device__ __forceinline__ acc_t of_tap(int tap, int64_t first, int64_t last) const {
    const Shape& shape = a.shape;
    const int across = division.across, channels = int(shape.channels), half = shape.taps / 2;
    struct Factors {
      acc_t grad, mean;
    };
    acc_t sum = 0;
    const auto add = [&](auto under_way, const auto& grad_of) {
      for (int64_t n = first + int(threadIdx.x) / across; n < last; n += kThreads / across) {
        const acc_t* const means = a.saved + n * shape.saved_columns();
        strided<under_way()>(
            int(threadIdx.x) % across, channels, across,
            [&](int channel) -> Factors {
              const int other = int(shape.channel_at(channel + tap - half));
              if (other < 0) return {0, 0};
              return {grad_of(n, channel), means[other]};
            },
            [&](int, const Factors& loaded) { sum += loaded.grad * loaded.mean; });
      }
    };
    if (a.sum_splits == 1) {
      add(std::integral_constant<int, kWeightChannels>(),
          [&](int64_t n, int channel) { return a.grad_logits[n * shape.channels + channel]; });
    } else {  // of few samples
      add(std::integral_constant<int, 1>(), [&](int64_t n, int channel) { return a.grad_logit(n, channel); });
    }
    return sum;
  }

  // cells: [taps, warps]
  __device__ __forceinline__ void compute(int64_t block, acc_t* cells) const {
    if (block >= blocks()) return;
    constexpr int kWarps = kThreads / 32;
    const int taps = a.shape.taps;
    const int64_t first = block * division.samples, last = min(first + division.samples, a.shape.samples);
    for (int tap = 0; tap < taps; ++tap) {
      const acc_t sum = sum_lanes(of_tap(tap, first, last), 32);
      if (threadIdx.x % 32 == 0) cells[tap * kWarps + threadIdx.x / 32] = sum;
    }
    __syncthreads();
    for (int tap = threadIdx.x; tap < taps; tap += kThreads) {
      acc_t sum = 0;
      for (int warp = 0; warp < kWarps; ++warp) sum += cells[tap * kWarps + warp];
      if (division.blocks == 1) {
        grad_weight[tap] = narrow<T>(sum);
      } else {
        parts[block * taps + tap] = sum;
      }
    }
  }
};

// A block for each tap.
template <class T>
__global__ void __launch_bounds__(32) efficient_channel_attention_weight_sum(const WeightGrad<T> grad) {
  using acc_t = acc_type<T>;
  wait_for_primary_grid();
  const int taps = grad.a.shape.taps;
  acc_t sum = 0;
  strided<4>(
      int64_t(threadIdx.x), grad.division.blocks, int64_t(32),
      [&](int64_t block) { return grad.parts[block * taps + blockIdx.x]; }, [&](int64_t, acc_t part) { sum += part; });
  sum = sum_lanes(sum, 32);
  if (threadIdx.x == 0) grad.grad_weight[blockIdx.x] = narrow<T>(sum);
}

// grad_x[n, c, p] = dz g[n, c] + sum_j weight[j] dv[n, c - j + k / 2] / pixels, grad_residual = dz. The first rows of
// the grid take the gradient of the weight instead.
template <class T, bool kChannelsLast, bool kClip>
__global__ void __launch_bounds__(kThreads, kGradMapBlocks<T>)
    efficient_channel_attention_backward_map(const BackwardArguments<T> a, const Tiles tiles,
                                             const WeightGrad<T> weight_grad) {
  using acc_t = acc_type<T>;
  if (blockIdx.y < weight_grad.grid_rows) {
    SHARED_DYNAMIC(acc_t, cells);
    launch_dependent_grids();
    wait_for_primary_grid();
    weight_grad.compute(blockIdx.y * gridDim.x + blockIdx.x, cells);
    return;
  }
  grad_map_block<kChannelsLast, kClip>(
      a.maps, tiles, [&](int64_t n, const MapRange& range, acc_t* scale, acc_t* shift, acc_t* shared) {
        const Shape& shape = a.shape;
        const int count = int(range.count), last = shape.taps - 1;
        acc_t* const grad_logits = shared;                                  // [tiles.channels + taps - 1]
        acc_t* const weight = grad_logits + padded(tiles.channels + last);  // [taps]
        stage(weight, shape.taps, [&](int j) { return widen(a.weight[j]); });
        wait_for_primary_grid();
        stage(scale, count, [&](int j) { return a.gate(n, range.first + j); });
        stage_channels(shape, range.first, count, grad_logits,
                       [&](int64_t channel) { return a.grad_logit(n, channel); });
        __syncthreads();
        for (int j = threadIdx.x; j < count; j += kThreads) {
          acc_t sum = 0;
          for (int k = 0; k <= last; ++k) sum += weight[k] * grad_logits[j + last - k];
          shift[j] = sum / acc_t(shape.pixels);
        }
      });
}

// Where there is no second pass to go along with.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) efficient_channel_attention_backward_weight(const WeightGrad<T> grad) {
  SHARED_DYNAMIC(acc_type<T>, cells);
  wait_for_primary_grid();
  grad.compute(blockIdx.x, cells);
}

}  // namespace attnkernels::efficient_channel_attention
