// The CPU backend of the convolution of cbam's statistics; the kernels are in channel_spatial_convolution_simd.h.
#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "channel_spatial/channel_spatial_convolution_binding.h"
#include "common/cpu_work.h"

namespace attnkernels::channel_spatial {

// A plane with k / 2 zeros on either side.
struct Padded {
  int64_t height, width, taps;
  int64_t pitch() const { return width + taps - 1; }
  // What a vector of the last row's taps may read of the row after it is a part of the plane.
  int64_t plane() const { return (height + taps - 1) * pitch() + taps - 1; }
  // Rows whose results lie in scratch at a time: 8 KB of float, which stay in the L1.
  int64_t rows_at_once() const { return std::max<int64_t>(1, 2048 / pitch()); }
};

// The kernels of one level, for weights of type T.
template <class T>
struct ConvolutionKernels {
  using A = Accumulator<T>;
  void (*pad)(const Padded&, A* padded, const A* plane, const A* gates);
  void (*convolve)(const Padded&, A* to, const A* padded, int64_t planes, const A* weight, int64_t step, A bias,
                   bool gate, int64_t first, int64_t last, A* row);
  void (*correlate)(const Padded&, double* sums, const A* grad, const A* padded, int64_t i);
  void (*widen)(A* to, const T* from, int64_t count);
  void (*narrow)(T* to, const A* from, int64_t count);
};

}  // namespace attnkernels::channel_spatial

#define SIMD_FILE "channel_spatial/channel_spatial_convolution_simd.h"
#include "common/simd_foreach.h"

namespace attnkernels::channel_spatial {
namespace {

using cpu::input, cpu::output;

// Threads for `products` of each pixel: a vector's product costs about what reading it from memory does.
int64_t threads_for(const Convolution& shape, int64_t products) {
  return cpu::threads_for(shape.samples * shape.pixels() * products);
}

// Planes of all samples with zeros around them, [count, padded plane]; or of the gates' gradients, those of the logits.
template <class T>
auto padded_planes(const Padded& padded, const Accumulator<T>* planes, const Accumulator<T>* gates, int64_t count,
                   int64_t threads) {
  const ConvolutionKernels<T>& kernels = *SIMD_CHOOSE(kConvolution<T>);
  std::vector<Accumulator<T>> result(count * padded.plane());
  cpu::for_parts(std::min(threads, count), count, 1, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t offset = i * padded.height * padded.width;
      kernels.pad(padded, result.data() + i * padded.plane(), planes + offset, gates ? gates + offset : nullptr);
    }
  });
  return result;
}

// The weights of both planes of the statistics, in their order.
template <class T>
struct Taps {
  explicit Taps(const CheckedConvolution& call) {
    const int64_t of_plane = call.taps * call.taps;
    T ordered[2 * kMostTaps * kMostTaps];
    for (int64_t i = 0; i < call.weights(); ++i)
      ordered[i] = input<T>(call.weight)[call.weight_at(i / of_plane, i % of_plane)];
    SIMD_CHOOSE(kConvolution<T>)->widen(weights, ordered, call.weights());
  }
  Accumulator<T> weights[2 * kMostTaps * kMostTaps];
};

// f(n, first, last, row) for the rows of all samples
template <class A, class F>
void for_rows(const Convolution& shape, const Padded& padded, int64_t threads, const F& f) {
  cpu::for_parts(threads, shape.samples * shape.height, 1, [&](int64_t, int64_t begin, int64_t end) {
    std::vector<A> row(padded.rows_at_once() * padded.pitch());
    while (begin < end) {
      const int64_t n = begin / shape.height, last = std::min(end, (n + 1) * shape.height);
      f(n, begin - n * shape.height, last - n * shape.height, row.data());
      begin = last;
    }
  });
}

Tensor forward(const Tensor& statistics, const Tensor& weight, const Optional& given_bias, int64_t mean_first,
               int64_t gate) {
  const CheckedConvolutionForward call(statistics, weight, given_bias, mean_first, gate);
  Tensor result = cpu::allocate({call.samples, call.height, call.width}, call.numbers_dtype);
  if (!result.numel()) return result;
  cpu::dispatch(call.op, call.dtype, [&]<class T>(T) {
    using A = Accumulator<T>;
    const ConvolutionKernels<T>& kernels = *SIMD_CHOOSE(kConvolution<T>);
    const Padded padded{call.height, call.width, call.taps};
    const int64_t threads = threads_for(call, call.weights());
    const std::vector<A> planes =
        padded_planes<T>(padded, input<A>(call.statistics), nullptr, 2 * call.samples, threads);
    const Taps<T> taps(call);
    A bias = 0;
    if (call.bias) kernels.widen(&bias, input<T>(call.bias), 1);
    for_rows<A>(call, padded, threads, [&](int64_t n, int64_t first, int64_t last, A* row) {
      kernels.convolve(padded, output<A>(result) + n * call.pixels(), planes.data() + n * 2 * padded.plane(), 2,
                       taps.weights, 1, bias, gate, first, last, row);
    });
  });
  return result;
}

// The weight's gradient: each sample's row of taps by one thread, then the samples in their order.
template <class T, class A = Accumulator<T>>
void weight_gradient(const CheckedConvolution& call, const Padded& padded, const std::vector<A>& grads, int64_t threads,
                     T* grad_weight) {
  const ConvolutionKernels<T>& kernels = *SIMD_CHOOSE(kConvolution<T>);
  const int64_t rows = 2 * call.taps, count = call.samples * rows;
  const std::vector<A> planes = padded_planes<T>(padded, input<A>(call.statistics), nullptr, 2 * call.samples, threads);
  std::vector<double> sums(call.samples * call.weights());
  cpu::for_parts(std::min(threads, count), count, 1, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t n = i / rows, plane = i / call.taps;
      kernels.correlate(padded, sums.data() + i * call.taps, grads.data() + n * padded.plane(),
                        planes.data() + plane * padded.plane(), i % call.taps);
    }
  });
  A totals[2 * kMostTaps * kMostTaps];
  for (int64_t j = 0; j < call.weights(); ++j) {
    double sum = 0;
    for (int64_t n = 0; n < call.samples; ++n) sum += sums[n * call.weights() + j];
    totals[j] = A(sum);
  }
  const int64_t of_plane = call.taps * call.taps;
  for (int64_t plane = 0; plane < 2; ++plane)
    kernels.narrow(grad_weight + call.weights_of(plane), totals + plane * of_plane, of_plane);
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& statistics, const Tensor& weight,
                                    const Optional& gate, int64_t mean_first, int64_t needs) {
  const CheckedConvolutionBackward call(grad, statistics, weight, gate, mean_first, needs);
  Tensor grad_statistics = cpu::allocate_result(needs & kNeedsStatistics, call.statistics.sizes(), call.numbers_dtype);
  Tensor grad_weight = cpu::allocate_result(needs & kNeedsTaps, call.weight.sizes(), call.dtype);
  cpu::dispatch(call.op, call.dtype, [&]<class T>(T) {
    using A = Accumulator<T>;
    const ConvolutionKernels<T>& kernels = *SIMD_CHOOSE(kConvolution<T>);
    const Padded padded{call.height, call.width, call.taps};
    const int64_t threads = threads_for(call, call.weights());
    const std::vector<A> grads =
        padded_planes<T>(padded, input<A>(call.grad), input<A>(call.gate), call.samples, threads);
    const int64_t of_plane = call.taps * call.taps;
    if (output<A>(grad_statistics)) {
      const Taps<T> taps(call);
      for_rows<A>(call, padded, threads, [&](int64_t n, int64_t first, int64_t last, A* row) {
        for (int64_t plane = 0; plane < 2; ++plane)  // by the taps in reverse
          kernels.convolve(padded, output<A>(grad_statistics) + (2 * n + plane) * call.pixels(),
                           grads.data() + n * padded.plane(), 1, taps.weights + (plane + 1) * of_plane - 1, -1, 0,
                           false, first, last, row);
      });
    }
    if (output<T>(grad_weight)) weight_gradient<T>(call, padded, grads, threads, output<T>(grad_weight));
  });
  return {std::move(grad_statistics), std::move(grad_weight)};
}

STABLE_TORCH_LIBRARY_IMPL(attnkernels, CPU, m) {
  m.impl("channel_spatial_convolution", TORCH_BOX(&forward));
  m.impl("channel_spatial_convolution_backward", TORCH_BOX(&backward));
}

}  // namespace
}  // namespace attnkernels::channel_spatial
