// Passes of one level over maps and their gates; no include guard: the kernels of an op include it first, after
// cpu_gate.h. GatePasses<T> says which part each works on.
//
// The loops take a formula of values, and the operands that these are read from:
//   map_rows(shape, begin, end, y, stream, [](V x, V gate) { return x * gate; }, SampleRows{...}, PerChannel{gates})
// operand.at<channels_last>(row, offset) goes to an element of a row, and gives what reads the vector `j` further on.
namespace attnkernels::simd::SIMD_LEVEL {
namespace {

// ---- operands

// An element that a formula reads and writes itself.
template <class T, class Read>
struct Element {
  T* at;
  Read read;
  SIMD_INLINE Vec<T> load() const { return read(static_cast<const T*>(at)); }
  SIMD_INLINE Vec<T> store(Vec<T> v) const { return read.write(at, v); }
};

template <class T>
struct Along {
  T* from;
  template <class Read>
  SIMD_INLINE auto operator()(int64_t j, Read read) const {
    if constexpr (std::is_const_v<T>)
      return read(from + j);
    else
      return Element<T, Read>{from + j, read};
  }
};

template <class A>
struct Same {
  Vec<A> value;
  template <class Read>
  SIMD_INLINE Vec<A> operator()(int64_t, Read) const {
    return value;
  }
};

// The rows of a sample; an Element each where T is not const.
template <class T>
struct SampleRows {
  T* data;
  int64_t stride;
  template <bool kChannelsLast>
  SIMD_INLINE Along<T> at(int64_t row, int64_t offset) const {
    return {data + row * stride + offset};
  }
};

// Sample n of a dense map.
template <class T>
SIMD_INLINE SampleRows<T> dense_rows(const MapShape& shape, T* map, int64_t n) {
  return {map + n * shape.channels * shape.pixels, shape.row_length()};
}

// Coefficients [C]: the lanes are channels, or all of one channel.
template <class A>
struct PerChannel {
  const A* coefficients;
  template <bool kChannelsLast>
  SIMD_INLINE auto at(int64_t row, int64_t offset) const {
    if constexpr (kChannelsLast)
      return Along<const A>{coefficients + offset};
    else
      return Same<A>{broadcast<A>(coefficients[row])};
  }
};

// ---- loops

// Zero where add_rows adds the sums of the rows [first, last).
template <class A>
SIMD_INLINE void clear_sums(const MapShape& shape, int64_t first, int64_t last, A* sums) {
  const int64_t begin = shape.channels_last ? 0 : first, end = shape.channels_last ? shape.channels : last;
  for (int64_t c = begin; c < end; ++c) sums[c] = 0;
}

// sums[c] += sum over the pixels p of what add(sum, operands...) adds for the elements (c, p): in the rows [first, last),
// and of a plane only the elements [begin, end).
template <class T, class Add, class... Operands>
SIMD_INLINE void add_rows(const MapShape& shape, int64_t first, int64_t last, int64_t begin, int64_t end,
                          Accumulator<T>* sums, Add add, Operands... operands) {
  if (shape.channels_last) {
    columns_reduce<T>(sums, last - first, shape.channels, [=](Vec<T> sum, int64_t p, int64_t c, auto read) {
      return add(sum, operands.template at<true>(first + p, c)(0, read)...);
    });
  } else {
    for (int64_t c = first; c < last; ++c)
      sums[c] +=
          row_reduce<T>(end - begin, [=, ... from = operands.template at<false>(c, begin)](
                                         Vec<T> sum, int64_t j, auto read) { return add(sum, from(j, read)...); });
  }
}

// sums[c] = the same over whole rows
template <class T, class Add, class... Operands>
SIMD_INLINE void sum_rows(const MapShape& shape, int64_t first, int64_t last, Accumulator<T>* sums, Add add,
                          Operands... operands) {
  clear_sums(shape, first, last, sums);
  add_rows<T>(shape, first, last, 0, shape.row_length(), sums, add, operands...);
}

template <bool kChannelsLast, class T, class Value, class... Operands>
SIMD_INLINE void map_rows_of(int64_t length, int64_t begin, int64_t end, T* y, bool stream, Value value,
                             Operands... operands) {
  map_backwards(y, begin, end, length, stream, [=](int64_t row, int64_t offset) {
    return [=, ... from = operands.template at<kChannelsLast>(row, offset)](int64_t j, auto read) {
      return value(from(j, read)...);
    };
  });
}

// y[i] = value(operands...) for begin <= i < end, i = row * row_length() + offset
template <class T, class Value, class... Operands>
SIMD_INLINE void map_rows(const MapShape& shape, int64_t begin, int64_t end, T* y, bool stream, Value value,
                          Operands... operands) {
  if (shape.channels_last)
    map_rows_of<true>(shape.channels, begin, end, y, stream, value, operands...);
  else
    map_rows_of<false>(shape.pixels, begin, end, y, stream, value, operands...);
}

// ---- gates

// gates[c] = gate(logits[c]) in place
template <class A>
void apply_gate(Gate kind, A* logits, int64_t count) {
  const bool smooth = kind == Gate::kSigmoid;
  const Vec<A> zero = {}, one = broadcast<A>(1), half = broadcast<A>(0.5), sixth = broadcast<A>(A(1) / 6);
  row_map(logits, count, [=](int64_t i, auto read) {
    const Vec<A> logit = read(logits + i);
    return smooth ? sigmoid(logit) : min(one, max(zero, fma(logit, sixth, half)));
  });
}

// grads[c] = grads[c] gate'(logits[c]) in place
template <class A>
void apply_gate_gradient(Gate kind, A* grads, const A* gates, int64_t count) {
  const bool smooth = kind == Gate::kSigmoid;
  const A sixth = A(1) / 6;
  row_map(grads, count, [=](int64_t i, auto read) {
    const Vec<A> grad = read(grads + i), gate = read(gates + i);
    if (smooth) return sigmoid_gradient(grad, gate);
    return gate > 0 ? (gate < 1 ? grad * sixth : Vec<A>{}) : Vec<A>{};
  });
}

// ---- forward

// sums[c] = sum_p z[n, c, p] of z = x or, left in the place of x, z = activation(x scale[c] + shift[c])
template <class T>
void pool(const GateForward<T>& f, int64_t n, int64_t first, int64_t last, Accumulator<T>* sums) {
  using V = Vec<T>;
  using A = Accumulator<T>;
  const Prologue<A>& prologue = f.prologue;
  if (!prologue.changes_x())
    return sum_rows<T>(f.shape, first, last, sums, [](V sum, V x) { return sum + x; }, dense_rows(f.shape, f.x, n));
  const auto pool_of = [&](auto activation) {
    const auto x = dense_rows(f.shape, f.y, n);
    if (prologue.scale)
      sum_rows<T>(
          f.shape, first, last, sums,
          [=](V sum, auto x, V scale, V shift) { return sum + x.store(activation(fma(x.load(), scale, shift))); }, x,
          PerChannel<A>{prologue.scale}, PerChannel<A>{prologue.shift});
    else
      sum_rows<T>(f.shape, first, last, sums, [=](V sum, auto x) { return sum + x.store(activation(x.load())); }, x);
  };
  const V zero = {}, one = broadcast<A>(1), half = broadcast<A>(0.5), sixth = broadcast<A>(A(1) / 6);
  switch (prologue.activation) {
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

// y[n, c, p] = output_activation(x[n, c, p] gates[n, c] + residual[n, c, p])
template <class T>
void scale(const GateForward<T>& f, int64_t n, int64_t first, int64_t last) {
  using V = Vec<T>;
  using A = Accumulator<T>;
  const int64_t length = f.shape.row_length();
  const auto x = dense_rows(f.shape, f.x, n);
  const PerChannel<A> gates{f.gates + n * f.columns};
  const auto map = [&](auto value, auto... operands) {
    map_rows(f.shape, first * length, last * length, dense_rows(f.shape, f.y, n).data, f.stream, value, operands...);
  };
  const auto map_with_residual = [&](auto value) { map(value, x, gates, dense_rows(f.shape, f.residual, n)); };
  const bool relu = f.output_activation == OutputActivation::kRelu;
  if (!f.residual && !relu)
    map([](V x, V gate) { return x * gate; }, x, gates);
  else if (!f.residual)
    map([](V x, V gate) { return max(V{}, x * gate); }, x, gates);
  else if (!relu)
    map_with_residual([](V x, V gate, V residual) { return fma(x, gate, residual); });
  else
    map_with_residual([](V x, V gate, V residual) { return max(V{}, fma(x, gate, residual)); });
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
void pool_gradients(const GateBackward<T>& b, int64_t n, int64_t first, int64_t last, Accumulator<T>* sums) {
  using V = Vec<T>;
  const auto grad_y = dense_rows(b.shape, b.grad_y, n), x = dense_rows(b.shape, b.x, n);
  if (b.y)
    sum_rows<T>(
        b.shape, first, last, sums, [](V sum, V grad_y, V x, V y) { return fma(relu_gradient(grad_y, y), x, sum); },
        grad_y, x, dense_rows(b.shape, b.y, n));
  else
    sum_rows<T>(b.shape, first, last, sums, [](V sum, V grad_y, V x) { return fma(grad_y, x, sum); }, grad_y, x);
}

// grad_x[n, c, p] = dz[n, c, p] gates[n, c] + grad_means[n, c],  grad_residual = dz
template <class T>
void scale_gradients(const GateBackward<T>& b, int64_t n, int64_t first, int64_t last) {
  using V = Vec<T>;
  using A = Accumulator<T>;
  const int64_t length = b.shape.row_length();
  const auto grad_y = dense_rows(b.shape, b.grad_y, n);
  const PerChannel<A> gates{b.gates + n * b.columns}, grad_means{b.grad_means + n * b.shape.channels};
  // Both gradients of a few rows at a time: grad_y and y are read from memory once.
  const int64_t step = b.grad_x && b.grad_residual ? 1 + kStagingBytes / int64_t(length * sizeof(T) + 1) : last - first;
  for (int64_t end = last; end > first; end -= step) {
    const int64_t begin = end - step > first ? end - step : first;
    const auto map = [&](T* to, auto value, auto... operands) {
      map_rows(b.shape, begin * length, end * length, dense_rows(b.shape, to, n).data, b.stream, value, operands...);
    };
    const auto y = [&] { return dense_rows(b.shape, b.y, n); };
    if (b.grad_x && b.y)
      map(
          b.grad_x, [](V grad_y, V y, V gate, V grad_mean) { return fma(relu_gradient(grad_y, y), gate, grad_mean); },
          grad_y, y(), gates, grad_means);
    else if (b.grad_x)
      map(
          b.grad_x, [](V grad_y, V gate, V grad_mean) { return fma(grad_y, gate, grad_mean); }, grad_y, gates,
          grad_means);
    if (b.grad_residual) map(b.grad_residual, [](V grad_y, V y) { return relu_gradient(grad_y, y); }, grad_y, y());
  }
  if (b.stream) stream_fence();
}

template <class T>
inline constexpr GatePasses<T> kGatePasses = {pool<T>, scale<T>, pool_gradients<T>, scale_gradients<T>};

}  // namespace
}  // namespace attnkernels::simd::SIMD_LEVEL
