// The layers of squeeze_excite of one level; no include guard, no torch. Kernels<T> says which part each works on.
#include "common/simd_gate.h"

namespace attnkernels::squeeze_excite::SIMD_LEVEL {
namespace {

using namespace simd::SIMD_LEVEL;

// ---- both directions

template <class V>
SIMD_INLINE V activate(V u, bool relu) {
  return relu ? max(V{}, u) : silu(u);
}

// ---- forward

// (x - mean) / sqrt(variance + epsilon) * weight + bias = x scale + shift, per channel; weight and bias may be null
template <class T>
void fold_batch_norm(int64_t channels, const T* mean, const T* variance, const T* weight, const T* bias,
                     Accumulator<T> epsilon, Accumulator<T>* scale, Accumulator<T>* shift) {
  using A = Accumulator<T>;
  row_map(scale, channels, [=](int64_t c, auto read) {
    const Vec<A> inverse = 1 / sqrt(read(variance + c) + epsilon);
    return weight ? inverse * read(weight + c) : inverse;
  });
  row_map(shift, channels, [=](int64_t c, auto read) {
    const Vec<A> centre = read(mean + c) * read(scale + c);
    return (bias ? read(bias + c) : Vec<A>{}) - centre;
  });
}

// hidden[n, r] = activation(u[n, r]),  u[n, r] = reduce_bias[r] + sum_c reduce_weight[r, c] means[n, c]
template <class T>
void reduce(const Forward<T>& f, int64_t n0, int64_t n1, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  linear<T, A>({f.saved.preactivations(n0), f.saved.columns()}, f.parameters.reduce_weight, f.parameters.reduce_bias,
               {f.saved.means(n0), f.saved.columns()}, n1 - n0, f.shape.channels, begin, end);
  const bool relu = f.shape.activation == Activation::kRelu;
  for (int64_t n = n0; n < n1; ++n) {
    const A* u = f.saved.preactivations(n) + begin;
    row_map(f.hidden + n * f.shape.hidden + begin, end - begin,
            [=](int64_t i, auto read) { return activate(read(u + i), relu); });
  }
}

// gates[n, c] = gate(expand_bias[c] + sum_r expand_weight[c, r] hidden[n, r])
template <class T>
void expand(const Forward<T>& f, int64_t n0, int64_t n1, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const int64_t inputs = f.single_layer ? f.shape.channels : f.shape.hidden;
  Matrix<const A> hidden{f.hidden + n0 * f.shape.hidden, f.shape.hidden};
  if (f.single_layer) hidden = {f.saved.means(n0), f.saved.columns()};
  linear<T, A>({f.saved.gates(n0), f.saved.columns()}, f.parameters.expand_weight, f.parameters.expand_bias, hidden,
               n1 - n0, inputs, begin, end);
  for (int64_t n = n0; n < n1; ++n) apply_gate(f.shape.gate, f.saved.gates(n) + begin, end - begin);
}

// ---- backward

// grad_logits[n, c] = grad_logits[n, c] gate'(logit[n, c]) in place; hidden[n, r] = activation(u[n, r]) again
template <class T>
void backward_gate(const Backward<T>& b, int64_t n0, int64_t n1) {
  using A = Accumulator<T>;
  const bool relu = b.shape.activation == Activation::kRelu;
  for (int64_t n = n0; n < n1; ++n) {
    apply_gate_gradient(b.shape.gate, b.grad_logits + n * b.shape.channels, b.saved.gates(n), b.shape.channels);
    const A* u = b.saved.preactivations(n);
    row_map(b.hidden + n * b.shape.hidden, b.shape.hidden,
            [=](int64_t i, auto read) { return activate(read(u + i), relu); });
  }
}

// grad_hidden[n, r] = activation'(u[n, r]) sum_c grad_logits[n, c] expand_weight[c, r]
// (single layer: grad_means[n, r] = that sum / pixels, with no activation)
template <class T>
void backward_expand(const Backward<T>& b, int64_t n0, int64_t n1, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  const int64_t channels = b.shape.channels, outputs = b.single_layer ? channels : b.shape.hidden;
  A* to = (b.single_layer ? b.grad_means : b.grad_hidden) + n0 * outputs;
  weighted_rows<A, T, A>({to, outputs}, {b.grad_logits + n0 * channels, channels, 1},
                         {b.parameters.expand_weight, outputs}, n1 - n0, channels, begin, end);
  const bool single_layer = b.single_layer, relu = b.shape.activation == Activation::kRelu;
  const A pixels = b.shape.pixels;
  for (int64_t n = n0; n < n1; ++n) {
    A* grads = to + (n - n0) * outputs + begin;
    const A* u = b.saved.preactivations(n) + begin;
    row_map(grads, end - begin, [=](int64_t i, auto read) {
      const V grad = read(grads + i);
      if (single_layer) return grad / pixels;
      const V value = read(u + i);
      if (relu) return relu_gradient(grad, value);
      const V slope = sigmoid(value);
      return grad * slope * (1 + value * (1 - slope));
    });
  }
}

// grad_means[n, c] = sum_r grad_hidden[n, r] reduce_weight[r, c] / pixels
template <class T>
void backward_reduce(const Backward<T>& b, int64_t n0, int64_t n1, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const int64_t channels = b.shape.channels, hidden = b.shape.hidden;
  weighted_rows<A, T, A>({b.grad_means + n0 * channels, channels}, {b.grad_hidden + n0 * hidden, hidden, 1},
                         {b.parameters.reduce_weight, channels}, n1 - n0, hidden, begin, end);
  const A pixels = b.shape.pixels;
  for (int64_t n = n0; n < n1; ++n) {
    A* grads = b.grad_means + n * channels + begin;
    row_map(grads, end - begin, [=](int64_t i, auto read) { return read(grads + i) / pixels; });
  }
}

// Samples in order, whatever the number of threads:
// grad_expand_weight[c, r] = sum_n grad_logits[n, c] hidden[n, r]      grad_expand_bias[c] = sum_n grad_logits[n, c]
// grad_reduce_weight[r, c] = sum_n grad_hidden[n, r] means[n, c]       grad_reduce_bias[r] = sum_n grad_hidden[n, r]
template <class T>
void backward_weights(const Backward<T>& b) {
  using A = Accumulator<T>;
  const int64_t samples = b.shape.samples, channels = b.shape.channels, hidden = b.shape.hidden;
  const Matrix<const A> means{b.saved.means(0), b.saved.columns()};
  const Matrix<const A> inputs = b.single_layer ? means : Matrix<const A>{b.hidden, hidden};
  linear_gradients<T, A>(b.grad_expand_weight, b.grad_expand_bias, {b.grad_logits, channels}, inputs, samples,
                         b.single_layer ? channels : hidden, 0, channels);
  if (!b.single_layer)
    linear_gradients<T, A>(b.grad_reduce_weight, b.grad_reduce_bias, {b.grad_hidden, hidden}, means, samples, channels,
                           0, hidden);
}

template <class T>
inline constexpr Kernels<T> kKernels = {reduce<T>,          expand<T>,          backward_gate<T>,
                                        backward_expand<T>, backward_reduce<T>, backward_weights<T>};

}  // namespace
}  // namespace attnkernels::squeeze_excite::SIMD_LEVEL
