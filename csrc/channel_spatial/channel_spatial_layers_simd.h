// The channel gate's layers of one level; no include guard, no torch. LayersKernels<T> says which part each works on.
#include "common/simd_gate.h"

namespace attnkernels::channel_spatial::SIMD_LEVEL {
namespace {

using namespace simd::SIMD_LEVEL;

// ---- forward

// hidden[n, k, r] = relu(reduce_bias[r] + sum_c reduce_weight[r, c] pooled[n, k, c])
template <class T>
void reduce(const LayersForward<T>& f, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const int64_t rows = f.shape.samples * f.shape.pools, channels = f.shape.channels, hidden = f.shape.hidden;
  linear<T, A>({f.hidden, hidden}, f.reduce_weight, f.reduce_bias, {f.pooled, channels}, rows, channels, begin, end);
  for (int64_t row = 0; row < rows; ++row) {
    A* values = f.hidden + row * hidden + begin;
    row_map(values, end - begin, [=](int64_t i, auto read) { return max(Vec<A>{}, read(values + i)); });
  }
}

// to[n, i] = sum_k from[n, k, i]
template <class A>
void sum_pools(const Layers& shape, A* to, const A* from) {
  const int64_t inputs = shape.gate_inputs();
  for (int64_t n = 0; n < shape.samples; ++n) {
    const A* pools = from + n * shape.pools * inputs;
    row_map(to + n * inputs, inputs, [=](int64_t i, auto read) {
      Vec<A> sum = read(pools + i);
      for (int64_t k = 1; k < shape.pools; ++k) sum += read(pools + k * inputs + i);
      return sum;
    });
  }
}

// gates[n, c] = sigmoid(K expand_bias[c] + sum_i expand_weight[c, i] summed[n, i])
template <class T>
void expand(const LayersForward<T>& f, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const int64_t inputs = f.shape.gate_inputs(), channels = f.shape.channels;
  linear<T, A>({f.gates, channels}, f.expand_weight, nullptr, {f.summed, inputs}, f.shape.samples, inputs, begin, end);
  const T* bias = f.expand_bias ? f.expand_bias + begin : nullptr;
  const Vec<A> times = broadcast<A>(f.shape.pools);
  for (int64_t n = 0; n < f.shape.samples; ++n) {
    A* gates = f.gates + n * channels + begin;
    row_map(gates, end - begin, [=](int64_t i, auto read) {
      const Vec<A> logit = read(gates + i);
      return sigmoid(bias ? fma(times, read(bias + i), logit) : logit);
    });
  }
}

// ---- backward

// grad_inputs[n, i] = sum_c grad_logits[n, c] expand_weight[c, i], and for each pool, where hidden is positive,
// grad_hidden[n, k, r] = grad_inputs[n, r]; of a single layer grad_pooled[n, k, c] = grad_inputs[n, c]
template <class T>
void backward_expand(const LayersBackward<T>& b, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  const int64_t samples = b.shape.samples, pools = b.shape.pools, inputs = b.shape.gate_inputs();
  const int64_t channels = b.shape.channels;
  weighted_rows<A, T, A>({b.grad_inputs, inputs}, {b.grad_logits, channels, 1}, {b.expand_weight, inputs}, samples,
                         channels, begin, end);
  A* to = b.shape.hidden ? b.grad_hidden : b.grad_pooled;
  for (int64_t row = 0; row < samples * pools; ++row) {
    const A* grads = b.grad_inputs + row / pools * inputs + begin;
    const A* hidden = b.shape.hidden ? b.hidden + row * inputs + begin : nullptr;
    row_map(to + row * inputs + begin, end - begin, [=](int64_t i, auto read) {
      const V grad = read(grads + i);
      return hidden ? relu_gradient(grad, read(hidden + i)) : grad;
    });
  }
}

// grad_pooled[n, k, c] = sum_r grad_hidden[n, k, r] reduce_weight[r, c]
template <class T>
void backward_reduce(const LayersBackward<T>& b, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const int64_t channels = b.shape.channels, hidden = b.shape.hidden;
  weighted_rows<A, T, A>({b.grad_pooled, channels}, {b.grad_hidden, hidden, 1}, {b.reduce_weight, channels},
                         b.shape.samples * b.shape.pools, hidden, begin, end);
}

template <class T>
void expand_gradients(const LayersBackward<T>& b, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const int64_t channels = b.shape.channels, inputs = b.shape.gate_inputs();
  linear_gradients<T, A>(b.grad_expand_weight, b.grad_expand_bias, {b.grad_logits, channels}, {b.summed, inputs},
                         b.shape.samples, inputs, begin, end, b.shape.pools);
}

template <class T>
void reduce_gradients(const LayersBackward<T>& b, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const int64_t channels = b.shape.channels, hidden = b.shape.hidden;
  linear_gradients<T, A>(b.grad_reduce_weight, b.grad_reduce_bias, {b.grad_hidden, hidden}, {b.pooled, channels},
                         b.shape.samples * b.shape.pools, channels, begin, end);
}

template <class T>
inline constexpr LayersKernels<T> kLayers = {
    .reduce = reduce<T>,
    .sum_pools = sum_pools<Accumulator<T>>,
    .expand = expand<T>,
    .sigmoid_gradients = sigmoid_gradients<Accumulator<T>>,
    .backward_expand = backward_expand<T>,
    .backward_reduce = backward_reduce<T>,
    .expand_gradients = expand_gradients<T>,
    .reduce_gradients = reduce_gradients<T>,
};

}  // namespace
}  // namespace attnkernels::channel_spatial::SIMD_LEVEL
