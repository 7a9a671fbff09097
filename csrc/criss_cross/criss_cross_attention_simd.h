// Criss-cross attention, forward and backward; included once per level. Each kernel takes the groups of lines
// [begin, end) of a pass: a line's channels become matrices in cache, its attention a few small products of them.

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
void line_softmax(const Scratch<T>& scratch, int64_t g, const Pass& pass) {
  const int64_t length = pass.lines.length, row = scratch.square;
  T* energy = scratch.probability.line(g);
  T *largest = scratch.statistic, *sums = scratch.other_statistic, *old_scale = scratch.old_scale + g * row;
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
  using Sum = Accumulator<T>;
  const Shape& shape = arguments.shape;
  const int64_t length = pass.lines.length, channels = shape.query_channels;
  for (int64_t index = begin; index < end; ++index) {
    const Group group = pass.group(index);
    load_lines(scratch.query, sample_of(arguments.query, shape, channels, group), 0, channels, pass, group);
    load_lines(scratch.key, sample_of(arguments.key, shape, channels, group), 0, channels, pass, group);
    for (int64_t g = 0; g < group.count; ++g) {
      const int64_t start = group.sample * shape.pixels() + group.start + g;
      if (!pass.first) {
        load_statistic(scratch.statistic, arguments.log_sum_exp, pass.lines, start);
        load_statistic(scratch.other_statistic, arguments.sum, pass.lines, start);
      }
      line_products(scratch.probability, scratch.key, scratch.query, g, length, channels, scratch, no_scale<Sum>);
      line_softmax(scratch, g, pass);
      store_statistic(arguments.log_sum_exp, scratch.statistic, pass.lines, start);
      store_statistic(arguments.sum, scratch.other_statistic, pass.lines, start);
    }
    const Sum* scale = pass.first ? nullptr : scratch.old_scale;
    for (int64_t c = 0; c < shape.value_channels; c += scratch.slab) {
      const int64_t count = min_of(scratch.slab, shape.value_channels - c);
      load_lines(scratch.value, sample_of(arguments.value, shape, shape.value_channels, group), c, count, pass, group);
      const auto weights = [&](int64_t g) { return LeftFactor<Sum>{scratch.probability.line(g), 1, scratch.square}; };
      add_products(sums_of(arguments.out, arguments.partial_out, shape, shape.value_channels, group), c, count, weights,
                   scratch.value, scratch, pass, group, scale, scratch.square,
                   next_lines(arguments.value, shape, shape.value_channels, count, pass, index, end));
    }
  }
}

// delta = sum_c grad_out[c] out[c] of the pixels [begin, end), counted over all samples
template <class T>
void attention_delta(const AttentionBackward<T, Accumulator<T>>& arguments, int64_t begin, int64_t end) {
  const Shape& shape = arguments.shape;
  const int64_t channels = shape.value_channels, pixels = shape.pixels();
  if (shape.channels_last) {
    for (int64_t p = begin; p < end; ++p) {
      const T *grad_out = arguments.grad_out + p * channels, *out = arguments.out + p * channels;
      Vec<T> sum{};
      int64_t c = 0;
      for (; c + kLanes<T> <= channels; c += kLanes<T>) sum = fma(load(grad_out + c), load(out + c), sum);
      if (c < channels) sum = fma(load_partial(grad_out + c, channels - c), load_partial(out + c, channels - c), sum);
      arguments.delta[p] = reduce_add(sum);
    }
    return;
  }
  constexpr int64_t kBlock = 16 * kLanes<T>;  // about 1 KiB of each plane at a time
  for (int64_t p = begin; p < end;) {
    const int64_t sample = p / pixels, count = min_of(kBlock, min_of(end, (sample + 1) * pixels) - p);
    const int64_t offset = p + sample * (channels - 1) * pixels;
    Vec<T> sum[kBlock / kLanes<T>] = {};
    for (int64_t c = 0; c < channels; ++c) {
      const T *grad_out = arguments.grad_out + offset + c * pixels, *out = arguments.out + offset + c * pixels;
      int64_t i = 0;
      for (; i + kLanes<T> <= count; i += kLanes<T>)
        sum[i / kLanes<T>] = fma(load(grad_out + i), load(out + i), sum[i / kLanes<T>]);
      if (i < count)
        sum[i / kLanes<T>] =
            fma(load_partial(grad_out + i, count - i), load_partial(out + i, count - i), sum[i / kLanes<T>]);
    }
    for (int64_t i = 0; i < count; i += kLanes<T>)
      store_partial(arguments.delta + p + i, sum[i / kLanes<T>], min_of(kLanes<T>, count - i));
    p += count;
  }
}

// p[j][i] = exp(energy[j][i] - log_sum_exp[i])      grad_value[j] += sum_i p[j][i] grad_out[i]
// grad_energy[j][i] = p[j][i] (sum_c value[j][c] grad_out[i][c] - delta[i])
// grad_query[i] += sum_j grad_energy[j][i] key[j]   grad_key[j] += sum_i grad_energy[j][i] query[i]
template <class T>
void attention_backward(const AttentionBackward<T, Accumulator<T>>& arguments, const Pass& pass,
                        const Scratch<Accumulator<T>>& scratch, int64_t begin, int64_t end) {
  using Sum = Accumulator<T>;
  const Shape& shape = arguments.shape;
  const int64_t length = pass.lines.length, row = scratch.square;
  const int64_t query_channels = shape.query_channels, value_channels = shape.value_channels;
  const bool needs_energies = arguments.grad_query || arguments.grad_key;
  const Sum* scale = pass.first ? nullptr : scratch.ones;
  for (int64_t index = begin; index < end; ++index) {
    const Group group = pass.group(index);
    load_lines(scratch.query, sample_of(arguments.query, shape, query_channels, group), 0, query_channels, pass, group);
    load_lines(scratch.key, sample_of(arguments.key, shape, query_channels, group), 0, query_channels, pass, group);
    for (int64_t g = 0; g < group.count; ++g) {
      load_statistic(scratch.statistic, arguments.log_sum_exp, pass.lines,
                     group.sample * shape.pixels() + group.start + g);
      line_products(scratch.probability, scratch.key, scratch.query, g, length, query_channels, scratch, no_scale<Sum>);
      Sum* p = scratch.probability.line(g);
      for (int64_t j = 0; j < length; ++j)
        for (int64_t i = 0; i < length; i += kLanes<T>)
          store(p + j * row + i, exp(load(p + j * row + i) - load(scratch.statistic + i)));
      if (pass.lines.skips_itself)
        for (int64_t i = 0; i < length; ++i) p[i * row + i] = 0;
    }
    int64_t c = 0;
    do {  // once without any channels too, for a grad_probability of zero
      const int64_t count = min_of(scratch.slab, value_channels - c);
      load_lines(scratch.grad_out, sample_of(arguments.grad_out, shape, value_channels, group), c, count, pass, group);
      if (arguments.grad_value) {
        const auto weights = [&](int64_t g) { return LeftFactor<Sum>{scratch.probability.line(g), row, 1}; };
        add_products(sums_of(arguments.grad_value, arguments.partial_grad_value, shape, value_channels, group), c,
                     count, weights, scratch.grad_out, scratch, pass, group, scale, 0,
                     next_lines(arguments.grad_out, shape, value_channels, count, pass, index, end));
      }
      if (needs_energies) {
        load_lines(scratch.value, sample_of(arguments.value, shape, value_channels, group), c, count, pass, group);
        for (int64_t g = 0; g < group.count; ++g)
          line_products<Sum>(scratch.grad_probability, scratch.value, scratch.grad_out, g, length, count, scratch,
                             c ? scratch.ones : nullptr);
      }
      c += scratch.slab;
    } while (c < value_channels);
    if (!needs_energies) continue;
    for (int64_t g = 0; g < group.count; ++g) {
      load_statistic(scratch.statistic, arguments.delta, pass.lines, group.sample * shape.pixels() + group.start + g);
      Sum* p = scratch.probability.line(g);
      const Sum* grad_p = scratch.grad_probability.line(g);
      for (int64_t j = 0; j < length; ++j)
        for (int64_t i = 0; i < length; i += kLanes<T>)
          store(p + j * row + i, load(p + j * row + i) * (load(grad_p + j * row + i) - load(scratch.statistic + i)));
    }
    query_and_key_gradients(arguments, scratch, pass, group, 1, row);
  }
}

}  // namespace
}  // namespace attnkernels::criss_cross::SIMD_LEVEL
