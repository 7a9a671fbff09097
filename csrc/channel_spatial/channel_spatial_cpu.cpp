// The CPU backend of the channel_spatial operators: checks, allocation, threads. The kernels are in
// channel_spatial_simd.h.
#include <limits>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

#include "channel_spatial/channel_spatial_binding.h"
#include "common/cpu_axes.h"
#include "common/cpu_gate.h"

namespace attnkernels::channel_spatial {

// Numbers per channel or per pixel: those of sample n start at n stride + offset. Stride 0: all samples have the same.
template <class A>
struct Numbers {
  const A* data = nullptr;
  int64_t stride = 0, offset = 0;
  const A* of(int64_t n) const { return data + n * stride + offset; }
};

// What the kernels are given; each operator fills in what its formula names. Gates that are not there are ones.
template <class T>
struct Maps {
  using A = Accumulator<T>;
  Shape shape;
  Merge merge = Merge::kProduct;
  bool share = false;
  bool stream = false;  // out is large: written past the caches
  A skip = 0;           // 1: the scaled map is added to x
  const T *grad_y = nullptr, *x = nullptr;
  T* out = nullptr;                 // null: not wanted
  Numbers<A> channel_gate, weight;  // per channel: gc, w
  Numbers<A> spatial_gate, grad_logits;
  // Of the statistics, per pixel: dm, dM (with share, of each of the equal ones) and the places of the maxima or, with
  // share, the maxima. The same of the pools, per channel. Null: there are none.
  Numbers<A> grad_means, grad_maxima, marked;
  Numbers<A> grad_pool_means, grad_pool_maxima, pool_marked;
  Numbers<A> places;  // 0, 1, 2, ... for either axis
};

// The kernels of one level, on the rows [first, last) of sample n; `channels` and `pixels` as of cpu::reduce_axes.
template <class T>
struct Kernels {
  using A = Accumulator<T>;
  using Of = const Fields<A>&;
  void (*pool)(const Maps<T>&, int64_t n, int64_t first, int64_t last, Reduction of_channels, Of channels, Of pixels);
  void (*statistics)(const Maps<T>&, int64_t n, int64_t first, int64_t last, Reduction of_pixels, Of pixels);
  void (*scale)(const Maps<T>&, int64_t n, int64_t first, int64_t last);
  void (*grad_gates)(const Maps<T>&, int64_t n, int64_t first, int64_t last, Of channels, Of pixels);
  void (*grad_channel_gate)(const Maps<T>&, int64_t n, int64_t first, int64_t last, Of channels);
  void (*grad_x)(const Maps<T>&, int64_t n, int64_t first, int64_t last);
  void (*grad_concurrent)(const Maps<T>&, int64_t n, int64_t first, int64_t last, bool of_weight, Of channels);
  void (*join)(Reduction, Of into, Of from, int64_t count);
  void (*widen)(A* to, const T* from, int64_t count);
  void (*open_gates)(A* gates, A bias, int64_t count);
  void (*sigmoid_gradients)(A* to, const A* grads, const A* gates, int64_t count);
  void (*sum_samples)(T* to, const A* from, int64_t samples, int64_t count);
};

// Of a map's rows, between two passes over them: two maps of these are a part of an L2.
inline constexpr int64_t kMapsAtATime = 64 * 1024;

}  // namespace attnkernels::channel_spatial

#define SIMD_FILE "channel_spatial/channel_spatial_simd.h"
#include "common/simd_foreach.h"

namespace attnkernels::channel_spatial {
namespace {

using cpu::input, cpu::output;

// What a call on maps of T prepares, and the way to run it.
template <class T>
struct Run {
  using A = Accumulator<T>;

  Run(const Checked& call, const Tensor& x, const Optional& grad_y = std::nullopt)
      : call(call), x(as_layout(x, call.channels_last)) {
    if (grad_y) dense_grad_y = as_layout(*grad_y, call.channels_last);
    maps.shape = call.shape;
    maps.shape.channels_last |= call.shape.pixels == 1;  // vectors of channels in either layout
    maps.x = input<T>(this->x);
    maps.grad_y = input<T>(dense_grad_y);
  }

  [[gnu::noinline]] Tensor out(bool wanted = true) {
    Tensor result = cpu::allocate_result(wanted, call.x.sizes(), call.dtype, call.channels_last);
    maps.out = wanted ? output<T>(result) : nullptr;
    maps.stream = result.numel() * int64_t(sizeof(T)) >= cpu::stream_bytes();
    return result;
  }

  // Of a tensor [N, columns, count], one of the columns; where there is none, `otherwise` everywhere.
  Numbers<A> numbers(const Optional& given, int64_t count, A otherwise, int64_t columns, int64_t column) {
    if (!given) return everywhere(otherwise, count);
    return {input<A>(*given), columns * count, column * count};
  }
  Numbers<A> per_channel(const Optional& given, A otherwise, int64_t columns = 1, int64_t column = 0) {
    return numbers(given, maps.shape.channels, otherwise, columns, column);
  }
  Numbers<A> per_pixel(const Optional& given, A otherwise, int64_t columns = 1, int64_t column = 0) {
    return numbers(given, maps.shape.pixels, otherwise, columns, column);
  }

  [[gnu::noinline]] Numbers<A> everywhere(A value, int64_t count) {
    kept.emplace_back(count, value);
    return {kept.back().data(), 0};
  }

  // grads [N, 2 or 1, count], each over the number of those that share it
  [[gnu::noinline]] Numbers<A> shared(Numbers<A> grads, const Tensor& marks, int64_t count) {
    A* result = kept.emplace_back(maps.shape.samples * count).data();
    const A* shares = input<A>(marks);
    for (int64_t n = 0; n < maps.shape.samples; ++n)
      for (int64_t i = 0; i < count; ++i) result[n * count + i] = grads.of(n)[i] / shares[n * count + i];
    return {result, count};
  }

  // dt = dgs gs (1 - gs)
  [[gnu::noinline]] Numbers<A> grad_logits(const Tensor& grad_gate, const Tensor& gate) {
    std::vector<A>& result = kept.emplace_back(gate.numel());
    kernels.sigmoid_gradients(result.data(), input<A>(grad_gate), input<A>(gate), result.size());
    return {result.data(), maps.shape.pixels};
  }

  // w in the accumulation type, the same for all samples.
  [[gnu::noinline]] Numbers<A> weight(const Optional& given) {
    if (!given) return {};
    std::vector<A>& result = kept.emplace_back(given->numel());
    kernels.widen(result.data(), input<T>(*given), result.size());
    return {result.data(), 0};
  }

  // Where gradients pass through the statistics.
  [[gnu::noinline]] void statistics(const Optional& grads, const Optional& statistics, const Optional& marks,
                                    bool share) {
    const int64_t pixels = maps.shape.pixels;
    maps.share = share;
    maps.grad_maxima = per_pixel(grads, 0, 2);
    maps.grad_means = per_pixel(grads, 0, 2, 1);
    if (grads && share) maps.grad_maxima = shared(maps.grad_maxima, *marks, pixels);
    maps.marked = share ? per_pixel(statistics, kNever, 2) : per_pixel(marks, kNever);
    maps.places = everywhere(0, std::max(maps.shape.channels, pixels));
    std::iota(kept.back().begin(), kept.back().end(), A(0));
  }

  // Room for sums that a kernel makes beside those that are wanted.
  [[gnu::noinline]] Reduced<A> unwanted(int64_t count) {
    return {Reduction::kSum, {{kept.emplace_back(maps.shape.samples * count).data(), count}}};
  }

  // f(n, first, last) for the rows, of `count` maps read or written
  template <class F>
  void map(int64_t count, const F& f) const {
    cpu::for_rows_backwards(maps.shape, 0, maps.shape.samples, threads(count), f);
  }

  template <class F>
  void reduce(int64_t count, const Reduced<A>& channels, const Reduced<A>& pixels, const F& f) const {
    cpu::reduce_axes(maps.shape, map_bytes() * count, channels, pixels, f, kernels.join);
  }

  int64_t map_bytes() const {
    return maps.shape.samples * maps.shape.channels * maps.shape.pixels * int64_t(sizeof(T));
  }
  int64_t threads(int64_t count) const { return cpu::threads_for(map_bytes() * count); }

  static constexpr A kNever = std::numeric_limits<A>::quiet_NaN();  // no place and no value is equal to it

  const Checked& call;
  Tensor x;
  Optional dense_grad_y;
  Maps<T> maps;
  const Kernels<T>& kernels = *SIMD_CHOOSE(kKernels<T>);
  std::vector<std::vector<A>> kept;  // moved with its elements, whose addresses stay
};

template <class A>
void multiply(const Fields<A>& numbers, A factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) numbers.at[0][i] *= factor;
}

// x's dtype as a type, under the operator's name.
template <class F>
void dispatch(const Checked& call, const F& f) {
  STD_TORCH_CHECK(call.x.is_cpu(), call.op, ": x: expected a tensor on the CPU");
  cpu::dispatch(call.op, call.dtype, f);
}

std::tuple<Tensor, Tensor, Tensor> pool(const Tensor& x, const Optional& spatial_weight, const Optional& spatial_bias,
                                        int64_t pools) {
  const CheckedPool call(x, spatial_weight, spatial_bias, pools);
  const int64_t samples = call.shape.samples, channels = call.shape.channels, pixels = call.shape.pixels;
  const int64_t columns = call.columns();
  Tensor pooled = cpu::allocate({samples, columns, channels}, call.numbers_dtype);
  Tensor marks = cpu::allocate_result(call.marked(), {samples, channels}, call.numbers_dtype);
  Tensor spatial_gate = cpu::allocate_result(call.spatial_weight.has_value(),
                                             {samples, call.shape.height, call.shape.width}, call.numbers_dtype);
  dispatch(call, [&]<class T>(T) {
    using A = Accumulator<T>;
    Run<T> run(call, x);
    const Reduced<A> of_channels{Reduction(pools),
                                 {{output<A>(pooled), columns * channels},
                                  {output<A>(pooled), columns * channels, channels},
                                  {output<A>(marks), channels}}};
    const auto reduce = [&](const Reduced<A>& of_channels, const Reduced<A>& of_pixels) {
      run.reduce(1, of_channels, of_pixels,
                 [&](int64_t n, int64_t first, int64_t last, const auto& channels, const auto& pixels) {
                   run.kernels.pool(run.maps, n, first, last, of_channels.kind, channels, pixels);
                 });
    };
    if (call.maxima()) reduce(of_channels, {});
    run.maps.weight = run.weight(call.spatial_weight);
    if (call.spatial_weight)  // with maxima, which no op asks for at once, in a second pass
      reduce(call.pools == Pools::kMeans ? of_channels : run.unwanted(channels),
             {Reduction::kSum, {{output<A>(spatial_gate), pixels}}});
    else if (call.pools == Pools::kMeans)
      reduce(of_channels, {});
    if (columns)
      for (int64_t n = 0; n < samples; ++n) multiply(of_channels.of(n), 1 / A(pixels), channels);
    A bias = 0;
    if (call.spatial_bias) run.kernels.widen(&bias, input<T>(*call.spatial_bias), 1);
    run.kernels.open_gates(output<A>(spatial_gate), bias, spatial_gate.numel());
  });
  return {std::move(pooled), std::move(marks), std::move(spatial_gate)};
}

std::tuple<Tensor, Tensor> statistics(const Tensor& x, const Optional& channel_gate, int64_t ties) {
  const CheckedStatistics call(x, channel_gate, ties);
  const Shape& shape = call.shape;
  const int64_t pixels = shape.pixels;
  Tensor result = cpu::allocate({shape.samples, 2, shape.height, shape.width}, call.numbers_dtype);
  Tensor marks = cpu::allocate_result(call.marked(), {shape.samples, shape.height, shape.width}, call.numbers_dtype);
  constexpr Reduction kReductions[] = {Reduction::kFirstMaximum, Reduction::kSharedMaximum, Reduction::kMaximum};
  dispatch(call, [&]<class T>(T) {
    using A = Accumulator<T>;
    Run<T> run(call, x);
    run.maps.channel_gate = run.per_channel(call.channel_gate, 1);
    const Reduced<A> of_pixels{
        kReductions[int(call.ties)],
        {{output<A>(result), 2 * pixels, pixels}, {output<A>(result), 2 * pixels}, {output<A>(marks), pixels}}};
    run.reduce(1, {}, of_pixels, [&](int64_t n, int64_t first, int64_t last, const auto&, const auto& pixels) {
      run.kernels.statistics(run.maps, n, first, last, of_pixels.kind, pixels);
    });
    for (int64_t n = 0; n < shape.samples; ++n) multiply(of_pixels.of(n), 1 / A(shape.channels), pixels);
  });
  return {std::move(result), std::move(marks)};
}

Tensor scale(const Tensor& x, const Optional& channel_gate, const Optional& spatial_gate, int64_t merge, int64_t skip) {
  const CheckedScale call(x, channel_gate, spatial_gate, merge, skip);
  Tensor y;
  dispatch(call, [&]<class T>(T) {
    Run<T> run(call, x);
    y = run.out();
    run.maps.merge = call.merge;
    run.maps.skip = skip;
    run.maps.channel_gate = run.per_channel(call.channel_gate, 1);
    run.maps.spatial_gate = run.per_pixel(call.spatial_gate, 1);
    run.map(2, [&](int64_t n, int64_t first, int64_t last) { run.kernels.scale(run.maps, n, first, last); });
  });
  return y;
}

std::tuple<Tensor, Tensor> grad_gates(const Tensor& grad_y, const Tensor& x, const Optional& channel_gate,
                                      const Optional& spatial_gate, int64_t merge, int64_t needs) {
  const CheckedGradGates call(grad_y, x, channel_gate, spatial_gate, merge, needs);
  const Shape& shape = call.shape;
  Tensor grad_channel_gate =
      cpu::allocate_result(needs & kNeedsChannel, {shape.samples, shape.channels}, call.numbers_dtype);
  Tensor grad_spatial_gate =
      cpu::allocate_result(needs & kNeedsSpatial, {shape.samples, shape.height, shape.width}, call.numbers_dtype);
  if (!needs) return {std::move(grad_channel_gate), std::move(grad_spatial_gate)};
  dispatch(call, [&]<class T>(T) {
    using A = Accumulator<T>;
    Run<T> run(call, x, grad_y);
    run.maps.merge = call.merge;
    // A sum passes what a product with ones does.
    const bool sum = call.merge == Merge::kAdd;
    run.maps.channel_gate = run.per_channel(sum ? std::nullopt : call.channel_gate, 1);
    run.maps.spatial_gate = run.per_pixel(sum ? std::nullopt : call.spatial_gate, 1);
    const auto reduced = [&](bool wanted, const Tensor& result, int64_t count) {
      return wanted ? Reduced<A>{Reduction::kSum, {{output<A>(result), count}}} : run.unwanted(count);
    };
    run.reduce(2, reduced(needs & kNeedsChannel, grad_channel_gate, shape.channels),
               reduced(needs & kNeedsSpatial, grad_spatial_gate, shape.pixels),
               [&](int64_t n, int64_t first, int64_t last, const auto& channels, const auto& pixels) {
                 run.kernels.grad_gates(run.maps, n, first, last, channels, pixels);
               });
  });
  return {std::move(grad_channel_gate), std::move(grad_spatial_gate)};
}

Tensor grad_channel_gate(const Tensor& grad_y, const Tensor& x, const Tensor& channel_gate, const Tensor& spatial_gate,
                         const Tensor& grad_statistics, const Tensor& statistics, const Tensor& marks, int64_t share) {
  const CheckedGradChannelGate call(grad_y, x, channel_gate, spatial_gate, grad_statistics, statistics, marks, share);
  const Shape& shape = call.shape;
  Tensor result = cpu::allocate({shape.samples, shape.channels}, call.numbers_dtype);
  dispatch(call, [&]<class T>(T) {
    using A = Accumulator<T>;
    Run<T> run(call, x, grad_y);
    run.maps.channel_gate = run.per_channel(call.channel_gate, 1);
    run.maps.spatial_gate = run.per_pixel(call.spatial_gate, 1);
    run.statistics(call.grad_statistics, call.statistics, call.marks, share);
    const Reduced<A> of_channels{Reduction::kSum, {{output<A>(result), shape.channels}}};
    run.reduce(2, of_channels, {}, [&](int64_t n, int64_t first, int64_t last, const auto& channels, const auto&) {
      run.kernels.grad_channel_gate(run.maps, n, first, last, channels);
    });
  });
  return result;
}

Tensor grad_x(const Tensor& grad_y, const Tensor& x, const Optional& channel_gate, const Optional& spatial_gate,
              const Optional& grad_statistics, const Optional& statistics, const Optional& marks,
              const Optional& grad_pooled, const Optional& pooled, const Optional& pool_marks, int64_t skip,
              int64_t share) {
  const CheckedGradX call(grad_y, x, channel_gate, spatial_gate, grad_statistics, statistics, marks, grad_pooled,
                          pooled, pool_marks, skip, share);
  Tensor result;
  dispatch(call, [&]<class T>(T) {
    using A = Accumulator<T>;
    Run<T> run(call, x, grad_y);
    result = run.out();
    Maps<T>& maps = run.maps;
    maps.skip = skip;
    maps.channel_gate = run.per_channel(call.channel_gate, 1);
    maps.spatial_gate = run.per_pixel(call.spatial_gate, 1);
    maps.grad_pool_means = run.per_channel(call.grad_pooled, 0, call.columns);
    if (call.grad_statistics || call.maxima()) {
      const auto of_maxima = [&](const Optional& given, A otherwise) {
        return run.per_channel(call.maxima() ? given : std::nullopt, otherwise, 2, 1);
      };
      run.statistics(call.grad_statistics, call.statistics, call.marks, share);
      maps.grad_pool_maxima = of_maxima(call.grad_pooled, 0);
      if (call.maxima() && share)
        maps.grad_pool_maxima = run.shared(maps.grad_pool_maxima, *call.pool_marks, call.shape.channels);
      maps.pool_marked = share ? of_maxima(call.pooled, run.kNever) : run.per_channel(call.pool_marks, run.kNever);
    }
    run.map(share ? 3 : 2, [&](int64_t n, int64_t first, int64_t last) { run.kernels.grad_x(maps, n, first, last); });
  });
  return result;
}

std::tuple<Tensor, Tensor> grad_concurrent(const Tensor& grad_y, const Tensor& x, const Optional& channel_gate,
                                           const Tensor& spatial_gate, const Optional& grad_means,
                                           const Tensor& grad_spatial_gate, const Tensor& spatial_weight, int64_t merge,
                                           int64_t needs) {
  const CheckedGradConcurrent call(grad_y, x, channel_gate, spatial_gate, grad_means, grad_spatial_gate, spatial_weight,
                                   merge, needs);
  const Shape& shape = call.shape;
  const bool of_weight = needs & kNeedsWeight;
  Tensor grad_x, grad_weight = cpu::allocate_result(of_weight, {shape.channels}, call.dtype);
  dispatch(call, [&]<class T>(T) {
    using A = Accumulator<T>;
    Run<T> run(call, x, grad_y);
    grad_x = run.out(needs & kNeedsX);
    Maps<T>& maps = run.maps;
    maps.merge = call.merge;
    maps.channel_gate = run.per_channel(call.channel_gate, 0);
    maps.spatial_gate = run.per_pixel(call.spatial_gate, 0);
    maps.grad_logits = run.grad_logits(call.grad_spatial_gate, call.spatial_gate);
    maps.grad_pool_means = run.per_channel(call.grad_means, 0);
    maps.weight = run.weight(call.spatial_weight);
    std::vector<A> sums(of_weight ? shape.samples * shape.channels : 0);
    const Reduced<A> of_channels{of_weight ? Reduction::kSum : Reduction::kNothing, {{sums.data(), shape.channels}}};
    run.reduce(needs & kNeedsX ? 3 : 1, of_channels, {},
               [&](int64_t n, int64_t first, int64_t last, const auto& channels, const auto&) {
                 run.kernels.grad_concurrent(maps, n, first, last, of_weight, channels);
               });
    if (of_weight) run.kernels.sum_samples(output<T>(grad_weight), sums.data(), shape.samples, shape.channels);
  });
  return {std::move(grad_x), std::move(grad_weight)};
}

STABLE_TORCH_LIBRARY_IMPL(attnkernels, CPU, m) {
  m.impl("channel_spatial_pool", TORCH_BOX(&pool));
  m.impl("channel_spatial_statistics", TORCH_BOX(&statistics));
  m.impl("channel_spatial_scale", TORCH_BOX(&scale));
  m.impl("channel_spatial_grad_gates", TORCH_BOX(&grad_gates));
  m.impl("channel_spatial_grad_channel_gate", TORCH_BOX(&grad_channel_gate));
  m.impl("channel_spatial_grad_x", TORCH_BOX(&grad_x));
  m.impl("channel_spatial_grad_concurrent", TORCH_BOX(&grad_concurrent));
}

}  // namespace
}  // namespace attnkernels::channel_spatial
