// The channel_spatial kernels of one level; no include guard, no torch. Kernels<T> says which part each works on. The
// symbols are those of attnkernels/ops/channel_spatial/reference.py.
#include "common/simd_gate.h"
// its operands, and
#include "common/simd_axes.h"

namespace attnkernels::channel_spatial::SIMD_LEVEL {
namespace {

using namespace simd::SIMD_LEVEL;

// ---- operands of sample n

template <class T>
SIMD_INLINE PerChannel<Accumulator<T>> per_channel(const Numbers<Accumulator<T>>& numbers, int64_t n) {
  return {numbers.of(n)};
}
template <class T>
SIMD_INLINE PerPixel<Accumulator<T>> per_pixel(const Numbers<Accumulator<T>>& numbers, int64_t n) {
  return {numbers.of(n)};
}
// out = value(operands...) for the rows [first, last) of sample n
template <class T, class Value, class... Operands>
SIMD_INLINE void map_sample(const Maps<T>& maps, int64_t n, int64_t first, int64_t last, Value value,
                            Operands... operands) {
  const int64_t length = maps.shape.row_length();
  map_rows(maps.shape, first * length, last * length, dense_rows(maps.shape, maps.out, n).data, maps.stream, value,
           operands...);
  if (maps.stream) stream_fence();
}

// ---- forward

// channels: sum_p x, max_p x; pixels, without maxima: t[p] = sum_c w[c] x
template <class T>
void pool(const Maps<T>& maps, int64_t n, int64_t first, int64_t last, Reduction of_channels,
          const Fields<Accumulator<T>>& channels, const Fields<Accumulator<T>>& pixels) {
  using V = Vec<T>;
  const auto x = dense_rows(maps.shape, maps.x, n);
  const auto reduce = [&]<class OfChannel>(OfChannel) SIMD_INLINE_LAMBDA {
    reduce_rows<OfChannel, Nothing<T>, T>(
        maps.shape, first, last, channels, {}, false, [](auto& channel, auto&, V x) SIMD_INLINE_LAMBDA { channel(x); },
        x);
  };
  if (of_channels == Reduction::kFirstMaximum) return reduce(SumAndMaximumOf<T, false>{});
  if (of_channels == Reduction::kSharedMaximum) return reduce(SumAndMaximumOf<T, true>{});
  if (of_channels == Reduction::kMaximum) return reduce(SumAndUnmarkedMaximumOf<T>{});
  if (!maps.weight.data) return reduce(SumOf<T>{});
  reduce_rows<SumOf<T>, SumOf<T>, T>(
      maps.shape, first, last, channels, pixels, false,
      [](auto& channel, auto& pixel, V x, V w) SIMD_INLINE_LAMBDA {
        channel(x);
        pixel(w * x);
      },
      x, per_channel<T>(maps.weight, n));
}

// pixels: sum_c z, max_c z of z = x gc
template <class T>
void statistics(const Maps<T>& maps, int64_t n, int64_t first, int64_t last, Reduction of_pixels,
                const Fields<Accumulator<T>>& pixels) {
  using V = Vec<T>;
  const auto reduce = [&]<class OfPixel>(OfPixel) SIMD_INLINE_LAMBDA {
    reduce_rows<Nothing<T>, OfPixel, T>(
        maps.shape, first, last, {}, pixels, false,
        [](auto&, auto& pixel, V x, V gate) SIMD_INLINE_LAMBDA { pixel(x * gate); }, dense_rows(maps.shape, maps.x, n),
        per_channel<T>(maps.channel_gate, n));
  };
  if (of_pixels == Reduction::kFirstMaximum) return reduce(SumAndMaximumOf<T, false>{});
  if (of_pixels == Reduction::kSharedMaximum) return reduce(SumAndMaximumOf<T, true>{});
  reduce(SumAndUnmarkedMaximumOf<T>{});
}

// The larger one, NaN where either is NaN.
template <class V>
SIMD_INLINE V maximum(V a, V b) {
  return a == a ? max(a, b) : a;
}

// y = x (gc gs + skip), x (gc + gs + skip) or max(x (gc + skip), x (gs + skip))
template <class T>
void scale(const Maps<T>& maps, int64_t n, int64_t first, int64_t last) {
  using V = Vec<T>;
  const V skip = broadcast<T>(maps.skip);
  const auto map = [&](auto value) SIMD_INLINE_LAMBDA {
    map_sample(maps, n, first, last, value, dense_rows(maps.shape, maps.x, n), per_channel<T>(maps.channel_gate, n),
               per_pixel<T>(maps.spatial_gate, n));
  };
  if (maps.merge == Merge::kProduct)
    map([=](V x, V gc, V gs) { return x * fma(gc, gs, skip); });
  else if (maps.merge == Merge::kAdd)
    map([=](V x, V gc, V gs) { return x * (gc + gs + skip); });
  else
    map([=](V x, V gc, V gs) { return maximum(x * (gc + skip), x * (gs + skip)); });
}

// ---- backward

// u and v of the maximum of a = x gc and b = x gs
template <class V>
struct Shares {
  V u, v;
};
template <class V>
SIMD_INLINE Shares<V> shares_of(V a, V b) {
  const V full = a == b ? V{} + 0.5f : V{} + 1;
  return {a < b ? V{} : full, a > b ? V{} : full};
}

// channels: dgc = sum_p dy x gs; pixels: dgs = sum_c dy x gc; of a maximum with u and v in the place of the gates
template <class T>
void grad_gates(const Maps<T>& maps, int64_t n, int64_t first, int64_t last, const Fields<Accumulator<T>>& channels,
                const Fields<Accumulator<T>>& pixels) {
  using V = Vec<T>;
  const auto reduce = [&](auto step) SIMD_INLINE_LAMBDA {
    reduce_rows<SumOf<T>, SumOf<T>, T>(maps.shape, first, last, channels, pixels, false, step,
                                       dense_rows(maps.shape, maps.grad_y, n), dense_rows(maps.shape, maps.x, n),
                                       per_channel<T>(maps.channel_gate, n), per_pixel<T>(maps.spatial_gate, n));
  };
  if (maps.merge == Merge::kMax)
    reduce([](auto& channel, auto& pixel, V dy, V x, V gc, V gs) SIMD_INLINE_LAMBDA {
      const V grad = dy * x;
      const auto [u, v] = shares_of(x * gc, x * gs);
      channel(grad * u);
      pixel(grad * v);
    });
  else
    reduce([](auto& channel, auto& pixel, V dy, V x, V gc, V gs) SIMD_INLINE_LAMBDA {
      const V grad = dy * x;
      channel(grad * gs);
      pixel(grad * gc);
    });
}

// dM [c in M], of dM or, shared, of dM over the number of equal maxima
template <class V>
SIMD_INLINE V through_maximum(V place_or_value, V marked, V grad) {
  return place_or_value == marked ? grad : V{};
}

// channels: dgc = sum_p x (dy gs + dm / C + dM [c in M])
template <class T>
void grad_channel_gate(const Maps<T>& maps, int64_t n, int64_t first, int64_t last,
                       const Fields<Accumulator<T>>& channels) {
  using V = Vec<T>;
  const V of_mean = broadcast<T>(1 / Accumulator<T>(maps.shape.channels));
  const auto reduce = [&](auto step, auto operand) SIMD_INLINE_LAMBDA {
    reduce_rows<SumOf<T>, Nothing<T>, T>(maps.shape, first, last, channels, {}, false, step, operand,
                                         dense_rows(maps.shape, maps.grad_y, n), dense_rows(maps.shape, maps.x, n),
                                         per_pixel<T>(maps.spatial_gate, n), per_pixel<T>(maps.grad_means, n),
                                         per_pixel<T>(maps.grad_maxima, n), per_pixel<T>(maps.marked, n));
  };
  if (maps.share)
    reduce([=](auto& channel, auto&, V gc, V dy, V x, V gs, V dm, V dM, V marked)
               SIMD_INLINE_LAMBDA { channel(x * fma(dy, gs, fma(dm, of_mean, through_maximum(x * gc, marked, dM)))); },
           per_channel<T>(maps.channel_gate, n));
  else
    reduce([=](auto& channel, auto&, V c, V dy, V x, V gs, V dm, V dM, V marked)
               SIMD_INLINE_LAMBDA { channel(x * fma(dy, gs, fma(dm, of_mean, through_maximum(c, marked, dM)))); },
           per_channel<T>(maps.places, n));
}

// dx = dy (gc gs + skip) + (dm / C + dM [c in M]) gc + da / P + dA [p in A]
template <class T>
void grad_x(const Maps<T>& maps, int64_t n, int64_t first, int64_t last) {
  using V = Vec<T>;
  using A = Accumulator<T>;
  const V skip = broadcast<T>(maps.skip), of_mean = broadcast<T>(1 / A(maps.shape.channels)),
          of_pool = broadcast<T>(1 / A(maps.shape.pixels));
  const auto dy = dense_rows(maps.shape, maps.grad_y, n);
  const auto gc = per_channel<T>(maps.channel_gate, n), da = per_channel<T>(maps.grad_pool_means, n);
  const auto gs = per_pixel<T>(maps.spatial_gate, n);
  if (!maps.marked.data && !maps.pool_marked.data)
    return map_sample(
        maps, n, first, last, [=](V dy, V gc, V gs, V da) { return fma(dy, fma(gc, gs, skip), da * of_pool); }, dy, gc,
        gs, da);
  const auto dA = per_channel<T>(maps.grad_pool_maxima, n), pool_marked = per_channel<T>(maps.pool_marked, n);
  const auto dm = per_pixel<T>(maps.grad_means, n), dM = per_pixel<T>(maps.grad_maxima, n),
             marked = per_pixel<T>(maps.marked, n);
  if (maps.share)
    map_sample(
        maps, n, first, last,
        [=](V dy, V x, V gc, V gs, V dm, V dM, V marked, V da, V dA, V pool_marked) SIMD_INLINE_LAMBDA {
          const V dz = fma(dm, of_mean, through_maximum(x * gc, marked, dM));
          const V pooled = fma(da, of_pool, through_maximum(x, pool_marked, dA));
          return fma(dy, fma(gc, gs, skip), fma(dz, gc, pooled));
        },
        dy, dense_rows(maps.shape, maps.x, n), gc, gs, dm, dM, marked, da, dA, pool_marked);
  else
    map_sample(
        maps, n, first, last,
        [=](V dy, V c, V p, V gc, V gs, V dm, V dM, V marked, V da, V dA, V pool_marked) SIMD_INLINE_LAMBDA {
          const V dz = fma(dm, of_mean, through_maximum(c, marked, dM));
          const V pooled = fma(da, of_pool, through_maximum(p, pool_marked, dA));
          return fma(dy, fma(gc, gs, skip), fma(dz, gc, pooled));
        },
        dy, per_channel<T>(maps.places, n), per_pixel<T>(maps.places, n), gc, gs, dm, dM, marked, da, dA, pool_marked);
}

// dx = dy (gc u + gs v) + da / P + dt w
template <class T>
SIMD_INLINE void grad_concurrent_map(const Maps<T>& maps, int64_t n, int64_t first, int64_t last) {
  using V = Vec<T>;
  const V of_pool = broadcast<T>(1 / Accumulator<T>(maps.shape.pixels));
  const auto dy = dense_rows(maps.shape, maps.grad_y, n);
  const auto gc = per_channel<T>(maps.channel_gate, n), da = per_channel<T>(maps.grad_pool_means, n),
             w = per_channel<T>(maps.weight, n);
  const auto gs = per_pixel<T>(maps.spatial_gate, n), dt = per_pixel<T>(maps.grad_logits, n);
  if (maps.merge == Merge::kAdd)
    map_sample(
        maps, n, first, last,
        [=](V dy, V gc, V gs, V da, V dt, V w) { return fma(dy, gc + gs, fma(dt, w, da * of_pool)); }, dy, gc, gs, da,
        dt, w);
  else
    map_sample(
        maps, n, first, last,
        [=](V dy, V x, V gc, V gs, V da, V dt, V w) SIMD_INLINE_LAMBDA {
          const auto [u, v] = shares_of(x * gc, x * gs);
          return fma(dy, fma(gc, u, gs * v), fma(dt, w, da * of_pool));
        },
        dy, dense_rows(maps.shape, maps.x, n), gc, gs, da, dt, w);
}

// dx as above; channels: sum_p dt x
template <class T>
void grad_concurrent(const Maps<T>& maps, int64_t n, int64_t first, int64_t last, bool of_weight,
                     const Fields<Accumulator<T>>& channels) {
  using V = Vec<T>;
  // A few rows at a time, whose x the cache still holds for the second sum.
  const int64_t row_bytes = maps.shape.row_length() * int64_t(sizeof(T));
  const int64_t step = maps.out && of_weight ? 1 + kMapsAtATime / row_bytes : last - first;
  for (int64_t end = last; end > first; end -= step) {
    const int64_t begin = end - step > first ? end - step : first;
    if (maps.out) grad_concurrent_map(maps, n, begin, end);
    if (of_weight)
      reduce_rows<SumOf<T>, Nothing<T>, T>(
          maps.shape, begin, end, channels, {}, end < last,
          [](auto& channel, auto&, V x, V dt) SIMD_INLINE_LAMBDA { channel(dt * x); },
          dense_rows(maps.shape, maps.x, n), per_pixel<T>(maps.grad_logits, n));
  }
}

// ---- numbers

// gates[i] = sigmoid(gates[i] + bias), in place
template <class A>
void open_gates(A* gates, A bias, int64_t count) {
  row_map(gates, count, [=](int64_t i, auto read) { return sigmoid(read(gates + i) + bias); });
}

// to[i] = sum_n from[n, i], in order
template <class T>
void sum_samples(T* to, const Accumulator<T>* from, int64_t samples, int64_t count) {
  row_map(to, count, [=](int64_t i, auto read) {
    Vec<T> sum = {};
    for (int64_t n = 0; n < samples; ++n) sum += read(from + n * count + i);
    return sum;
  });
}

template <class T>
inline constexpr Kernels<T> kKernels = {
    .pool = pool<T>,
    .statistics = statistics<T>,
    .scale = scale<T>,
    .grad_gates = grad_gates<T>,
    .grad_channel_gate = grad_channel_gate<T>,
    .grad_x = grad_x<T>,
    .grad_concurrent = grad_concurrent<T>,
    .join = join_axes<Accumulator<T>>,
    .widen = convert<Accumulator<T>, T>,
    .open_gates = open_gates<Accumulator<T>>,
    .sigmoid_gradients = sigmoid_gradients<Accumulator<T>>,
    .sum_samples = sum_samples<T>,
};

}  // namespace
}  // namespace attnkernels::channel_spatial::SIMD_LEVEL
