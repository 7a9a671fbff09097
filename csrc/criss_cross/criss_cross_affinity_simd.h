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

// scratch.probability [query][key] = the affinity's channels of a group's lines, zero for the pixel itself
template <class T>
void load_weights(const Scratch<Accumulator<T>>& scratch, const T* affinity, const Shape& shape, const Pass& pass,
                  const Group& group) {
  using Sum = Accumulator<T>;
  const KeyChannels keys = key_channels(shape, pass);
  load_lines(scratch.probability, sample_of(affinity, shape, shape.affinity_channels(), group), keys.first, keys.count,
             pass, group);
  if (!pass.lines.skips_itself) return;
  for (int64_t g = 0; g < group.count; ++g) {
    for (int64_t i = 0; i <= keys.count; ++i) {
      Sum* row = scratch.probability.line(g) + i * scratch.square;
      __builtin_memmove(row + i + 1, row + i, (keys.count - i) * sizeof(Sum));
      row[i] = 0;
    }
  }
}

template <class T>
void store_weights(T* affinity, const LineMatrices<Accumulator<T>>& weights, const Shape& shape, const Pass& pass,
                   const Group& group) {
  using Sum = Accumulator<T>;
  const KeyChannels keys = key_channels(shape, pass);
  for (int64_t g = 0; pass.lines.skips_itself && g < group.count; ++g) {
    for (int64_t i = 0; i <= keys.count; ++i) {
      Sum* row = weights.line(g) + i * weights.row;
      __builtin_memmove(row + i, row + i + 1, (keys.count - i) * sizeof(Sum));
    }
  }
  store_lines(sample_of(affinity, shape, shape.affinity_channels(), group), no_scale<Sum>, keys.first, keys.count,
              weights, pass, group, no_scale<Sum>, 0);
}

// affinity[i][j] = sum_c query[i][c] key[j][c]
template <class T>
void affinity_forward(const Affinity<T>& arguments, const Pass& pass, const Scratch<Accumulator<T>>& scratch,
                      int64_t begin, int64_t end) {
  const Shape& shape = arguments.shape;
  const int64_t channels = shape.query_channels;
  for (int64_t index = begin; index < end; ++index) {
    const Group group = pass.group(index);
    load_lines(scratch.query, sample_of(arguments.query, shape, channels, group), 0, channels, pass, group);
    load_lines(scratch.key, sample_of(arguments.key, shape, channels, group), 0, channels, pass, group);
    for (int64_t g = 0; g < group.count; ++g)
      line_products(scratch.probability, scratch.query, scratch.key, g, pass.lines.length, channels, scratch,
                    no_scale<Accumulator<T>>);
    store_weights(arguments.affinity, scratch.probability, shape, pass, group);
  }
}

// grad_query[i] += sum_j grad_affinity[i][j] key[j]        grad_key[j] += sum_i grad_affinity[i][j] query[i]
template <class T>
void affinity_backward(const AffinityBackward<T, Accumulator<T>>& arguments, const Pass& pass,
                       const Scratch<Accumulator<T>>& scratch, int64_t begin, int64_t end) {
  const Shape& shape = arguments.shape;
  const int64_t channels = shape.query_channels;
  for (int64_t index = begin; index < end; ++index) {
    const Group group = pass.group(index);
    load_weights(scratch, arguments.grad_affinity, shape, pass, group);
    if (arguments.grad_query)
      load_lines(scratch.key, sample_of(arguments.key, shape, channels, group), 0, channels, pass, group);
    if (arguments.grad_key)
      load_lines(scratch.query, sample_of(arguments.query, shape, channels, group), 0, channels, pass, group);
    query_and_key_gradients(arguments, scratch, pass, group, scratch.square, 1);
  }
}

// out[i] += sum_j affinity[i][j] value[j]
template <class T>
void aggregate_forward(const Aggregate<T, Accumulator<T>>& arguments, const Pass& pass,
                       const Scratch<Accumulator<T>>& scratch, int64_t begin, int64_t end) {
  using Sum = Accumulator<T>;
  const Shape& shape = arguments.shape;
  const int64_t channels = shape.value_channels;
  const Sum* scale = pass.first ? nullptr : scratch.ones;
  for (int64_t index = begin; index < end; ++index) {
    const Group group = pass.group(index);
    load_weights(scratch, arguments.affinity, shape, pass, group);
    for (int64_t c = 0; c < channels; c += scratch.slab) {
      const int64_t count = min_of(scratch.slab, channels - c);
      load_lines(scratch.value, sample_of(arguments.value, shape, channels, group), c, count, pass, group);
      const auto weights = [&](int64_t g) { return LeftFactor<Sum>{scratch.probability.line(g), scratch.square, 1}; };
      add_products(sums_of(arguments.out, arguments.partial_out, shape, channels, group), c, count, weights,
                   scratch.value, scratch, pass, group, scale, 0);
    }
  }
}

// grad_affinity[i][j] = sum_c grad_out[i][c] value[j][c]        grad_value[j] += sum_i affinity[i][j] grad_out[i]
template <class T>
void aggregate_backward(const AggregateBackward<T, Accumulator<T>>& arguments, const Pass& pass,
                        const Scratch<Accumulator<T>>& scratch, int64_t begin, int64_t end) {
  using Sum = Accumulator<T>;
  const Shape& shape = arguments.shape;
  const int64_t channels = shape.value_channels, length = pass.lines.length;
  const Sum* scale = pass.first ? nullptr : scratch.ones;
  for (int64_t index = begin; index < end; ++index) {
    const Group group = pass.group(index);
    if (arguments.grad_value) load_weights(scratch, arguments.affinity, shape, pass, group);
    int64_t c = 0;
    do {  // once without any channels too, for a grad_affinity of zero
      const int64_t count = min_of(scratch.slab, channels - c);
      load_lines(scratch.grad_out, sample_of(arguments.grad_out, shape, channels, group), c, count, pass, group);
      if (arguments.grad_value) {
        const auto weights = [&](int64_t g) { return LeftFactor<Sum>{scratch.probability.line(g), 1, scratch.square}; };
        add_products(sums_of(arguments.grad_value, arguments.partial_grad_value, shape, channels, group), c, count,
                     weights, scratch.grad_out, scratch, pass, group, scale, 0);
      }
      if (arguments.grad_affinity) {
        load_lines(scratch.value, sample_of(arguments.value, shape, channels, group), c, count, pass, group);
        for (int64_t g = 0; g < group.count; ++g)
          line_products<Sum>(scratch.grad_probability, scratch.grad_out, scratch.value, g, length, count, scratch,
                             c ? scratch.ones : nullptr);
      }
      c += scratch.slab;
    } while (c < channels);
    if (arguments.grad_affinity) store_weights(arguments.grad_affinity, scratch.grad_probability, shape, pass, group);
  }
}

}  // namespace
}  // namespace attnkernels::criss_cross::SIMD_LEVEL
