// Criss-cross attention, forward and backward; included once per level. Each kernel takes the lines [begin, end) of a
// pass: a line's channels become matrices in cache, its attention a few small products of them.

namespace attnkernels::criss_cross::SIMD_LEVEL {
namespace {

// to[i] = from[start + i * step] for a line's pixels, and back
template <class T>
SIMD_INLINE void load_statistic(T* to, const T* from, const Lines& lines, int64_t start) {
  for (int64_t i = 0; i < lines.length; ++i) to[i] = from[start + i * lines.step];
}
template <class T>
SIMD_INLINE void store_statistic(T* to, const T* from, const Lines& lines, int64_t start) {
  for (int64_t i = 0; i < lines.length; ++i) to[start + i * lines.step] = from[i];
}

// probability[j][i] = exp(energy[j][i] - m[i]) / l[i], m and l the largest energy and the sum of the exponentials of
// this line and all before; old_scale[i] is what the average of the passes before is worth in the new one.
template <class T>
void line_softmax(const Scratch<T>& scratch, const Pass& pass) {
  const int64_t length = pass.lines.length, row = scratch.square;
  T* energy = scratch.probability.data;
  T *largest = scratch.statistic, *sums = scratch.other_statistic, *old_scale = scratch.old_scale;
  const T infinity = T(__builtin_inf());
  if (pass.lines.skips_itself)
    for (int64_t i = 0; i < length; ++i) energy[i * row + i] = -infinity;
  for (int64_t i = 0; i < length; i += kLanes<T>) {
    const Vec<T> old_largest = pass.first ? broadcast<T>(-infinity) : load(largest + i);
    Vec<T> m = old_largest;  // a NaN is passed over here and comes back with the exponentials
    for (int64_t j = 0; j < length; ++j) m = max(load(energy + j * row + i), m);
    store(largest + i, m);
    // Energies may all be -inf so far, which is nothing yet; at the end it is 0 / 0.
    const Vec<T> shift = pass.last ? m : m == -infinity ? Vec<T>{} : m;
    Vec<T> sum{};
    for (int64_t j = 0; j < length; ++j) {
      const Vec<T> p = exp(load(energy + j * row + i) - shift);
      store(energy + j * row + i, p);
      sum += p;
    }
    const Vec<T> old_sum = pass.first ? Vec<T>{} : load(sums + i) * exp(old_largest - shift);
    sum += old_sum;
    store(sums + i, sum);
    const Vec<T> inverse = sum == 0 ? Vec<T>{} : 1 / sum;
    store(old_scale + i, old_sum * inverse);
    for (int64_t j = 0; j < length; ++j) store(energy + j * row + i, load(energy + j * row + i) * inverse);
  }
}

// out[i] = old_scale[i] out[i] + sum_j probability[j][i] value[j]        the average over the keys so far
template <class T>
void attention_forward(const AttentionForward<T, Accumulator<T>>& arguments, const Pass& pass,
                       const Scratch<Accumulator<T>>& scratch, int64_t begin, int64_t end) {
  using acc_t = Accumulator<T>;
  const int64_t length = pass.lines.length;
  const int64_t query_channels = arguments.shape.query_channels, value_channels = arguments.shape.value_channels;
  const Map<const T> query{arguments.query, query_channels}, key{arguments.key, query_channels},
      value{arguments.value, value_channels};
  for (int64_t line = begin; line < end; ++line) {
    const int64_t start = pass.start(line);
    load_line(scratch.query, query, 0, query_channels, pass, start);
    load_line(scratch.key, key, 0, query_channels, pass, start);
    if (!pass.first) {
      load_statistic(scratch.statistic, arguments.log_sum_exp, pass.lines, start);
      load_statistic(scratch.other_statistic, arguments.sum, pass.lines, start);
    }
    line_products(scratch.probability, scratch.key, scratch.query, length, query_channels, scratch, no_scale<acc_t>);
    line_softmax(scratch, pass);
    store_statistic(arguments.log_sum_exp, scratch.statistic, pass.lines, start);
    store_statistic(arguments.sum, scratch.other_statistic, pass.lines, start);
    const LeftFactor<acc_t> probability{scratch.probability.data, 1, scratch.square};
    const acc_t* scale = pass.first ? nullptr : scratch.old_scale;
    for (int64_t c = 0; c < value_channels; c += scratch.slab) {
      const int64_t count = min_of(scratch.slab, value_channels - c);
      load_line(scratch.value, value, c, count, pass, start);
      add_products(Sums{arguments.out, arguments.partial_out, value_channels}, c, count, probability, scratch.value,
                   scratch, pass, start, scale, next_line(value, count, pass, line, end));
    }
  }
}

// delta[p] = sum_c grad_out[p][c] out[p][c] for begin <= p < end
template <class T>
void attention_delta(Accumulator<T>* delta, const T* grad_out, const T* out, int64_t channels, int64_t begin,
                     int64_t end) {
  for (int64_t p = begin; p < end; ++p) {
    Vec<T> sum{};
    for (int64_t c = 0; c < channels; c += kLanes<T>) {
      const int64_t lanes = min_of(channels - c, kLanes<T>), at = p * channels + c;
      sum = fma(load_lanes(grad_out + at, lanes), load_lanes(out + at, lanes), sum);
    }
    delta[p] = reduce_add(sum);
  }
}

// p[j][i] = exp(energy[j][i] - log_sum_exp[i])      grad_value[j] += sum_i p[j][i] grad_out[i]
// grad_energy[j][i] = p[j][i] (sum_c value[j][c] grad_out[i][c] - delta[i])
// grad_query[i] += sum_j grad_energy[j][i] key[j]   grad_key[j] += sum_i grad_energy[j][i] query[i]
template <class T>
void attention_backward(const AttentionBackward<T, Accumulator<T>>& arguments, const Pass& pass,
                        const Scratch<Accumulator<T>>& scratch, int64_t begin, int64_t end) {
  using acc_t = Accumulator<T>;
  const int64_t length = pass.lines.length, row = scratch.square;
  const int64_t query_channels = arguments.shape.query_channels, value_channels = arguments.shape.value_channels;
  const Map<const T> query{arguments.query, query_channels}, key{arguments.key, query_channels},
      value{arguments.value, value_channels}, grad_out{arguments.grad_out, value_channels};
  const bool needs_energies = arguments.grad_query || arguments.grad_key;
  const acc_t* scale = pass.first ? nullptr : scratch.ones;
  acc_t* p = scratch.probability.data;
  const acc_t* grad_p = scratch.grad_probability.data;
  for (int64_t line = begin; line < end; ++line) {
    const int64_t start = pass.start(line);
    load_line(scratch.query, query, 0, query_channels, pass, start);
    load_line(scratch.key, key, 0, query_channels, pass, start);
    load_statistic(scratch.statistic, arguments.log_sum_exp, pass.lines, start);
    line_products(scratch.probability, scratch.key, scratch.query, length, query_channels, scratch, no_scale<acc_t>);
    for (int64_t j = 0; j < length; ++j)
      for (int64_t i = 0; i < length; i += kLanes<T>)
        store(p + j * row + i, exp(load(p + j * row + i) - load(scratch.statistic + i)));
    if (pass.lines.skips_itself)
      for (int64_t i = 0; i < length; ++i) p[i * row + i] = 0;
    int64_t c = 0;
    do {  // once without any channels too, for a grad_probability of zero
      const int64_t count = min_of(scratch.slab, value_channels - c);
      load_line(scratch.grad_out, grad_out, c, count, pass, start);
      if (arguments.grad_value)
        add_products(Sums{arguments.grad_value, arguments.partial_grad_value, value_channels}, c, count, {p, row, 1},
                     scratch.grad_out, scratch, pass, start, scale, next_line(grad_out, count, pass, line, end));
      if (needs_energies) {
        load_line(scratch.value, value, c, count, pass, start);
        line_products(scratch.grad_probability, scratch.value, scratch.grad_out, length, count, scratch,
                      c ? scratch.ones : no_scale<acc_t>);
      }
      c += scratch.slab;
    } while (c < value_channels);
    if (!needs_energies) continue;
    load_statistic(scratch.statistic, arguments.delta, pass.lines, start);
    for (int64_t j = 0; j < length; ++j)
      for (int64_t i = 0; i < length; i += kLanes<T>)
        store(p + j * row + i, load(p + j * row + i) * (load(grad_p + j * row + i) - load(scratch.statistic + i)));
    query_and_key_gradients(arguments, scratch, pass, start, 1, row);
  }
}

}  // namespace
}  // namespace attnkernels::criss_cross::SIMD_LEVEL
