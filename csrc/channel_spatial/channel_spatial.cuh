// The CUDA kernels of cbam and scse: each a formula of one element (common/map_formula.cuh); the symbols are those of
// attnkernels/ops/channel_spatial/reference.py.
#pragma once
#include <algorithm>

#include "channel_spatial/channel_spatial_launch.h"
#include "common/map_formula.cuh"
#include "common/pointwise.cuh"

namespace attnkernels::channel_spatial {

using namespace matrix;

// ---- what becomes of complete sums

// numbers[n, i] = sum / divisor
template <class A>
struct SumEnd {
  using acc_t = A;
  using Value = Sum<A>;
  A* numbers;
  int64_t count;
  A divisor;
  __device__ __forceinline__ void emit(int64_t n, int64_t i, const Value& value) const {
    numbers[n * count + i] = value.sum / divisor;
  }
};

// means[n, i] and maxima[n, i], two rows of [N, 2, count], and marks[n, i]
template <class A, Marks kMarks>
struct MaximaEnd {
  using acc_t = A;
  using Value = SumAndMaximum<A, kMarks>;
  A *means, *maxima, *marks;
  int64_t count;
  A divisor;
  __device__ __forceinline__ void emit(int64_t n, int64_t i, const Value& value) const {
    means[n * 2 * count + i] = value.sum / divisor;
    maxima[n * 2 * count + i] = value.maximum;
    if constexpr (kMarks != Marks::kNone) marks[n * count + i] = value.mark;
  }
};

// gs[n, p] = sigmoid(sum + b)
template <class T>
struct GateEnd {
  using acc_t = acc_type<T>;
  using Value = Sum<acc_t>;
  acc_t* gates;
  int64_t pixels;
  const T* bias;  // or null
  __device__ __forceinline__ void emit(int64_t n, int64_t p, const Value& value) const {
    gates[n * pixels + p] = sigmoid(value.sum + (bias ? widen(*bias) : acc_t(0)));
  }
};

// dw[c] = sum
template <class T>
struct WeightEnd {
  using acc_t = acc_type<T>;
  using Value = Sum<acc_t>;
  T* grad_weight;
  __device__ __forceinline__ void emit(int64_t, int64_t c, const Value& value) const {
    grad_weight[c] = narrow<T>(value.sum);
  }
};

// ---- numbers of channels and of pixels

// w[c]
template <class T>
struct WeightNumbers {
  using acc_t = acc_type<T>;
  struct Numbers {
    acc_t weight;
  };
  const T* weight;

  template <int kW>
  __device__ __forceinline__ void load(int64_t, int64_t c, Numbers (&numbers)[kW]) const {
    load_numbers<kW>(weight, c, acc_t(0), [&](int k, acc_t value) { numbers[k].weight = value; });
  }
};

// How a channel or a pixel passes gradients back: through its gate, its mean, and its maximum, to the elements that gave
// it. `key` tells them: it is the place of the first or, shared, the maximum itself, and `maximum` each one's part.
template <class A, bool kShare>
struct BackNumbers {
  struct Numbers {
    A gate, mean, maximum, key;
  };
  const A *gate, *mean, *maximum, *found, *marks;  // or null; mean and maximum: gradients, found: of the forward
  int64_t count, stride;                           // stride: from a sample of mean, maximum and found to the next
  A mean_scale;

  template <int kW>
  __device__ __forceinline__ void load(int64_t n, int64_t i, Numbers (&numbers)[kW]) const {
    const int64_t at = n * count + i, strided = n * stride + i;
    load_numbers<kW>(gate, at, A(1), [&](int k, A value) { numbers[k].gate = value; });
    load_numbers<kW>(mean, strided, A(0), [&](int k, A value) { numbers[k].mean = value * mean_scale; });
    load_numbers<kW>(maximum, strided, A(0), [&](int k, A value) { numbers[k].maximum = value; });
    load_numbers<kW>(marks, at, A(1), [&](int k, A value) { numbers[k].key = value; });
    if constexpr (kShare) {
#pragma unroll
      for (int k = 0; k < kW; ++k) numbers[k].maximum /= numbers[k].key;
      load_numbers<kW>(found, strided, A(0), [&](int k, A value) { numbers[k].key = value; });
    }
  }
};

// gc[c] and da[c] (null: zeros), w[c]
template <class T>
struct ConcurrentChannel {
  using acc_t = acc_type<T>;
  struct Numbers {
    acc_t gate, mean, weight;
  };
  const acc_t *gate, *grad_means;
  const T* weight;
  int64_t count;
  acc_t mean_scale;

  template <int kW>
  __device__ __forceinline__ void load(int64_t n, int64_t c, Numbers (&numbers)[kW]) const {
    const int64_t at = n * count + c;
    load_numbers<kW>(gate, at, acc_t(0), [&](int k, acc_t value) { numbers[k].gate = value; });
    load_numbers<kW>(grad_means, at, acc_t(0), [&](int k, acc_t value) { numbers[k].mean = value * mean_scale; });
    load_numbers<kW>(weight, c, acc_t(0), [&](int k, acc_t value) { numbers[k].weight = value; });
  }
};

// gs[p], dt[p] = dgs[p] gs[p] (1 - gs[p])
template <class A>
struct ConcurrentPixel {
  struct Numbers {
    A gate, logit;
  };
  const A *gate, *grad_gate;
  int64_t count;

  template <int kW>
  __device__ __forceinline__ void load(int64_t n, int64_t p, Numbers (&numbers)[kW]) const {
    load_numbers<kW>(gate, n * count + p, A(0), [&](int k, A value) { numbers[k].gate = value; });
    load_numbers<kW>(grad_gate, n * count + p, A(0), [&](int k, A value) {
      numbers[k].logit = value * gate_derivative(numbers[k].gate, Gate::kSigmoid);
    });
  }
};

// ---- formulas

template <class T>
struct Pool : Formula<OneMap<T>, NoNumbers, NoNumbers, SumEnd<acc_type<T>>, NoEnd, false> {
  template <class A, class Fetched>
  __device__ __forceinline__ A element(const Fetched& fetched, int k, NoNumbers::Numbers, NoNumbers::Numbers, A, A,
                                       Sum<A>& of_channel, Nothing&) const {
    of_channel.sum += fetched.x.get(k);
    return 0;
  }
};

template <class T, Marks kMarks>
struct PoolMaxima : Formula<OneMap<T>, NoNumbers, NoNumbers, MaximaEnd<acc_type<T>, kMarks>, NoEnd, false> {
  template <class A, class Fetched>
  __device__ __forceinline__ A element(const Fetched& fetched, int k, NoNumbers::Numbers, NoNumbers::Numbers, A,
                                       A pixel_place, SumAndMaximum<A, kMarks>& of_channel, Nothing&) const {
    of_channel.add(fetched.x.get(k), pixel_place);
    return 0;
  }
};

template <class T>
struct Project : Formula<OneMap<T>, WeightNumbers<T>, NoNumbers, SumEnd<acc_type<T>>, GateEnd<T>, false> {
  template <class A, class Fetched, class Channel>
  __device__ __forceinline__ A element(const Fetched& fetched, int k, const Channel& channel, NoNumbers::Numbers, A, A,
                                       Sum<A>& of_channel, Sum<A>& of_pixel) const {
    const A x = fetched.x.get(k);
    of_channel.sum += x;
    of_pixel.sum += x * channel.weight;
    return 0;
  }
};

template <class T, Marks kMarks>
struct Statistics
    : Formula<OneMap<T>, GateNumbers<acc_type<T>>, NoNumbers, NoEnd, MaximaEnd<acc_type<T>, kMarks>, false> {
  template <class A, class Fetched, class Channel>
  __device__ __forceinline__ A element(const Fetched& fetched, int k, const Channel& channel, NoNumbers::Numbers,
                                       A channel_place, A, Nothing&, SumAndMaximum<A, kMarks>& of_pixel) const {
    of_pixel.add(fetched.x.get(k) * channel.gate, channel_place);
    return 0;
  }
};

// Options are constants of the kernels, as every element would pay for them: the map is walked at the memory's speed.
template <class T, Merge kMerge>
struct Scale : Formula<OneMap<T>, GateNumbers<acc_type<T>>, GateNumbers<acc_type<T>>, NoEnd, NoEnd, true> {
  bool skip;

  template <class A, class Fetched, class Channel, class Pixel>
  __device__ __forceinline__ A element(const Fetched& fetched, int k, const Channel& channel, const Pixel& pixel, A, A,
                                       Nothing&, Nothing&) const {
    const A x = fetched.x.get(k), y = merged(x, channel.gate, pixel.gate);
    return skip ? y + x : y;
  }
  template <class A>
  static __device__ __forceinline__ A merged(A x, A channel_gate, A pixel_gate) {
    if constexpr (kMerge == Merge::kProduct) return x * (channel_gate * pixel_gate);
    if constexpr (kMerge == Merge::kAdd) return x * (channel_gate + pixel_gate);
    const A a = x * channel_gate, b = x * pixel_gate;
    return a > b || a != a ? a : b;  // a NaN is larger, as in torch
  }
};

// What a maximum passes to the side that is `mine` there.
template <class A>
__device__ __forceinline__ A passed(A mine, A other) {
  return mine < other ? A(0) : mine == other ? A(0.5) : A(1);
}

template <class T, Merge kMerge>
struct GradGates : Formula<TwoMaps<T>, GateNumbers<acc_type<T>>, GateNumbers<acc_type<T>>, SumEnd<acc_type<T>>,
                           SumEnd<acc_type<T>>, false> {
  template <class A, class Fetched, class Channel, class Pixel>
  __device__ __forceinline__ A element(const Fetched& fetched, int k, const Channel& channel, const Pixel& pixel, A, A,
                                       Sum<A>& of_channel, Sum<A>& of_pixel) const {
    const A x = fetched.x.get(k), product = fetched.grad.get(k) * x;
    if constexpr (kMerge == Merge::kProduct) {
      of_channel.sum += product * pixel.gate;
      of_pixel.sum += product * channel.gate;
    } else if constexpr (kMerge == Merge::kAdd) {
      of_channel.sum += product;
      of_pixel.sum += product;
    } else {
      const A a = x * channel.gate, b = x * pixel.gate;
      of_channel.sum += product * passed(a, b);
      of_pixel.sum += product * passed(b, a);
    }
    return 0;
  }
};

template <class T, bool kShare>
struct GradChannelGate : Formula<TwoMaps<T>, GateNumbers<acc_type<T>>, BackNumbers<acc_type<T>, kShare>,
                                 SumEnd<acc_type<T>>, NoEnd, false> {
  template <class A, class Fetched, class Channel, class Pixel>
  __device__ __forceinline__ A element(const Fetched& fetched, int k, const Channel& channel, const Pixel& pixel,
                                       A channel_place, A, Sum<A>& of_channel, Nothing&) const {
    const A x = fetched.x.get(k);
    const bool gave = (kShare ? x * channel.gate : channel_place) == pixel.key;
    of_channel.sum += x * (fetched.grad.get(k) * pixel.gate + pixel.mean + (gave ? pixel.maximum : A(0)));
    return 0;
  }
};

// Only shared maxima are compared with x; without them the gradient is the one map that is read.
template <class T, bool kShare>
struct GradX : Formula<std::conditional_t<kShare, TwoMaps<T>, OneMap<T>>, BackNumbers<acc_type<T>, kShare>,
                       BackNumbers<acc_type<T>, kShare>, NoEnd, NoEnd, true> {
  bool skip;

  template <class A, class Fetched, class Channel, class Pixel>
  __device__ __forceinline__ A element(const Fetched& fetched, int k, const Channel& channel, const Pixel& pixel,
                                       A channel_place, A pixel_place, Nothing&, Nothing&) const {
    A grad = fetched.x.get(k), x = 0;
    if constexpr (kShare) {
      x = grad;
      grad = fetched.grad.get(k);
    }
    const bool gave_statistic = (kShare ? x * channel.gate : channel_place) == pixel.key;
    const bool gave_pool = (kShare ? x : pixel_place) == channel.key;
    const A grad_z = grad * pixel.gate + pixel.mean + (gave_statistic ? pixel.maximum : A(0));
    const A grad_x = grad_z * channel.gate + channel.mean + (gave_pool ? channel.maximum : A(0));
    return skip ? grad_x + grad : grad_x;
  }
};

template <class T, Merge kMerge>
struct GradConcurrent
    : Formula<TwoMaps<T>, ConcurrentChannel<T>, ConcurrentPixel<acc_type<T>>, WeightEnd<T>, NoEnd, true> {
  template <class A, class Fetched, class Channel, class Pixel>
  __device__ __forceinline__ A element(const Fetched& fetched, int k, const Channel& channel, const Pixel& pixel, A, A,
                                       Sum<A>& of_channel, Nothing&) const {
    const A x = fetched.x.get(k);
    A scale = channel.gate + pixel.gate;
    if constexpr (kMerge == Merge::kMax) {
      const A a = x * channel.gate, b = x * pixel.gate;
      scale = channel.gate * passed(a, b) + pixel.gate * passed(b, a);
    }
    of_channel.sum += pixel.logit * x;
    return fetched.grad.get(k) * scale + channel.mean + pixel.logit * channel.weight;
  }
};

// ---- kernels

// As few as double has room for; narrow vectors come more rows at a time, and from compute capability 10.0 on the compiler
// spills for more than three blocks, or for three of these.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
inline constexpr int kMostBlocks = 3, kMostNarrowBlocks = 2;
#else
inline constexpr int kMostBlocks = 4, kMostNarrowBlocks = 3;
#endif
template <class T, int kW, Operator kOperator, bool kChannelsLast, bool kCounts = false>
inline constexpr int kBlocks =
    std::min({resident_blocks(kOperator, sizeof(T), kChannelsLast, kCounts), sizeof(T) == 8        ? 2
                                                                             : sizeof(T) * kW < 16 ? kMostNarrowBlocks
                                                                                                   : kMostBlocks});

// pooled[n, 0, c] = sum_p x / P
template <class T, bool kChannelsLast, int kW>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kW, Operator::kPool, kChannelsLast>)
    channel_spatial_pool(const __grid_constant__ FormulaPass<Pool<T>, T> pass) {
  run_block<kChannelsLast, kW>(pass);
}

// pooled[n, 0, c] = sum_p x / P, pooled[n, 1, c] = max_p x
template <class T, bool kChannelsLast, int kW, Marks kMarks>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kW, Operator::kPool, kChannelsLast, kMarks == Marks::kCounts>)
    channel_spatial_pool_maxima(const __grid_constant__ FormulaPass<PoolMaxima<T, kMarks>, T> pass) {
  run_block<kChannelsLast, kW>(pass);
}

// gates[n, p] = sigmoid(sum_c w[c] x + b), pooled[n, 0, c] = sum_p x / P
template <class T, bool kChannelsLast, int kW>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kW, Operator::kProject, kChannelsLast>)
    channel_spatial_project(const __grid_constant__ FormulaPass<Project<T>, T> pass) {
  run_block<kChannelsLast, kW>(pass);
}

// statistics[n, 0, p] = max_c x gc, statistics[n, 1, p] = sum_c x gc / C
template <class T, bool kChannelsLast, int kW, Marks kMarks>
__global__ void __launch_bounds__(kThreads,
                                  kBlocks<T, kW, Operator::kStatistics, kChannelsLast, kMarks == Marks::kCounts>)
    channel_spatial_statistics(const __grid_constant__ FormulaPass<Statistics<T, kMarks>, T> pass) {
  run_block<kChannelsLast, kW>(pass);
}

// y = x gc gs, x (gc + gs) or max(x gc, x gs), (+ x)
template <class T, bool kChannelsLast, int kW, Merge kMerge>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kW, Operator::kScale, kChannelsLast>)
    channel_spatial_scale(const __grid_constant__ FormulaPass<Scale<T, kMerge>, T> pass) {
  run_block<kChannelsLast, kW>(pass);
}

// dgc[n, c] = sum_p dy x gs, dgs[n, p] = sum_c dy x gc, or with u and v in place of the gates
template <class T, bool kChannelsLast, int kW, Merge kMerge>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kW, Operator::kGradGates, kChannelsLast>)
    channel_spatial_grad_gates(const __grid_constant__ FormulaPass<GradGates<T, kMerge>, T> pass) {
  run_block<kChannelsLast, kW>(pass);
}

// dgc[n, c] = sum_p x (dy gs + dm / C + dM [c in M])
template <class T, bool kChannelsLast, int kW, bool kShare>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kW, Operator::kGradChannelGate, kChannelsLast>)
    channel_spatial_grad_channel_gate(const __grid_constant__ FormulaPass<GradChannelGate<T, kShare>, T> pass) {
  run_block<kChannelsLast, kW>(pass);
}

// dx = (dy gs + dm / C + dM [c in M]) gc + da / P + dA [p in A] (+ dy)
template <class T, bool kChannelsLast, int kW, bool kShare>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kW, Operator::kGradX, kChannelsLast>)
    channel_spatial_grad_x(const __grid_constant__ FormulaPass<GradX<T, kShare>, T> pass) {
  run_block<kChannelsLast, kW>(pass);
}

// dx = dy (gc u + gs v) + da / P + dt w, dw[c] = sum_n,p dt x
template <class T, bool kChannelsLast, int kW, Merge kMerge>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kW, Operator::kGradConcurrent, kChannelsLast>)
    channel_spatial_grad_concurrent(const __grid_constant__ FormulaPass<GradConcurrent<T, kMerge>, T> pass) {
  run_block<kChannelsLast, kW>(pass);
}

}  // namespace attnkernels::channel_spatial
