// The affinity and its aggregation as functions of their own, forward and backward; included once per level. A pixel's
// weights for the keys of a line are channels of the affinity: the row's first, then the column's without the pixel
// itself.
namespace attnkernels::criss_cross::SIMD_LEVEL {
namespace {

struct KeyChannels {
  int64_t first, count;
};

SIMD_INLINE KeyChannels key_channels(const Shape& shape, const Pass& pass) {
  return pass.lines.skips_itself ? KeyChannels{shape.width, pass.lines.length - 1} : KeyChannels{0, pass.lines.length};
}

// scratch.probability [query][key] = the affinity's channels of a line, zero for the pixel itself
template <class T>
void load_weights(const Scratch<Accumulator<T>>& scratch, const T* affinity, const Shape& shape, const Pass& pass,
                  int64_t start) {
  using acc_t = Accumulator<T>;
  const KeyChannels keys = key_channels(shape, pass);
  load_line(scratch.probability, Map<const T>{affinity, shape.affinity_channels()}, keys.first, keys.count, pass,
            start);
  if (!pass.lines.skips_itself) return;
  for (int64_t i = 0; i <= keys.count; ++i) {
    acc_t* row = scratch.probability.data + i * scratch.square;
    __builtin_memmove(row + i + 1, row + i, (keys.count - i) * sizeof(acc_t));
    row[i] = 0;
  }
}

template <class T>
void store_weights(T* affinity, const LineMatrix<Accumulator<T>>& weights, const Shape& shape, const Pass& pass,
                   int64_t start) {
  using acc_t = Accumulator<T>;
  const KeyChannels keys = key_channels(shape, pass);
  for (int64_t i = 0; pass.lines.skips_itself && i <= keys.count; ++i) {
    acc_t* row = weights.data + i * weights.row;
    __builtin_memmove(row + i, row + i + 1, (keys.count - i) * sizeof(acc_t));
  }
  store_line(Map<T>{affinity, shape.affinity_channels()}, no_scale<acc_t>, keys.first, keys.count, weights, pass, start,
             no_scale<acc_t>);
}

// affinity[i][j] = sum_c query[i][c] key[j][c]
template <class T>
void affinity_forward(const Affinity<T>& arguments, const Pass& pass, const Scratch<Accumulator<T>>& scratch,
                      int64_t begin, int64_t end) {
  const int64_t channels = arguments.shape.query_channels;
  for (int64_t line = begin; line < end; ++line) {
    const int64_t start = pass.start(line);
    load_line(scratch.query, Map<const T>{arguments.query, channels}, 0, channels, pass, start);
    load_line(scratch.key, Map<const T>{arguments.key, channels}, 0, channels, pass, start);
    line_products(scratch.probability, scratch.query, scratch.key, pass.lines.length, channels, scratch,
                  no_scale<Accumulator<T>>);
    store_weights(arguments.affinity, scratch.probability, arguments.shape, pass, start);
  }
}

// grad_query[i] += sum_j grad_affinity[i][j] key[j]        grad_key[j] += sum_i grad_affinity[i][j] query[i]
template <class T>
void affinity_backward(const AffinityBackward<T, Accumulator<T>>& arguments, const Pass& pass,
                       const Scratch<Accumulator<T>>& scratch, int64_t begin, int64_t end) {
  const int64_t channels = arguments.shape.query_channels;
  for (int64_t line = begin; line < end; ++line) {
    const int64_t start = pass.start(line);
    load_weights(scratch, arguments.grad_affinity, arguments.shape, pass, start);
    if (arguments.grad_query) load_line(scratch.key, Map<const T>{arguments.key, channels}, 0, channels, pass, start);
    if (arguments.grad_key) load_line(scratch.query, Map<const T>{arguments.query, channels}, 0, channels, pass, start);
    query_and_key_gradients(arguments, scratch, pass, start, scratch.square, 1);
  }
}

// out[i] += sum_j affinity[i][j] value[j]
template <class T>
void aggregate_forward(const Aggregate<T, Accumulator<T>>& arguments, const Pass& pass,
                       const Scratch<Accumulator<T>>& scratch, int64_t begin, int64_t end) {
  using acc_t = Accumulator<T>;
  const int64_t channels = arguments.shape.value_channels;
  const acc_t* scale = pass.first ? nullptr : scratch.ones;
  for (int64_t line = begin; line < end; ++line) {
    const int64_t start = pass.start(line);
    load_weights(scratch, arguments.affinity, arguments.shape, pass, start);
    for (int64_t c = 0; c < channels; c += scratch.slab) {
      const int64_t count = min_of(scratch.slab, channels - c);
      load_line(scratch.value, Map<const T>{arguments.value, channels}, c, count, pass, start);
      add_products(Sums{arguments.out, arguments.partial_out, channels}, c, count,
                   {scratch.probability.data, scratch.square, 1}, scratch.value, scratch, pass, start, scale);
    }
  }
}

// grad_affinity[i][j] = sum_c grad_out[i][c] value[j][c]        grad_value[j] += sum_i affinity[i][j] grad_out[i]
template <class T>
void aggregate_backward(const AggregateBackward<T, Accumulator<T>>& arguments, const Pass& pass,
                        const Scratch<Accumulator<T>>& scratch, int64_t begin, int64_t end) {
  using acc_t = Accumulator<T>;
  const int64_t channels = arguments.shape.value_channels, length = pass.lines.length;
  const acc_t* scale = pass.first ? nullptr : scratch.ones;
  for (int64_t line = begin; line < end; ++line) {
    const int64_t start = pass.start(line);
    if (arguments.grad_value) load_weights(scratch, arguments.affinity, arguments.shape, pass, start);
    int64_t c = 0;
    do {  // once without any channels too, for a grad_affinity of zero
      const int64_t count = min_of(scratch.slab, channels - c);
      load_line(scratch.grad_out, Map<const T>{arguments.grad_out, channels}, c, count, pass, start);
      if (arguments.grad_value)
        add_products(Sums{arguments.grad_value, arguments.partial_grad_value, channels}, c, count,
                     {scratch.probability.data, 1, scratch.square}, scratch.grad_out, scratch, pass, start, scale);
      if (arguments.grad_affinity) {
        load_line(scratch.value, Map<const T>{arguments.value, channels}, c, count, pass, start);
        line_products(scratch.grad_probability, scratch.grad_out, scratch.value, length, count, scratch,
                      c ? scratch.ones : no_scale<acc_t>);
      }
      c += scratch.slab;
    } while (c < channels);
    if (arguments.grad_affinity)
      store_weights(arguments.grad_affinity, scratch.grad_probability, arguments.shape, pass, start);
  }
}

}  // namespace
}  // namespace attnkernels::criss_cross::SIMD_LEVEL
