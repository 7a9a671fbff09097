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

template <class A>
struct ConvolutionKernels {
  void (*pad)(const Padded&, A* padded, const A* plane);
  void (*convolve)(const Padded&, A* to, const A* padded, int64_t planes, const A* weight, int64_t step, A bias,
                   int64_t first, int64_t last, A* row);
  void (*correlate)(const Padded&, double* sums, const A* grad, const A* padded, int64_t i);
};

}  // namespace attnkernels::channel_spatial

#include "common/simd.h"
#define SIMD_FILE "channel_spatial/channel_spatial_convolution_simd.h"
#include "common/simd_foreach.h"

namespace attnkernels::channel_spatial {
namespace {

using cpu::input, cpu::output;

template <class F>
void dispatch(const Tensor& x, const F& f) {
  if (x.scalar_type() == ScalarType::Double)
    f(double{});
  else
    f(float{});
}

// Threads for `products` of each pixel: a vector's product costs about what reading it from memory does.
int64_t threads_for(const Convolution& shape, int64_t products) {
  return cpu::threads_for(shape.samples * shape.pixels() * products);
}

// Planes of all samples with zeros around them, [count, padded plane].
template <class A>
std::vector<A> padded_planes(const Padded& padded, const A* planes, int64_t count, int64_t threads) {
  const ConvolutionKernels<A>& kernels = *SIMD_CHOOSE(kConvolution<A>);
  std::vector<A> result(count * padded.plane());
  cpu::for_parts(std::min(threads, count), count, 1, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      kernels.pad(padded, result.data() + i * padded.plane(), planes + i * padded.height * padded.width);
  });
  return result;
}

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

Tensor forward(const Tensor& given_statistics, const Tensor& given_weight, const Optional& given_bias) {
  const CheckedConvolutionForward call(given_statistics, given_weight, given_bias);
  Tensor logits = cpu::allocate({call.samples, call.height, call.width}, call.statistics.scalar_type());
  if (!logits.numel()) return logits;
  dispatch(call.statistics, [&]<class A>(A) {
    const ConvolutionKernels<A>& kernels = *SIMD_CHOOSE(kConvolution<A>);
    const Padded padded{call.height, call.width, call.taps};
    const int64_t threads = threads_for(call, call.weights());
    const std::vector<A> planes = padded_planes<A>(padded, input<A>(call.statistics), 2 * call.samples, threads);
    const A bias = call.bias ? *input<A>(call.bias) : A(0);
    for_rows<A>(call, padded, threads, [&](int64_t n, int64_t first, int64_t last, A* row) {
      kernels.convolve(padded, output<A>(logits) + n * call.pixels(), planes.data() + n * 2 * padded.plane(), 2,
                       input<A>(call.weight), 1, bias, first, last, row);
    });
  });
  return logits;
}

// The weight's gradient: each sample's row of taps by one thread, then the samples in their order.
template <class A>
void weight_gradient(const CheckedConvolution& call, const Padded& padded, const std::vector<A>& grads, int64_t threads,
                     A* grad_weight) {
  const ConvolutionKernels<A>& kernels = *SIMD_CHOOSE(kConvolution<A>);
  const int64_t rows = 2 * call.taps, count = call.samples * rows;
  const std::vector<A> planes = padded_planes<A>(padded, input<A>(call.statistics), 2 * call.samples, threads);
  std::vector<double> sums(call.samples * call.weights());
  cpu::for_parts(std::min(threads, count), count, 1, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t n = i / rows, plane = i / call.taps;
      kernels.correlate(padded, sums.data() + i * call.taps, grads.data() + n * padded.plane(),
                        planes.data() + plane * padded.plane(), i % call.taps);
    }
  });
  for (int64_t j = 0; j < call.weights(); ++j) {
    double sum = 0;
    for (int64_t n = 0; n < call.samples; ++n) sum += sums[n * call.weights() + j];
    grad_weight[j] = A(sum);
  }
}

std::tuple<Tensor, Tensor> backward(const Tensor& given_grad, const Tensor& given_statistics,
                                    const Tensor& given_weight, int64_t needs) {
  const CheckedConvolutionBackward call(given_grad, given_statistics, given_weight, needs);
  const ScalarType dtype = call.statistics.scalar_type();
  Tensor grad_statistics = cpu::allocate_result(needs & kNeedsStatistics, call.statistics.sizes(), dtype);
  Tensor grad_weight = cpu::allocate_result(needs & kNeedsTaps, call.weight.sizes(), dtype);
  dispatch(call.statistics, [&]<class A>(A) {
    const ConvolutionKernels<A>& kernels = *SIMD_CHOOSE(kConvolution<A>);
    const Padded padded{call.height, call.width, call.taps};
    const int64_t threads = threads_for(call, call.weights());
    const std::vector<A> grads = padded_planes<A>(padded, input<A>(call.grad), call.samples, threads);
    const int64_t of_plane = call.taps * call.taps;
    if (output<A>(grad_statistics)) {
      for_rows<A>(call, padded, threads, [&](int64_t n, int64_t first, int64_t last, A* row) {
        for (int64_t plane = 0; plane < 2; ++plane)  // by the taps in reverse
          kernels.convolve(padded, output<A>(grad_statistics) + (2 * n + plane) * call.pixels(),
                           grads.data() + n * padded.plane(), 1, input<A>(call.weight) + (plane + 1) * of_plane - 1, -1,
                           0, first, last, row);
      });
    }
    if (output<A>(grad_weight)) weight_gradient<A>(call, padded, grads, threads, output<A>(grad_weight));
  });
  return {std::move(grad_statistics), std::move(grad_weight)};
}

STABLE_TORCH_LIBRARY_IMPL(attnkernels, CPU, m) {
  m.impl("channel_spatial_convolution", TORCH_BOX(&forward));
  m.impl("channel_spatial_convolution_backward", TORCH_BOX(&backward));
}

}  // namespace
}  // namespace attnkernels::channel_spatial
