// The squeeze_excite kernels of one level; no include guard, no torch. Kernels<T> says which part each works on.
namespace attnkernels::squeeze_excite::SIMD_LEVEL {
namespace {

using namespace simd::SIMD_LEVEL;

// ---- both directions

// Numbers per channel, for lanes that are channels, or that all are of one channel.
template <class A>
struct PerLane {
  const A* coefficients;
  template <class Read>
  SIMD_INLINE Vec<A> operator()(int64_t j, Read read) const {
    return read(coefficients + j);
  }
};
template <class A>
struct Same {
  Vec<A> number;
  template <class Read>
  SIMD_INLINE Vec<A> operator()(int64_t, Read) const {
    return number;
  }
};

// sums[c] = sum_p of what add(sum, i, read, coefficients[c]...) adds for the elements i = (c, p) of a sample
template <class T, class Add, class... A>
SIMD_INLINE void pool_units(const Shape& shape, int64_t first, int64_t last, Accumulator<T>* sums, Add add,
                            const A*... coefficients) {
  if (shape.channels_last) {
    for (int64_t c = 0; c < shape.channels; ++c) sums[c] = 0;
    columns_reduce<T>(sums, last - first, shape.channels, [&](Vec<T> sum, int64_t p, int64_t c, auto read) {
      return add(sum, (first + p) * shape.channels + c, read, PerLane<A>{coefficients}(c, read)...);
    });
  } else {
    for (int64_t c = first; c < last; ++c) {
      const int64_t base = c * shape.pixels;
      sums[c] = row_reduce<T>(shape.pixels,
                              [=, ... same = Same<A>{broadcast<A>(coefficients[c])}](Vec<T> sum, int64_t i, auto read) {
                                return add(sum, base + i, read, same(i, read)...);
                              });
    }
  }
}

// y[i] = value(i, read, coefficients(j, read)...) for the elements of the units [first, last)
template <class T, class Value, class... A>
SIMD_INLINE void map_units(const Shape& shape, int64_t first, int64_t last, T* y, bool stream, Value value,
                           const A*... coefficients) {
  if (shape.channels_last) {
    const auto piece = [&](int64_t i, int64_t, int64_t offset) {
      return [=](int64_t j, auto read) { return value(i + j, read, PerLane<A>{coefficients + offset}(j, read)...); };
    };
    map_backwards(y, first * shape.channels, last * shape.channels, shape.channels, stream, piece);
  } else {
    const auto piece = [&](int64_t i, int64_t channel, int64_t) {
      return [=, ... same = Same<A>{broadcast<A>(coefficients[channel])}](int64_t j, auto read) {
        return value(i + j, read, same(j, read)...);
      };
    };
    map_backwards(y, first * shape.pixels, last * shape.pixels, shape.pixels, stream, piece);
  }
}

template <class V>
SIMD_INLINE V activate(V u, bool relu) {
  return relu ? max(V{}, u) : silu(u);
}

// ---- forward

// sums[c] = sum_p x[n, c, p]
template <class T>
void pool(const Forward<T>& f, int64_t n, int64_t first, int64_t last, Accumulator<T>* sums) {
  const T* x = f.x + n * f.shape.channels * f.shape.pixels;
  pool_units<T>(f.shape, first, last, sums, [=](Vec<T> sum, int64_t i, auto read) { return sum + read(x + i); });
}

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

// The same of z = activation(x scale[c] + shift[c]), or of activation(x), which is left in the place of x.
template <class T>
void prologue_pool(const Forward<T>& f, int64_t n, int64_t first, int64_t last, Accumulator<T>* sums) {
  using V = Vec<T>;
  using A = Accumulator<T>;
  T* x = f.y + n * f.shape.channels * f.shape.pixels;
  const auto pool_of = [&](auto activation) {
    if (f.prologue.scale)
      pool_units<T>(
          f.shape, first, last, sums,
          [=](V sum, int64_t i, auto read, V scale, V shift) {
            return sum + read.write(x + i, activation(fma(read(x + i), scale, shift)));
          },
          f.prologue.scale, f.prologue.shift);
    else
      pool_units<T>(f.shape, first, last, sums,
                    [=](V sum, int64_t i, auto read) { return sum + read.write(x + i, activation(read(x + i))); });
  };
  const V zero = {}, one = broadcast<A>(1), half = broadcast<A>(0.5), sixth = broadcast<A>(A(1) / 6);
  switch (f.prologue.activation) {
    case InputActivation::kNone:
      return pool_of([](V z) { return z; });
    case InputActivation::kRelu:
      return pool_of([=](V z) { return max(zero, z); });
    case InputActivation::kSilu:
      return pool_of([](V z) { return silu(z); });
    case InputActivation::kHardSwish:
      return pool_of([=](V z) { return z * min(one, max(zero, fma(z, sixth, half))); });
  }
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
  const bool smooth = f.shape.gate == Gate::kSigmoid;
  const Vec<A> zero = {}, one = broadcast<A>(1), half = broadcast<A>(0.5), sixth = broadcast<A>(A(1) / 6);
  for (int64_t n = n0; n < n1; ++n) {
    A* gates = f.saved.gates(n) + begin;
    row_map(gates, end - begin, [=](int64_t i, auto read) {
      const Vec<A> logits = read(gates + i);
      return smooth ? sigmoid(logits) : min(one, max(zero, fma(logits, sixth, half)));
    });
  }
}

// y[n, c, p] = output_activation(x[n, c, p] gates[n, c] + residual[n, c, p])
template <class T>
void scale(const Forward<T>& f, int64_t n, int64_t first, int64_t last) {
  using V = Vec<T>;
  const int64_t base = n * f.shape.channels * f.shape.pixels;
  const T *x = f.x + base, *residual = f.residual ? f.residual + base : nullptr;
  const auto* gates = static_cast<const Accumulator<T>*>(f.saved.gates(n));
  const auto map = [&](auto value) { map_units(f.shape, first, last, f.y + base, f.stream, value, gates); };
  const bool relu = f.shape.output_activation == OutputActivation::kRelu;
  if (!residual && !relu)
    map([=](int64_t i, auto read, V gate) { return read(x + i) * gate; });
  else if (!residual)
    map([=](int64_t i, auto read, V gate) { return max(V{}, read(x + i) * gate); });
  else if (!relu)
    map([=](int64_t i, auto read, V gate) { return fma(read(x + i), gate, read(residual + i)); });
  else
    map([=](int64_t i, auto read, V gate) { return max(V{}, fma(read(x + i), gate, read(residual + i))); });
  if (f.stream) stream_fence();
}

// ---- backward; dz = grad_y output_activation'(y)

// dz, where y is the kept output of a ReLU
template <class V>
SIMD_INLINE V relu_gradient(V grad_y, V y) {
  return y <= 0 ? V{} : grad_y;
}

// sums[c] = sum_p dz[n, c, p] x[n, c, p]
template <class T>
void backward_pool(const Backward<T>& b, int64_t n, int64_t first, int64_t last, Accumulator<T>* sums) {
  using V = Vec<T>;
  const int64_t base = n * b.shape.channels * b.shape.pixels;
  const T *grad_y = b.grad_y + base, *x = b.x + base, *y = b.y ? b.y + base : nullptr;
  if (y)
    pool_units<T>(b.shape, first, last, sums, [=](V sum, int64_t i, auto read) {
      return fma(relu_gradient(read(grad_y + i), read(y + i)), read(x + i), sum);
    });
  else
    pool_units<T>(b.shape, first, last, sums,
                  [=](V sum, int64_t i, auto read) { return fma(read(grad_y + i), read(x + i), sum); });
}

// grad_logits[n, c] = grad_logits[n, c] gate'(logit[n, c]) in place; hidden[n, r] = activation(u[n, r]) again
template <class T>
void backward_gate(const Backward<T>& b, int64_t n0, int64_t n1) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  const bool smooth = b.shape.gate == Gate::kSigmoid, relu = b.shape.activation == Activation::kRelu;
  const A sixth = A(1) / 6;
  for (int64_t n = n0; n < n1; ++n) {
    A* grads = b.grad_logits + n * b.shape.channels;
    const A *gates = b.saved.gates(n), *u = b.saved.preactivations(n);
    row_map(grads, b.shape.channels, [=](int64_t i, auto read) {
      const V grad = read(grads + i), gate = read(gates + i);
      if (smooth) return grad * gate * (1 - gate);
      return gate > 0 ? (gate < 1 ? grad * sixth : V{}) : V{};
    });
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

// grad_x[n, c, p] = dz[n, c, p] gates[n, c] + grad_means[n, c],  grad_residual = dz
template <class T>
void backward_scale(const Backward<T>& b, int64_t n, int64_t first, int64_t last) {
  using V = Vec<T>;
  const int64_t base = n * b.shape.channels * b.shape.pixels;
  const int64_t unit = b.shape.channels_last ? b.shape.channels : b.shape.pixels;
  const T *grad_y = b.grad_y + base, *y = b.y ? b.y + base : nullptr;
  const auto *gates = b.saved.gates(n),
             *grad_means = static_cast<const Accumulator<T>*>(b.grad_means) + n * b.shape.channels;
  // Both gradients of a few units at a time: grad_y and y are read from memory once.
  const int64_t step = b.grad_x && b.grad_residual ? 1 + kStagingBytes / int64_t(unit * sizeof(T) + 1) : last - first;
  for (int64_t end = last; end > first; end -= step) {
    const int64_t begin = end - step > first ? end - step : first;
    if (b.grad_x && y)
      map_units(
          b.shape, begin, end, b.grad_x + base, b.stream,
          [=](int64_t i, auto read, V gate, V grad_mean) {
            return fma(relu_gradient(read(grad_y + i), read(y + i)), gate, grad_mean);
          },
          gates, grad_means);
    else if (b.grad_x)
      map_units(
          b.shape, begin, end, b.grad_x + base, b.stream,
          [=](int64_t i, auto read, V gate, V grad_mean) { return fma(read(grad_y + i), gate, grad_mean); }, gates,
          grad_means);
    if (b.grad_residual)
      map_units(b.shape, begin, end, b.grad_residual + base, b.stream,
                [=](int64_t i, auto read) { return relu_gradient(read(grad_y + i), read(y + i)); });
  }
  if (b.stream) stream_fence();
}

// Samples in order, whatever the number of threads:
// grad_expand_weight[c, r] = sum_n grad_logits[n, c] hidden[n, r]      grad_expand_bias[c] = sum_n grad_logits[n, c]
// grad_reduce_weight[r, c] = sum_n grad_hidden[n, r] means[n, c]       grad_reduce_bias[r] = sum_n grad_hidden[n, r]
template <class T>
void backward_weights(const Backward<T>& b) {
  using A = Accumulator<T>;
  const int64_t samples = b.shape.samples, channels = b.shape.channels, hidden = b.shape.hidden;
  const A one = 1;
  const Matrix<const A> means{b.saved.means(0), b.saved.columns()};
  const Matrix<const A> inputs = b.single_layer ? means : Matrix<const A>{b.hidden, hidden};
  const int64_t columns = b.single_layer ? channels : hidden;
  weighted_rows<T, A, A>({b.grad_expand_weight, columns}, {b.grad_logits, 1, channels}, inputs, channels, samples, 0,
                         columns);
  if (b.grad_expand_bias)
    weighted_rows<T, A, A>({b.grad_expand_bias, 0}, {&one, 0, 0}, {b.grad_logits, channels}, 1, samples, 0, channels);
  if (b.single_layer) return;
  weighted_rows<T, A, A>({b.grad_reduce_weight, channels}, {b.grad_hidden, 1, hidden}, means, hidden, samples, 0,
                         channels);
  if (b.grad_reduce_bias)
    weighted_rows<T, A, A>({b.grad_reduce_bias, 0}, {&one, 0, 0}, {b.grad_hidden, hidden}, 1, samples, 0, hidden);
}

template <class T>
inline constexpr Kernels<T> kKernels = {
    pool<T>,          prologue_pool<T>,   reduce<T>,          expand<T>,         scale<T>,           backward_pool<T>,
    backward_gate<T>, backward_expand<T>, backward_reduce<T>, backward_scale<T>, backward_weights<T>};

}  // namespace
}  // namespace attnkernels::squeeze_excite::SIMD_LEVEL
