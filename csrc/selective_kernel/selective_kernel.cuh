// The CUDA kernels of selective_kernel; the symbols are those of attnkernels/ops/selective_kernel/reference.py.
// Branches are taken two by two, so that registers need not hold all of them. Grids are (samples * channel tiles *
// splits). kBranches: how many branches there are, or 0 for as many as the shape says.
#pragma once
#include "common/pointwise.cuh"
#include "selective_kernel/selective_kernel_walk.cuh"

namespace attnkernels::selective_kernel {

// Blocks that a multiprocessor must at least have registers for: 64 a thread, where that is without spills, or 128.
// Left to itself the compiler takes up to 114; microseconds with at most 128 and with 64, select and grad_logits of
// 32x256x28x28: 14.7 : 12.4, 13.8 : 12.8.
template <class T, int kBranches>
inline constexpr int kBlocks = kBranches && sizeof(T) < 8 ? 4 : 2;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
inline constexpr int kFewerColumnBlocks = 1;  // it spills for four of select that take columns of 16-bit types
#else
inline constexpr int kFewerColumnBlocks = 0;
#endif
template <class T, int kBranches, bool kChannelsLast>
inline constexpr int kSelectBlocks =
    kBlocks<T, kBranches> - (kChannelsLast && kBranches && sizeof(T) == 2 ? kFewerColumnBlocks : 0);

template <class T>
struct PoolArguments {
  Branches<const T> branches;
  T* pooled;
  acc_type<T>* partial;  // [N, splits, C], where splits > 1
  Shape shape;
  Tiles tiles;
};

template <class T>
struct SelectArguments {
  Branches<const T> branches;
  const T* logits;
  acc_type<T>* weights;
  Rows<T> y;
  Shape shape;
  Tiles tiles;
};

template <class T>
struct GradLogitsArguments {
  Rows<const T> grad_y;
  Branches<const T> branches;
  const acc_type<T>* weights;
  T* grad_logits;
  acc_type<T>* partial;  // [N, splits, M, C], where splits > 1
  Shape shape;
  Tiles tiles;
};

template <class T>
struct GradBranchesArguments {
  Rows<const T> grad_y;
  const acc_type<T>* weights;
  const T* grad_pooled;  // or null
  Branches<T> grads;     // data null: not needed
  Shape shape;
  Tiles tiles;
};

// A thread's elements of two branches, or of one.
template <class T, bool kChannelsLast>
struct Pair {
  Line<const T, kChannelsLast> line[2];
  bool two;

  __device__ __forceinline__ Pair(const Branches<const T>& branches, int count, int m, const Place& place) {
    two = m + 1 < count;
    line[0] = line_of<kChannelsLast>(branches.branch[m], place);
    line[1] = line_of<kChannelsLast>(branches.branch[two ? m + 1 : m], place);
  }

  template <int kW>
  struct Loaded {
    Vector<T, kW> value[2];
  };
  template <int kW>
  __device__ __forceinline__ Loaded<kW> fetch(int i) const {
    Loaded<kW> loaded{};
    loaded.value[0] = load<kW>(line[0].at(i));
    if (two) loaded.value[1] = load<kW>(line[1].at(i));
    return loaded;
  }
};

// to = `width` values (1, or all), widened; their address is aligned as vectors are
template <class T, int kN>
__device__ __forceinline__ void load_values(const T* from, int width, acc_type<T> (&to)[kN]) {
  if constexpr (kN > 1) {
    constexpr int kW = kN < kVectorWidth<T> ? kN : kVectorWidth<T>;
    if (width > 1) {
#pragma unroll
      for (int k = 0; k < kN; k += kW) {
        const Vector<T, kW> loaded = load<kW>(from + k);
#pragma unroll
        for (int j = 0; j < kW; ++j) to[k + j] = loaded.get(j);
      }
      return;
    }
  }
  to[0] = widen(*from);
}

// s[n, c] = sum_p sum_m U_m[n, c, p] / P, or the sums of each split into partial[n, split, c]
template <class T, bool kChannelsLast, int kBranches>
__global__ void __launch_bounds__(kThreads) selective_kernel_pool(const __grid_constant__ PoolArguments<T> a) {
  using acc_t = acc_type<T>;
  constexpr int kSums = kChannelsOfThread<T, kChannelsLast>;
  SHARED(acc_t, cells, [kThreads * kSums]);
  const Place place = find_place<T, kChannelsLast>(a.shape, a.tiles, false);
  acc_t sums[kSums] = {};
  const int branches = kBranches ? kBranches : a.shape.branches;
  if (a.tiles.splits > 1) launch_dependent_grids();
  for (int m = 0; place.active && m < branches; m += 2) {
    const Pair<T, kChannelsLast> x(a.branches, branches, m, place);
    walk<T, kChannelsLast>(place, a.tiles, x.line[0].data, [&](auto width, int first, int last, int step, auto at) {
      constexpr int kW = decltype(width)::value;
      strided<kInFlight>(
          first, last, step, [&](int i) { return x.template fetch<kW>(at(i)); },
          [&](int, const auto& loaded) {
            acc_t values[kW];
#pragma unroll
            for (int k = 0; k < kW; ++k) {
              values[k] = loaded.value[0].get(k);
              if (x.two) values[k] += loaded.value[1].get(k);
            }
            add_values<kChannelsLast>(sums, values);
          });
    });
  }
  sum_threads<kChannelsLast>(sums, place, a.tiles, cells, [&](int channel, acc_t sum) {
    if (a.tiles.splits == 1) {
      a.pooled[place.sample * a.shape.channels + place.channel + channel] = narrow<T>(sum / acc_t(a.shape.pixels));
    } else {
      const int64_t row = place.sample * a.tiles.splits + place.split;
      a.partial[row * a.shape.channels + place.channel + channel] = sum;
    }
  });
}

// s[n, c] = sum_split partial[n, split, c] / P                  grid (samples * tiles of finish_channels)
template <class T>
__global__ void __launch_bounds__(kThreads) selective_kernel_pool_finish(const __grid_constant__ PoolArguments<T> a) {
  using acc_t = acc_type<T>;
  SHARED(acc_t, cells, [kThreads]);
  const FinishPlace place = find_finish_place(a.shape, a.tiles);
  wait_for_primary_grid();
  sum_splits(a.partial, a.tiles.splits, a.shape.channels, 1, place, cells, [&](int channel, acc_t sum) {
    a.pooled[place.sample * a.shape.channels + place.channel + channel] = narrow<T>(sum / acc_t(a.shape.pixels));
  });
}

// weights[m, channel] = softmax_m logits[n, m, channel] for the tile's channels, saved by the first split's block
template <class T>
__device__ __forceinline__ void tile_weights(const SelectArguments<T>& a, const Place& place, acc_type<T>* weights) {
  using acc_t = acc_type<T>;
  const int branches = a.shape.branches;
  for (int channel = threadIdx.x; channel < place.channels; channel += kThreads) {
    const int64_t row = place.sample * branches * a.shape.channels + place.channel + channel;
    acc_t largest = widen(a.logits[row]), total = 0;
    for (int m = 0; m < branches; ++m) {
      const acc_t logit = widen(a.logits[row + m * a.shape.channels]);
      weights[m * place.channels + channel] = logit;
      if (logit > largest) largest = logit;  // a NaN makes the total a NaN
    }
    for (int m = 0; m < branches; ++m) {
      acc_t& weight = weights[m * place.channels + channel];
      weight = exponential(weight - largest);
      total += weight;
    }
    for (int m = 0; m < branches; ++m) {
      acc_t& weight = weights[m * place.channels + channel];
      weight /= total;
      if (place.split == 0) a.weights[row + m * a.shape.channels] = weight;
    }
  }
  __syncthreads();
}

// a[n, :, c] = softmax(z[n, :, c]);  V[n, c, p] = sum_m a[n, m, c] U_m[n, c, p]
template <class T, bool kChannelsLast, int kBranches>
__global__ void __launch_bounds__(kThreads, kSelectBlocks<T, kBranches, kChannelsLast>)
    selective_kernel_select(const __grid_constant__ SelectArguments<T> a) {
  using acc_t = acc_type<T>;
  SHARED_DYNAMIC(acc_t, weights);  // [M, channels of the tile]
  const Place place = find_place<T, kChannelsLast>(a.shape, a.tiles, true);
  tile_weights(a, place, weights);
  if (!place.active) return;
  const Line<T, kChannelsLast> y = line_of<kChannelsLast>(a.y, place);
  const int branches = kBranches ? kBranches : a.shape.branches;
  const acc_t* const weight = weights + first_channel<kChannelsLast>(place);
  walk<T, kChannelsLast>(place, a.tiles, y.data, [&](auto width, int first, int last, int step, auto at) {
    constexpr int kW = decltype(width)::value, kWeights = kChannelsLast ? kW : 1;
    for (int i = first; i < last; i += kInFlight * step) {
      acc_t values[kInFlight][kW] = {};
      for (int m = 0; m < branches; m += 2) {
        const Pair<T, kChannelsLast> x(a.branches, branches, m, place);
        typename Pair<T, kChannelsLast>::template Loaded<kW> loaded[kInFlight];
#pragma unroll
        for (int k = 0; k < kInFlight; ++k)
          if (i + k * step < last) loaded[k] = x.template fetch<kW>(at(i + k * step));
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (half == 1 && !x.two) continue;
          acc_t scale[kWeights];
          load_values(weight + (m + half) * place.channels, kWeights, scale);
#pragma unroll
          for (int k = 0; k < kInFlight; ++k)
            if (i + k * step < last) {
#pragma unroll
              for (int j = 0; j < kW; ++j) values[k][j] += loaded[k].value[half].get(j) * scale[kChannelsLast ? j : 0];
            }
        }
      }
#pragma unroll
      for (int k = 0; k < kInFlight; ++k)
        if (i + k * step < last) {
          Vector<T, kW> result;
          result.set(values[k]);
          store(y.at(at(i + k * step)), result);
        }
    }
  });
}

// dz[n, m, c] = a_m (da_m - sum_k a_k da_k) from da [M, pitch] of `count` channels, the first of them `channel`
template <class T>
__device__ __forceinline__ void store_grad_logits(const GradLogitsArguments<T>& a, int64_t sample, int64_t channel,
                                                  int count, const acc_type<T>* da, int pitch) {
  using acc_t = acc_type<T>;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const int64_t row = sample * a.shape.branches * a.shape.channels + channel + i;
    acc_t mean = 0;
    for (int m = 0; m < a.shape.branches; ++m) mean += a.weights[row + m * a.shape.channels] * da[m * pitch + i];
    for (int m = 0; m < a.shape.branches; ++m) {
      const int64_t at = row + m * a.shape.channels;
      a.grad_logits[at] = narrow<T>(a.weights[at] * (da[m * pitch + i] - mean));
    }
  }
}

// da[n, m, c] = sum_p dV[n, c, p] U_m[n, c, p];  dz as above, or da of each split into partial[n, split, m, c]
template <class T, bool kChannelsLast, int kBranches>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kBranches>)
    selective_kernel_grad_logits(const __grid_constant__ GradLogitsArguments<T> a) {
  using acc_t = acc_type<T>;
  constexpr int kSums = kChannelsOfThread<T, kChannelsLast>;
  SHARED(acc_t, cells, [kThreads * kSums]);
  SHARED_DYNAMIC(acc_t, da);  // [M, channels of the tile]
  const Place place = find_place<T, kChannelsLast>(a.shape, a.tiles, false);
  const int branches = kBranches ? kBranches : a.shape.branches;
  if (a.tiles.splits > 1) launch_dependent_grids();
  for (int m = 0; m < branches; m += 2) {
    const bool two = m + 1 < branches;
    acc_t sums[2][kSums] = {};
    if (place.active) {
      const Pair<T, kChannelsLast> x(a.branches, branches, m, place);
      const Line<const T, kChannelsLast> grad_y = line_of<kChannelsLast>(a.grad_y, place);
      walk<T, kChannelsLast>(place, a.tiles, grad_y.data, [&](auto width, int first, int last, int step, auto at) {
        constexpr int kW = decltype(width)::value;
        struct Loaded {
          Vector<T, kW> grad_y;
          typename Pair<T, kChannelsLast>::template Loaded<kW> x;
        };
        strided<kInFlight>(
            first, last, step, [&](int i) { return Loaded{load<kW>(grad_y.at(at(i))), x.template fetch<kW>(at(i))}; },
            [&](int, const Loaded& loaded) {
#pragma unroll
              for (int half = 0; half < 2; ++half) {
                if (half == 1 && !two) continue;
                acc_t values[kW];
#pragma unroll
                for (int k = 0; k < kW; ++k) values[k] = loaded.grad_y.get(k) * loaded.x.value[half].get(k);
                add_values<kChannelsLast>(sums[half], values);
              }
            });
      });
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (half == 1 && !two) continue;
      sum_threads<kChannelsLast>(sums[half], place, a.tiles, cells,
                                 [&](int channel, acc_t sum) { da[(m + half) * place.channels + channel] = sum; });
    }
  }
  if (a.tiles.splits == 1) {
    store_grad_logits(a, place.sample, place.channel, place.channels, da, place.channels);
    return;
  }
  const int64_t row = (place.sample * a.tiles.splits + place.split) * a.shape.branches;
  for (int m = 0; m < a.shape.branches; ++m)
    for (int i = threadIdx.x; i < place.channels; i += kThreads)
      a.partial[(row + m) * a.shape.channels + place.channel + i] = da[m * place.channels + i];
}

// dz as above with da[n, m, c] = sum_split partial[n, split, m, c]    grid (samples * tiles of finish_channels)
template <class T>
__global__ void __launch_bounds__(kThreads)
    selective_kernel_grad_logits_finish(const __grid_constant__ GradLogitsArguments<T> a) {
  using acc_t = acc_type<T>;
  SHARED(acc_t, cells, [kThreads]);
  SHARED(acc_t, da, [kMaxBranches * kMostFinishChannels]);
  const FinishPlace place = find_finish_place(a.shape, a.tiles);
  wait_for_primary_grid();
  sum_splits(a.partial, a.tiles.splits, a.shape.channels, a.shape.branches, place, cells,
             [&](int column, acc_t sum) { da[column] = sum; });
  store_grad_logits(a, place.sample, place.channel, place.channels, da, place.pitch);
}

// dU_m[n, c, p] = a[n, m, c] dV[n, c, p] + ds[n, c] / P
template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads)
    selective_kernel_grad_branches(const __grid_constant__ GradBranchesArguments<T> a) {
  using acc_t = acc_type<T>;
  constexpr int kN = kChannelsOfThread<T, kChannelsLast>;
  const Place place = find_place<T, kChannelsLast>(a.shape, a.tiles, true);
  if (!place.active) return;
  const Line<const T, kChannelsLast> grad_y = line_of<kChannelsLast>(a.grad_y, place);
  const int64_t channel = place.channel + first_channel<kChannelsLast>(place);
  acc_t shift[kN] = {};
  if (a.grad_pooled) {
    load_values(a.grad_pooled + place.sample * a.shape.channels + channel, place.width, shift);
#pragma unroll
    for (int k = 0; k < kN; ++k) shift[k] /= acc_t(a.shape.pixels);
  }
  for (int m = 0; m < a.shape.branches; m += 2) {
    Line<T, kChannelsLast> grad[2] = {};
    acc_t scale[2][kN] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (m + half >= a.shape.branches || !a.grads.branch[m + half].data) continue;
      grad[half] = line_of<kChannelsLast>(a.grads.branch[m + half], place);
      load_values(a.weights + (place.sample * a.shape.branches + m + half) * a.shape.channels + channel, place.width,
                  scale[half]);
    }
    if (!grad[0].data && !grad[1].data) continue;
    walk<T, kChannelsLast>(place, a.tiles, grad_y.data, [&](auto width, int first, int last, int step, auto at) {
      constexpr int kW = decltype(width)::value;
      strided<kInFlight>(
          first, last, step, [&](int i) { return load<kW>(grad_y.at(at(i))); },
          [&](int i, const Vector<T, kW>& loaded) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              if (!grad[half].data) continue;
              acc_t values[kW];
#pragma unroll
              for (int k = 0; k < kW; ++k) {
                const int at_channel = kChannelsLast ? k : 0;
                values[k] = loaded.get(k) * scale[half][at_channel] + shift[at_channel];
              }
              Vector<T, kW> result;
              result.set(values);
              store(grad[half].at(at(i)), result);
            }
          });
    });
  }
}

}  // namespace attnkernels::selective_kernel
