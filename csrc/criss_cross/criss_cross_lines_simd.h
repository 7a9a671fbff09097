// Lines of a feature map to and from matrices [pixel][channel] in scratch memory; included once per level.
namespace attnkernels::criss_cross::SIMD_LEVEL {
namespace {

using namespace simd::SIMD_LEVEL;

SIMD_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

// The feature map of one sample: channels and pixels as they lie in memory, [C][pixels] or, channels_last, [pixels][C].
template <class T>
struct Map {
  T* data;
  int64_t channels, pixels;
  bool channels_last;
};

template <class T>
SIMD_INLINE Map<T> sample_of(T* tensor, const Shape& shape, int64_t channels, const Group& group) {
  return {tensor + group.sample * channels * shape.pixels(), channels, shape.pixels(), shape.channels_last};
}

// For a product that is written, not added.
template <class T>
inline constexpr const T* no_scale = nullptr;

// Fetches [rows][columns] ahead of their use: the processor's own prefetchers do not see the next line of a map coming.
template <class T>
SIMD_INLINE void prefetch(const T* from, int64_t row, int64_t rows, int64_t columns, bool to_write = false) {
  for (int64_t r = 0; r < rows; ++r) {
    const char* bytes = reinterpret_cast<const char*>(from + r * row);
    for (int64_t at = 0; at < columns * int64_t(sizeof(T)) + 63;
         at += 64)  // one more: rows start anywhere in a cache line
      to_write ? __builtin_prefetch(bytes + at, 1) : __builtin_prefetch(bytes + at);
  }
}

// to.line(g)[i][c] = map(channel + c, pixel i of line g) for c < count
template <class T>
void load_lines(const LineMatrices<Accumulator<T>>& to, Map<const T> map, int64_t channel, int64_t count,
                const Pass& pass, const Group& group) {
  const Lines& lines = pass.lines;
  if (map.channels_last) {
    constexpr int64_t kAhead = 4;  // 8 KiB of a map of 512 floats
    const T* from = map.data + group.start * map.channels + channel;
    const int64_t step = lines.step * map.channels;
    for (int64_t i = 0; i < lines.length; ++i) {
      if (i + kAhead < lines.length) prefetch(from + (i + kAhead) * step, 0, 1, count);
      for (int64_t c = 0; c < count; c += kLanes<T>)
        store(to.data + i * to.row + c, load_lanes(from + i * step + c, min_of(count - c, kLanes<T>)));
    }
    return;
  }
  const T* from = map.data + channel * map.pixels + group.start;
  if (lines.step == 1) {
    for (int64_t c = 0; c < count; c += kLanes<T>) {
      const int64_t next = c + kLanes<T>;
      if (next < count) prefetch(from + next * map.pixels, map.pixels, min_of(count - next, kLanes<T>), lines.length);
      transpose_into(to.data + c, to.row, from + c * map.pixels, map.pixels, min_of(count - c, kLanes<T>),
                     lines.length);
    }
  } else {
    for (int64_t i = 0; i < lines.length; ++i) {
      if (i + 1 < lines.length) prefetch(from + (i + 1) * lines.step, map.pixels, count, group.count);
      transpose_into(to.data + i * to.row, to.size, from + i * lines.step, map.pixels, count, group.count);
    }
  }
}

// to(channel + c, pixel i of line g) = from.line(g)[i][c] (+ scale[g][i] old(the same)) for c < count; `old` lies as
// `to` does and may be it, the rows of `scale` are `scale_row` apart.
template <class T>
void store_lines(Map<T> to, const Accumulator<T>* old, int64_t channel, int64_t count,
                 const LineMatrices<Accumulator<T>>& from, const Pass& pass, const Group& group,
                 const Accumulator<T>* scale, int64_t scale_row) {
  const Lines& lines = pass.lines;
  if (to.channels_last) {
    for (int64_t i = 0; i < lines.length; ++i) {
      const int64_t pixel = (group.start + i * lines.step) * to.channels + channel;
      const Vec<T> factor = broadcast<T>(scale ? scale[i] : 0);
      for (int64_t c = 0; c < count; c += kLanes<T>) {
        const int64_t at = pixel + c, lanes = min_of(count - c, kLanes<T>);
        const Vec<T> sum = load(from.data + i * from.row + c);
        store_lanes(to.data + at, scale ? fma(load_lanes(old + at, lanes), factor, sum) : sum, lanes);
      }
    }
    return;
  }
  const int64_t corner = channel * to.pixels + group.start;
  if (lines.step == 1) {
    for (int64_t c = 0; c < count; c += kLanes<T>) {
      const int64_t at = corner + c * to.pixels, next = c + kLanes<T>;
      if (next < count)
        prefetch(to.data + at + kLanes<T> * to.pixels, to.pixels, min_of(count - next, kLanes<T>), lines.length, true);
      transpose_out(to.data + at, old + at, to.pixels, from.data + c, from.row, lines.length,
                    min_of(count - c, kLanes<T>), scale);
    }
    return;
  }
  Accumulator<T> across[Pass::kSideBySide];  // scale[.][i]
  for (int64_t i = 0; i < lines.length; ++i) {
    const int64_t at = corner + i * lines.step;
    if (i + 1 < lines.length) prefetch(to.data + at + lines.step, to.pixels, count, group.count, true);
    for (int64_t g = 0; scale && g < group.count; ++g) across[g] = scale[g * scale_row + i];
    transpose_out(to.data + at, old + at, to.pixels, from.data + i * from.row, from.size, group.count, count,
                  scale ? across : nullptr);
  }
}

// The same channels of the group after this one, where its lines are rows of memory.
template <class T>
SIMD_INLINE Ahead next_lines(const T* tensor, const Shape& shape, int64_t channels, int64_t count, const Pass& pass,
                             int64_t index, int64_t end) {
  if (!shape.channels_last || index + 1 >= end) return {};
  const Group next = pass.group(index + 1);
  const Map<const T> map = sample_of(tensor, shape, channels, next);
  return {reinterpret_cast<const char*>(map.data + next.start * channels),
          pass.lines.step * channels * int64_t(sizeof(T)), count * int64_t(sizeof(T)), pass.lines.length};
}

// multiply, of pairs of bfloat16 where `scratch` has room for them.
template <class T>
SIMD_INLINE void multiply_in(const Scratch<T>& scratch, int64_t rows, int64_t columns, int64_t depth, LeftFactor<T> a,
                             const T* b, int64_t b_row, Product<T> c, const Ahead& ahead = {}) {
#if SIMD_LEVEL_NUMBER == 2
  if constexpr (std::is_same_v<T, float>) {
    if (scratch.left) return multiply_pairs(rows, columns, depth, a, b, b_row, c, scratch.left, scratch.right, ahead);
  }
#endif
  multiply<T>(rows, columns, depth, a, b, b_row, c, ahead);
}

// What the passes over a map add up to: `result`, and until the last pass `partial`, in the accumulators' type.
template <class T>
struct Sums {
  Map<T> result;
  Map<Accumulator<T>> partial;
};

template <class T>
SIMD_INLINE Sums<T> sums_of(T* result, Accumulator<T>* partial, const Shape& shape, int64_t channels,
                            const Group& group) {
  return {sample_of(result, shape, channels, group), sample_of(partial, shape, channels, group)};
}

// sums[i][c] = sum_k a(g)(i, k) b.line(g)[k][c] (+ scale[g][i] sums[i][c]) for the pixels i and k of every line g of
// the group and the channels from `channel` on; written straight from the registers where the sums are
// [pixel][channel].
template <class T, class Left>
void add_products(const Sums<T>& sums, int64_t channel, int64_t count, const Left& a,
                  const LineMatrices<Accumulator<T>>& b, const Scratch<Accumulator<T>>& scratch, const Pass& pass,
                  const Group& group, const Accumulator<T>* scale, int64_t scale_row, const Ahead& ahead = {}) {
  using Sum = Accumulator<T>;
  const int64_t length = pass.lines.length;
  constexpr bool same_type = std::is_same_v<T, Sum>;
  if (sums.partial.channels_last && (same_type || !pass.last)) {  // a group of one line
    const int64_t channels = sums.partial.channels;
    const Product<Sum> to{sums.partial.data + group.start * channels + channel, pass.lines.step * channels, scale};
    multiply_in(scratch, length, count, length, a(0), b.line(0), b.row, to, ahead);
    return;
  }
  for (int64_t g = 0; g < group.count; ++g)
    multiply_in(scratch, length, count, length, a(g), b.line(g), b.row,
                Product<Sum>{scratch.result.line(g), scratch.result.row, nullptr});
  if (same_type || pass.last) {
    store_lines(sums.result, sums.partial.data, channel, count, scratch.result, pass, group, scale, scale_row);
  } else {
    store_lines(sums.partial, sums.partial.data, channel, count, scratch.result, pass, group, scale, scale_row);
  }
}

// sum_c left[c] right[c], both padded to whole vectors with zeros
template <class T>
SIMD_INLINE T dot(const T* left, const T* right, int64_t channels) {
  Vec<T> even{}, odd{};
  int64_t c = 0;
  for (; c + kLanes<T> < channels; c += 2 * kLanes<T>) {
    even = fma(load(left + c), load(right + c), even);
    odd = fma(load(left + c + kLanes<T>), load(right + c + kLanes<T>), odd);
  }
  if (c < channels) even = fma(load(left + c), load(right + c), even);
  return reduce_add(even + odd);
}

// to[a][b] = sum_c left[a][c] right[b][c] (+ scale[a] to[a][b]) for the pixels a, b of line g
template <class T>
void line_products(const LineMatrices<T>& to, const LineMatrices<T>& left, const LineMatrices<T>& right, int64_t g,
                   int64_t length, int64_t channels, const Scratch<T>& scratch, const T* scale) {
  // Lines are often a multiple of 16 and one pixel long (65, 97 and 129 pixels of 513, 769 and 1025): a vector for up
  // to a quarter of its lanes costs more than dot products, which take 1/12 of it per column.
  const int64_t rest = length % kLanes<T>, columns = length > rest && rest * 4 <= kLanes<T> ? length - rest : length;
  transpose_into(scratch.transposed, scratch.square, right.line(g), right.row, columns, channels);
  multiply_in(scratch, length, columns, channels, {left.line(g), left.row, 1}, scratch.transposed, scratch.square,
              {to.line(g), to.row, scale});
  for (int64_t b = columns; b < length; ++b) {
    const T* other = right.line(g) + b * right.row;
    for (int64_t a = 0; a < length; ++a) {
      T& result = to.line(g)[a * to.row + b];
      result = dot(left.line(g) + a * left.row, other, channels) + (scale ? scale[a] * result : 0);
    }
  }
}

// grad_query[i] += sum_j grad_energy(i, j) key[j]        grad_key[j] += sum_i grad_energy(i, j) query[i]
// grad_energy is scratch.probability: element (i, j) of line g is at i * query_step + j * key_step. For the arguments
// of either backward.
template <class Arguments, class Sum>
void query_and_key_gradients(const Arguments& to, const Scratch<Sum>& scratch, const Pass& pass, const Group& group,
                             int64_t query_step, int64_t key_step) {
  const int64_t channels = to.shape.query_channels;
  const Sum* scale = pass.first ? nullptr : scratch.ones;
  if (to.grad_query) {
    const auto grad_energy = [&](int64_t g) {
      return LeftFactor<Sum>{scratch.probability.line(g), query_step, key_step};
    };
    add_products(sums_of(to.grad_query, to.partial_grad_query, to.shape, channels, group), 0, channels, grad_energy,
                 scratch.key, scratch, pass, group, scale, 0);
  }
  if (to.grad_key) {
    const auto grad_energy = [&](int64_t g) {
      return LeftFactor<Sum>{scratch.probability.line(g), key_step, query_step};
    };
    add_products(sums_of(to.grad_key, to.partial_grad_key, to.shape, channels, group), 0, channels, grad_energy,
                 scratch.query, scratch, pass, group, scale, 0);
  }
}

}  // namespace
}  // namespace attnkernels::criss_cross::SIMD_LEVEL
