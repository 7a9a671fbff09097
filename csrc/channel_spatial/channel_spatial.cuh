// The CUDA kernels of cbam and scse; the symbols are those of attnkernels/ops/channel_spatial/reference.py. Each is a
// formula of one element, of the numbers of its channel and of its pixel, which common/matrix.cuh walks in either layout.
#pragma once
#include "channel_spatial/channel_spatial.h"
#include "common/matrix.cuh"

namespace attnkernels::channel_spatial {

using namespace matrix;

// ---- what becomes of complete sums

// numbers[n, 0, i] = sum / divisor, of numbers [N, K, count]
template <class A>
struct SumEnd {
  using acc_t = A;
  using Value = Sum<A>;
  A* numbers;
  int64_t stride;  // K count
  A divisor;
  __device__ __forceinline__ void emit(int64_t n, int64_t i, const Value& value) const {
    numbers[n * stride + i] = value.sum / divisor;
  }
};

// means[n, i], maxima[n, i] of two rows of [N, 2, count], marks[n, i]
template <class A>
struct MaximaEnd {
  using acc_t = A;
  using Value = SumAndMaximum<A>;
  A *means, *maxima, *marks;
  int64_t count;
  A divisor;
  __device__ __forceinline__ void emit(int64_t n, int64_t i, const Value& value) const {
    means[n * 2 * count + i] = value.sum / divisor;
    maxima[n * 2 * count + i] = value.maximum;
    marks[n * count + i] = value.mark;
  }
};

// t[n, p] = sum + b
template <class T>
struct LogitEnd {
  using acc_t = acc_type<T>;
  using Value = Sum<acc_t>;
  acc_t* logits;
  int64_t pixels;
  const T* bias;  // or null
  __device__ __forceinline__ void emit(int64_t n, int64_t p, const Value& value) const {
    logits[n * pixels + p] = value.sum + (bias ? widen(*bias) : acc_t(0));
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

// ---- formulas
//
// element() adds to what is summed over the pixels, by channel, and over the channels, by pixel, and returns what is
// stored, if anything is. channel_place and pixel_place: which ones they are.

struct NoNumbers {};

// What is read of one map, and of two.
template <class T>
struct OneMap {
  static constexpr int kMaps = 1;
  const T* x;

  template <int kW>
  struct Fetched {
    Vector<T, kW> x;
  };
  template <int kW>
  __device__ __forceinline__ Fetched<kW> fetch(int64_t at) const {
    return {load<kW>(x + at)};
  }
};

template <class T>
struct TwoMaps {
  static constexpr int kMaps = 2;
  const T *grad_y, *x;  // x: null where nothing needs it

  template <int kW>
  struct Fetched {
    Vector<T, kW> grad, x;
  };
  template <int kW>
  __device__ __forceinline__ Fetched<kW> fetch(int64_t at) const {
    Fetched<kW> fetched{load<kW>(grad_y + at), {}};
    if (x) fetched.x = load<kW>(x + at);
    return fetched;
  }
};

// a, or a and A
template <class T, bool kMaxima>
struct Pool : OneMap<T> {
  using acc_t = acc_type<T>;
  using Channel = NoNumbers;
  using Pixel = NoNumbers;
  using ChannelEnd = std::conditional_t<kMaxima, MaximaEnd<acc_t>, SumEnd<acc_t>>;
  using PixelEnd = NoEnd;
  static constexpr bool kStores = false;
  bool share;

  template <int kW>
  __device__ __forceinline__ void channels(int64_t, int64_t, Channel (&)[kW]) const {}
  template <int kW>
  __device__ __forceinline__ void pixels(int64_t, int64_t, Pixel (&)[kW]) const {}
  template <class Fetched, class OfChannel>
  __device__ __forceinline__ acc_t element(const Fetched& fetched, int k, Channel, Pixel, acc_t, acc_t pixel_place,
                                           OfChannel& of_channel, Nothing&) const {
    if constexpr (kMaxima) {
      of_channel.add(fetched.x.get(k), pixel_place, share);
    } else {
      of_channel.sum += fetched.x.get(k);
    }
    return 0;
  }
};

// t, and a
template <class T>
struct Project : OneMap<T> {
  using acc_t = acc_type<T>;
  struct Channel {
    acc_t weight;
  };
  using Pixel = NoNumbers;
  using ChannelEnd = SumEnd<acc_t>;
  using PixelEnd = LogitEnd<T>;
  static constexpr bool kStores = false;
  const T* weight;

  template <int kW>
  __device__ __forceinline__ void channels(int64_t, int64_t c, Channel (&numbers)[kW]) const {
    load_numbers<kW>(weight, c, acc_t(0), [&](int k, acc_t value) { numbers[k].weight = value; });
  }
  template <int kW>
  __device__ __forceinline__ void pixels(int64_t, int64_t, Pixel (&)[kW]) const {}
  template <class Fetched>
  __device__ __forceinline__ acc_t element(const Fetched& fetched, int k, const Channel& channel, Pixel, acc_t, acc_t,
                                           Sum<acc_t>& of_channel, Sum<acc_t>& of_pixel) const {
    const acc_t x = fetched.x.get(k);
    of_channel.sum += x;
    of_pixel.sum += x * channel.weight;
    return 0;
  }
};

template <class A>
struct OneGate {
  A gate;
};

// The gates of a formula, 1 where there are none.
template <class A>
struct Gates {
  using Channel = OneGate<A>;
  using Pixel = OneGate<A>;
  const A *channel_gate, *spatial_gate;  // or null
  int64_t channel_count, pixel_count;

  template <int kW>
  __device__ __forceinline__ void channels(int64_t n, int64_t c, Channel (&numbers)[kW]) const {
    load_numbers<kW>(channel_gate, n * channel_count + c, A(1), [&](int k, A value) { numbers[k].gate = value; });
  }
  template <int kW>
  __device__ __forceinline__ void pixels(int64_t n, int64_t p, Pixel (&numbers)[kW]) const {
    load_numbers<kW>(spatial_gate, n * pixel_count + p, A(1), [&](int k, A value) { numbers[k].gate = value; });
  }
};

// M and m
template <class T>
struct Statistics : OneMap<T>, Gates<acc_type<T>> {
  using acc_t = acc_type<T>;
  using Pixel = NoNumbers;
  using ChannelEnd = NoEnd;
  using PixelEnd = MaximaEnd<acc_t>;
  static constexpr bool kStores = false;
  bool share;

  template <int kW>
  __device__ __forceinline__ void pixels(int64_t, int64_t, Pixel (&)[kW]) const {}
  template <class Fetched>
  __device__ __forceinline__ acc_t element(const Fetched& fetched, int k, const OneGate<acc_t>& channel, Pixel,
                                           acc_t channel_place, acc_t, Nothing&, SumAndMaximum<acc_t>& of_pixel) const {
    of_pixel.add(fetched.x.get(k) * channel.gate, channel_place, share);
    return 0;
  }
};

// y
template <class T>
struct Scale : OneMap<T>, Gates<acc_type<T>> {
  using acc_t = acc_type<T>;
  using ChannelEnd = NoEnd;
  using PixelEnd = NoEnd;
  static constexpr bool kStores = true;
  Merge merge;
  bool skip;

  template <class Fetched>
  __device__ __forceinline__ acc_t element(const Fetched& fetched, int k, const OneGate<acc_t>& channel,
                                           const OneGate<acc_t>& pixel, acc_t, acc_t, Nothing&, Nothing&) const {
    const acc_t x = fetched.x.get(k), a = x * channel.gate, b = x * pixel.gate;
    const acc_t y = merge == Merge::kProduct ? a * pixel.gate
                    : merge == Merge::kAdd   ? x * (channel.gate + pixel.gate)
                                             : (a > b || a != a ? a : b);  // a NaN is larger, as in torch
    return skip ? y + x : y;
  }
};

// What a maximum passes to the side that is `mine` there.
template <class A>
__device__ __forceinline__ A passed(A mine, A other) {
  return mine < other ? A(0) : mine == other ? A(0.5) : A(1);
}

// dgc and dgs
template <class T>
struct GradGates : TwoMaps<T>, Gates<acc_type<T>> {
  using acc_t = acc_type<T>;
  using ChannelEnd = SumEnd<acc_t>;
  using PixelEnd = SumEnd<acc_t>;
  static constexpr bool kStores = false;
  Merge merge;

  template <class Fetched>
  __device__ __forceinline__ acc_t element(const Fetched& fetched, int k, const OneGate<acc_t>& channel,
                                           const OneGate<acc_t>& pixel, acc_t, acc_t, Sum<acc_t>& of_channel,
                                           Sum<acc_t>& of_pixel) const {
    const acc_t x = fetched.x.get(k), product = fetched.grad.get(k) * x;
    acc_t u = 1, v = 1;
    if (merge == Merge::kProduct) {
      u = pixel.gate;
      v = channel.gate;
    } else if (merge == Merge::kMax) {
      const acc_t a = x * channel.gate, b = x * pixel.gate;
      u = passed(a, b);
      v = passed(b, a);
    }
    of_channel.sum += product * u;
    of_pixel.sum += product * v;
    return 0;
  }
};

// What a pixel or a channel passes back: through its gate, its mean, and its maximum to the elements that gave it, told
// by `key`: the place of the first or, shared, the maximum itself, whose gradient is that of one of them.
template <class A>
struct Back {
  A gate, mean, maximum, key;
};

// The numbers from which Back is made, or null; `count` of each a sample.
template <class A>
struct BackNumbers {
  const A *gate, *mean, *maximum, *found, *marks;
  int64_t count, stride;  // stride: from a sample of mean, maximum and found to the next
  A divisor;              // of the mean

  template <int kW>
  __device__ __forceinline__ void load(int64_t n, int64_t i, bool share, Back<A> (&numbers)[kW]) const {
    load_numbers<kW>(gate, n * count + i, A(1), [&](int k, A value) { numbers[k].gate = value; });
    load_numbers<kW>(mean, n * stride + i, A(0), [&](int k, A value) { numbers[k].mean = value / divisor; });
    load_numbers<kW>(maximum, n * stride + i, A(0), [&](int k, A value) { numbers[k].maximum = value; });
    load_numbers<kW>(marks, n * count + i, A(1), [&](int k, A value) { numbers[k].key = value; });
    if (!share) return;
#pragma unroll
    for (int k = 0; k < kW; ++k) numbers[k].maximum /= numbers[k].key;
    load_numbers<kW>(found, n * stride + i, A(0), [&](int k, A value) { numbers[k].key = value; });
  }
};

// dgc through y and the statistics
template <class T>
struct GradChannelGate : TwoMaps<T> {
  using acc_t = acc_type<T>;
  using Channel = OneGate<acc_t>;
  using Pixel = Back<acc_t>;
  using ChannelEnd = SumEnd<acc_t>;
  using PixelEnd = NoEnd;
  static constexpr bool kStores = false;
  const acc_t* channel_gate;
  int64_t channel_count;
  BackNumbers<acc_t> pixel;
  bool share;

  template <int kW>
  __device__ __forceinline__ void channels(int64_t n, int64_t c, Channel (&numbers)[kW]) const {
    load_numbers<kW>(channel_gate, n * channel_count + c, acc_t(1),
                     [&](int k, acc_t value) { numbers[k].gate = value; });
  }
  template <int kW>
  __device__ __forceinline__ void pixels(int64_t n, int64_t p, Pixel (&numbers)[kW]) const {
    pixel.load(n, p, share, numbers);
  }
  template <class Fetched>
  __device__ __forceinline__ acc_t element(const Fetched& fetched, int k, const Channel& channel, const Pixel& pixel,
                                           acc_t channel_place, acc_t, Sum<acc_t>& of_channel, Nothing&) const {
    const acc_t x = fetched.x.get(k);
    const bool gave = (share ? x * channel.gate : channel_place) == pixel.key;
    of_channel.sum += x * (fetched.grad.get(k) * pixel.gate + pixel.mean + (gave ? pixel.maximum : acc_t(0)));
    return 0;
  }
};

// dx through y, the statistics and the pools
template <class T>
struct GradX : TwoMaps<T> {
  using acc_t = acc_type<T>;
  using Channel = Back<acc_t>;
  using Pixel = Back<acc_t>;
  using ChannelEnd = NoEnd;
  using PixelEnd = NoEnd;
  static constexpr bool kStores = true;
  BackNumbers<acc_t> channel, pixel;
  bool share, skip;

  template <int kW>
  __device__ __forceinline__ void channels(int64_t n, int64_t c, Channel (&numbers)[kW]) const {
    channel.load(n, c, share, numbers);
  }
  template <int kW>
  __device__ __forceinline__ void pixels(int64_t n, int64_t p, Pixel (&numbers)[kW]) const {
    pixel.load(n, p, share, numbers);
  }
  template <class Fetched>
  __device__ __forceinline__ acc_t element(const Fetched& fetched, int k, const Channel& channel, const Pixel& pixel,
                                           acc_t channel_place, acc_t pixel_place, Nothing&, Nothing&) const {
    const acc_t grad = fetched.grad.get(k), x = fetched.x.get(k);
    const bool gave_statistic = (share ? x * channel.gate : channel_place) == pixel.key;
    const bool gave_pool = (share ? x : pixel_place) == channel.key;
    const acc_t grad_z = grad * pixel.gate + pixel.mean + (gave_statistic ? pixel.maximum : acc_t(0));
    const acc_t grad_x = grad_z * channel.gate + channel.mean + (gave_pool ? channel.maximum : acc_t(0));
    return skip ? grad_x + grad : grad_x;
  }
};

// dx, and dw
template <class T>
struct GradConcurrent : TwoMaps<T> {
  using acc_t = acc_type<T>;
  struct Channel {
    acc_t gate, mean, weight;
  };
  struct Pixel {
    acc_t gate, logit;
  };
  using ChannelEnd = WeightEnd<T>;
  using PixelEnd = NoEnd;
  static constexpr bool kStores = true;
  const acc_t *channel_gate, *grad_means, *spatial_gate, *grad_logits;  // the first two: or null, for zeros
  const T* weight;
  int64_t channel_count, pixel_count;
  acc_t divisor;  // of the means
  Merge merge;    // kAdd without a channel gate

  template <int kW>
  __device__ __forceinline__ void channels(int64_t n, int64_t c, Channel (&numbers)[kW]) const {
    const int64_t at = n * channel_count + c;
    load_numbers<kW>(channel_gate, at, acc_t(0), [&](int k, acc_t value) { numbers[k].gate = value; });
    load_numbers<kW>(grad_means, at, acc_t(0), [&](int k, acc_t value) { numbers[k].mean = value / divisor; });
    load_numbers<kW>(weight, c, acc_t(0), [&](int k, acc_t value) { numbers[k].weight = value; });
  }
  template <int kW>
  __device__ __forceinline__ void pixels(int64_t n, int64_t p, Pixel (&numbers)[kW]) const {
    const int64_t at = n * pixel_count + p;
    load_numbers<kW>(spatial_gate, at, acc_t(0), [&](int k, acc_t value) { numbers[k].gate = value; });
    load_numbers<kW>(grad_logits, at, acc_t(0), [&](int k, acc_t value) { numbers[k].logit = value; });
  }
  template <class Fetched>
  __device__ __forceinline__ acc_t element(const Fetched& fetched, int k, const Channel& channel, const Pixel& pixel,
                                           acc_t, acc_t, Sum<acc_t>& of_channel, Nothing&) const {
    const acc_t x = fetched.x.get(k);
    acc_t scale = channel.gate + pixel.gate;
    if (merge == Merge::kMax) {
      const acc_t a = x * channel.gate, b = x * pixel.gate;
      scale = channel.gate * passed(a, b) + pixel.gate * passed(b, a);
    }
    of_channel.sum += pixel.logit * x;
    return fetched.grad.get(k) * scale + channel.mean + pixel.logit * channel.weight;
  }
};

// ---- passes

template <class Formula, class T>
struct Pass {
  Formula formula;
  Reduced<typename Formula::ChannelEnd> by_channel;
  Reduced<typename Formula::PixelEnd> by_pixel;
  Plan plan;
  T* stored;  // or null
};

// The formula in terms of rows and columns, at a block's tile.
template <class Formula, class T, bool kChannelsLast, int kW>
struct Body {
  using acc_t = acc_type<T>;
  using RowNumbers = std::conditional_t<kChannelsLast, typename Formula::Pixel, typename Formula::Channel>;
  using ColumnNumbers = std::conditional_t<kChannelsLast, typename Formula::Channel, typename Formula::Pixel>;
  using RowEnd = std::conditional_t<kChannelsLast, typename Formula::PixelEnd, typename Formula::ChannelEnd>;
  using ColumnEnd = std::conditional_t<kChannelsLast, typename Formula::ChannelEnd, typename Formula::PixelEnd>;
  using RowValue = typename RowEnd::Value;
  using ColumnValue = typename ColumnEnd::Value;
  static constexpr int kRows = rows_at_once(Formula::kMaps, sizeof(T) * kW);

  const Formula& formula;
  const Place& place;
  const Plan& plan;
  const Reduced<RowEnd>& by_row;
  const Reduced<ColumnEnd>& by_column;
  T* stored;
  int64_t begin;

  __device__ __forceinline__ int64_t at(int i, int j) const { return begin + i * plan.columns + j; }
  __device__ __forceinline__ auto fetch(int i, int j) const { return formula.template fetch<kW>(at(i, j)); }
  __device__ __forceinline__ RowNumbers row(int i) const {
    RowNumbers numbers[1];
    if constexpr (kChannelsLast) {
      formula.pixels(place.sample, place.first_row + i, numbers);
    } else {
      formula.channels(place.sample, place.first_row + i, numbers);
    }
    return numbers[0];
  }
  __device__ __forceinline__ void columns(int j, ColumnNumbers (&numbers)[kW]) const {
    if constexpr (kChannelsLast) {
      formula.channels(place.sample, place.first_column + j, numbers);
    } else {
      formula.pixels(place.sample, place.first_column + j, numbers);
    }
  }
  template <class Fetched>
  __device__ __forceinline__ void use(int i, int j, const Fetched& fetched, const RowNumbers& row,
                                      const ColumnNumbers (&columns)[kW], RowValue& by_row,
                                      ColumnValue (&by_column)[kW]) const {
    const acc_t row_place = acc_t(place.first_row + i), first = acc_t(place.first_column + j);
    acc_t values[kW];
#pragma unroll
    for (int k = 0; k < kW; ++k) {
      const acc_t column_place = first + acc_t(k);
      if constexpr (kChannelsLast) {
        values[k] = formula.element(fetched, k, columns[k], row, column_place, row_place, by_column[k], by_row);
      } else {
        values[k] = formula.element(fetched, k, row, columns[k], row_place, column_place, by_row, by_column[k]);
      }
    }
    if constexpr (Formula::kStores) {
      if (!stored) return;
      Vector<T, kW> result;
      result.set(values);
      store(stored + at(i, j), result, plan.stream_output ? Reuse::kOnce : Reuse::kLikely);
    }
  }
};

template <class T, bool kChannelsLast, int kW, class Formula>
__device__ __forceinline__ void run_block(const Pass<Formula, T>& pass) {
  launch_dependent_grids();
  const Place place(pass.plan);
  const int64_t begin = (place.sample * pass.plan.rows + place.first_row) * pass.plan.columns + place.first_column;
  if constexpr (kChannelsLast) {
    walk<kW>(
        Body<Formula, T, true, kW>{pass.formula, place, pass.plan, pass.by_pixel, pass.by_channel, pass.stored, begin},
        pass.plan, place);
  } else {
    walk<kW>(
        Body<Formula, T, false, kW>{pass.formula, place, pass.plan, pass.by_channel, pass.by_pixel, pass.stored, begin},
        pass.plan, place);
  }
}

// Blocks that a multiprocessor must at least have registers for.
template <class T>
inline constexpr int kBlocks = sizeof(T) == 8 ? 2 : 3;

// pooled[n, 0, c] = sum_p x / P; with maxima pooled[n, 1, c] = max_p x
template <class T, bool kChannelsLast, int kW, bool kMaxima>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    channel_spatial_pool(const __grid_constant__ Pass<Pool<T, kMaxima>, T> pass) {
  run_block<T, kChannelsLast, kW>(pass);
}

// logits[n, p] = sum_c w[c] x + b, pooled[n, 0, c] = sum_p x / P
template <class T, bool kChannelsLast, int kW>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    channel_spatial_project(const __grid_constant__ Pass<Project<T>, T> pass) {
  run_block<T, kChannelsLast, kW>(pass);
}

// statistics[n, 0, p] = max_c x gc, statistics[n, 1, p] = sum_c x gc / C
template <class T, bool kChannelsLast, int kW>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    channel_spatial_statistics(const __grid_constant__ Pass<Statistics<T>, T> pass) {
  run_block<T, kChannelsLast, kW>(pass);
}

// y = x gc gs, x (gc + gs) or max(x gc, x gs), (+ x)
template <class T, bool kChannelsLast, int kW>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    channel_spatial_scale(const __grid_constant__ Pass<Scale<T>, T> pass) {
  run_block<T, kChannelsLast, kW>(pass);
}

// dgc[n, c] = sum_p dy x gs, dgs[n, p] = sum_c dy x gc, or with u and v in place of the gates
template <class T, bool kChannelsLast, int kW>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    channel_spatial_grad_gates(const __grid_constant__ Pass<GradGates<T>, T> pass) {
  run_block<T, kChannelsLast, kW>(pass);
}

// dgc[n, c] = sum_p x (dy gs + dm / C + dM [c in M])
template <class T, bool kChannelsLast, int kW>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    channel_spatial_grad_channel_gate(const __grid_constant__ Pass<GradChannelGate<T>, T> pass) {
  run_block<T, kChannelsLast, kW>(pass);
}

// dx = (dy gs + dm / C + dM [c in M]) gc + da / P + dA [p in A] (+ dy)
template <class T, bool kChannelsLast, int kW>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    channel_spatial_grad_x(const __grid_constant__ Pass<GradX<T>, T> pass) {
  run_block<T, kChannelsLast, kW>(pass);
}

// dx = dy (gc u + gs v) + da / P + dt w, dw[c] = sum_n,p dt x
template <class T, bool kChannelsLast, int kW>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    channel_spatial_grad_concurrent(const __grid_constant__ Pass<GradConcurrent<T>, T> pass) {
  run_block<T, kChannelsLast, kW>(pass);
}

// What several blocks have added up, put together
template <class End>
__global__ void __launch_bounds__(kThreads) channel_spatial_finish(const __grid_constant__ Reduced<End> reduced) {
  finish_block(reduced);
}

}  // namespace attnkernels::channel_spatial
