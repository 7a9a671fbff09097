// The convolution over the channels of one level; no include guard, no torch. `padded` is scratch for a sample's channels
// with k / 2 more on either side.
#include "common/simd_gate.h"

namespace attnkernels::efficient_channel_attention::SIMD_LEVEL {
namespace {

using namespace simd::SIMD_LEVEL;

template <class A>
void pad(const Shape& shape, A* padded, const A* row) {
  const int64_t channels = shape.channels, side = shape.taps / 2;
  for (int64_t c = 0; c < channels; ++c) padded[side + c] = row[c];
  for (int64_t i = 0; i < side; ++i) {
    padded[i] = shape.circular ? row[channels - side + i] : 0;
    padded[side + channels + i] = shape.circular ? row[i] : 0;
  }
}

// to[c] = sum_j weight[j step] padded[c + j] / divisor
template <class T, class A>
void convolve(const Shape& shape, A* to, const A* padded, const T* weight, int64_t step, A divisor) {
  row_map(to, shape.channels, [=, taps = shape.taps](int64_t c, auto read) {
    Vec<A> sum = {};
    for (int64_t j = 0; j < taps; ++j)
      sum = fma(broadcast<A>(to_accumulator(weight[j * step])), read(padded + c + j), sum);
    return sum / divisor;
  });
}

// gates[c] = gate(sum_j weight[j] means[c + j - k / 2])
template <class T>
void gates(const Shape& shape, const T* weight, const Accumulator<T>* means, Accumulator<T>* gates,
           Accumulator<T>* padded) {
  pad(shape, padded, means);
  convolve<T, Accumulator<T>>(shape, gates, padded, weight, 1, 1);
  apply_gate(shape.gate, gates, shape.channels);
}

// grads[c] = grads[c] gate'(v[c]) in place, and from them grad_means[c] = sum_j weight[j] grads[c - j + k / 2] / pixels
template <class T>
void grad_means(const Shape& shape, const T* weight, const Accumulator<T>* gates, Accumulator<T>* grads,
                Accumulator<T>* grad_means, Accumulator<T>* padded) {
  apply_gate_gradient(shape.gate, grads, gates, shape.channels);
  pad(shape, padded, grads);
  convolve<T, Accumulator<T>>(shape, grad_means, padded, weight + shape.taps - 1, -1, shape.pixels);
}

// grad_weight[j] = sum_n,c grads[n, c] means[n, c + j - k / 2]: samples in order, whatever the number of threads.
template <class T>
void grad_weight(const Shape& shape, const Accumulator<T>* grads, const Accumulator<T>* saved, T* grad_weight,
                 Accumulator<T>* sums, Accumulator<T>* padded) {
  using A = Accumulator<T>;
  for (int64_t j = 0; j < shape.taps; ++j) sums[j] = 0;
  for (int64_t n = 0; n < shape.samples; ++n) {
    pad(shape, padded, saved + n * shape.saved_columns());
    const A* row = grads + n * shape.channels;
    for (int64_t j = 0; j < shape.taps; ++j)
      sums[j] += row_reduce<A>(shape.channels, [=](Vec<A> sum, int64_t c, auto read) {
        return fma(read(row + c), read(padded + c + j), sum);
      });
  }
  row_map(grad_weight, shape.taps, [=](int64_t j, auto read) { return read(sums + j); });
}

template <class T>
inline constexpr Kernels<T> kKernels = {gates<T>, grad_means<T>, grad_weight<T>};

}  // namespace
}  // namespace attnkernels::efficient_channel_attention::SIMD_LEVEL
