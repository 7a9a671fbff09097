// Lines of a feature map to and from matrices [pixel][channel] in scratch memory; included once per level.
namespace attnkernels::criss_cross::SIMD_LEVEL {
namespace {

using namespace simd::SIMD_LEVEL;

SIMD_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

// A map [pixel][channel], or some channels of it from `data` on.
template <class T>
struct Map {
  T* data;
  int64_t channels;
};

// For a product that is written, not added.
template <class T>
inline constexpr const T* no_scale = nullptr;

// to[i][c] = map[pixel i of the line][channel + c] for c < count
template <class T>
void load_line(const LineMatrix<Accumulator<T>>& to, Map<const T> map, int64_t channel, int64_t count, const Pass& pass,
               int64_t start) {
  constexpr int64_t kAhead = 4;  // pixels: 8 KiB of a map of 512 floats. The processor does not see them coming
  const T* from = map.data + start * map.channels + channel;
  const int64_t step = pass.lines.step * map.channels, length = pass.lines.length;
  for (int64_t i = 0; i < length; ++i) {
    if (i + kAhead < length) {
      const char* ahead = reinterpret_cast<const char*>(from + (i + kAhead) * step);
      // One cache line more: the channels start anywhere in one.
      for (int64_t at = 0; at < count * int64_t(sizeof(T)) + 63; at += 64) __builtin_prefetch(ahead + at);
    }
    for (int64_t c = 0; c < count; c += kLanes<T>)
      store(to.data + i * to.row + c, load_lanes(from + i * step + c, min_of(count - c, kLanes<T>)));
  }
}

// to[pixel i of the line][channel + c] = from[i][c] (+ scale[i] old[the same]) for c < count; `old` lies as `to` does
// and may be it.
template <class T>
void store_line(Map<T> to, const Accumulator<T>* old, int64_t channel, int64_t count,
                const LineMatrix<Accumulator<T>>& from, const Pass& pass, int64_t start, const Accumulator<T>* scale) {
  for (int64_t i = 0; i < pass.lines.length; ++i) {
    const int64_t pixel = (start + i * pass.lines.step) * to.channels + channel;
    const Vec<T> factor = broadcast<T>(scale ? scale[i] : 0);
    for (int64_t c = 0; c < count; c += kLanes<T>) {
      const int64_t at = pixel + c, lanes = min_of(count - c, kLanes<T>);
      const Vec<T> sum = load(from.data + i * from.row + c);
      store_lanes(to.data + at, scale ? fma(load_lanes(old + at, lanes), factor, sum) : sum, lanes);
    }
  }
}

// The same channels of the line after this one.
template <class T>
SIMD_INLINE Ahead next_line(Map<const T> map, int64_t count, const Pass& pass, int64_t line, int64_t end) {
  if (line + 1 >= end) return {};
  return {reinterpret_cast<const char*>(map.data + pass.start(line + 1) * map.channels),
          pass.lines.step * map.channels * int64_t(sizeof(T)), count * int64_t(sizeof(T)), pass.lines.length};
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
  T* result;
  Accumulator<T>* partial;
  int64_t channels;
};
template <class T>
Sums(T*, Accumulator<T>*, int64_t) -> Sums<T>;  // compilers deduce it for themselves only from clang 17 on

// sums[i][c] = sum_k a(i, k) b[k][c] (+ scale[i] sums[i][c]) for the pixels i and k of a line and the channels from
// `channel` on; written straight from the registers where the sums are of the accumulators' type.
template <class T>
void add_products(const Sums<T>& sums, int64_t channel, int64_t count, LeftFactor<Accumulator<T>> a,
                  const LineMatrix<Accumulator<T>>& b, const Scratch<Accumulator<T>>& scratch, const Pass& pass,
                  int64_t start, const Accumulator<T>* scale, const Ahead& ahead = {}) {
  using acc_t = Accumulator<T>;
  const int64_t length = pass.lines.length, channels = sums.channels;
  if (std::is_same_v<T, acc_t> || !pass.last) {
    const Product<acc_t> to{sums.partial + start * channels + channel, pass.lines.step * channels, scale};
    multiply_in(scratch, length, count, length, a, b.data, b.row, to, ahead);
    return;
  }
  const Product<acc_t> to{scratch.result.data, scratch.result.row, nullptr};
  multiply_in(scratch, length, count, length, a, b.data, b.row, to, ahead);
  store_line(Map<T>{sums.result, channels}, sums.partial, channel, count, scratch.result, pass, start, scale);
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

// to[a][b] = sum_c left[a][c] right[b][c] (+ scale[a] to[a][b]) for the pixels a, b of a line
template <class T>
void line_products(const LineMatrix<T>& to, const LineMatrix<T>& left, const LineMatrix<T>& right, int64_t length,
                   int64_t channels, const Scratch<T>& scratch, const T* scale) {
  // Lines are often a multiple of 16 and one pixel long (65, 97 and 129 pixels of 513, 769 and 1025): a vector for up
  // to a quarter of its lanes costs more than dot products, which take 1/12 of it per column.
  const int64_t rest = length % kLanes<T>, columns = length > rest && rest * 4 <= kLanes<T> ? length - rest : length;
  transpose_into(scratch.transposed, scratch.square, right.data, right.row, columns, channels);
  multiply_in(scratch, length, columns, channels, {left.data, left.row, 1}, scratch.transposed, scratch.square,
              {to.data, to.row, scale});
  for (int64_t b = columns; b < length; ++b) {
    const T* other = right.data + b * right.row;
    for (int64_t a = 0; a < length; ++a) {
      T& result = to.data[a * to.row + b];
      result = dot(left.data + a * left.row, other, channels) + (scale ? scale[a] * result : 0);
    }
  }
}

// grad_query[i] += sum_j grad_energy[i][j] key[j]        grad_key[j] += sum_i grad_energy[i][j] query[i]
// grad_energy is scratch.probability: element [i][j] is at i * query_step + j * key_step. For the arguments of either
// backward.
template <class Arguments, class acc_t>
void query_and_key_gradients(const Arguments& to, const Scratch<acc_t>& scratch, const Pass& pass, int64_t start,
                             int64_t query_step, int64_t key_step) {
  const int64_t channels = to.shape.query_channels;
  const acc_t* scale = pass.first ? nullptr : scratch.ones;
  const acc_t* grad_energy = scratch.probability.data;
  if (to.grad_query)
    add_products(Sums{to.grad_query, to.partial_grad_query, channels}, 0, channels, {grad_energy, query_step, key_step},
                 scratch.key, scratch, pass, start, scale);
  if (to.grad_key)
    add_products(Sums{to.grad_key, to.partial_grad_key, channels}, 0, channels, {grad_energy, key_step, query_step},
                 scratch.query, scratch, pass, start, scale);
}

// to[j][i] = from[i][j] for i < rows and begin <= j < end, of `columns`
template <class T>
void transpose_columns(T* to, const T* from, int64_t rows, int64_t columns, int64_t begin, int64_t end) {
  constexpr int64_t kStep = kLanes<T>;
  for (int64_t i = 0; i < rows; i += kStep) {
    const int64_t height = min_of(rows - i, kStep);
    for (int64_t r = i + kStep; r < min_of(i + 2 * kStep, rows); ++r)
      for (int64_t j = begin; j < end; j += 64 / int64_t(sizeof(T))) __builtin_prefetch(from + r * columns + j);
    for (int64_t j = begin; j < end; j += kStep) {
      const int64_t width = min_of(end - j, kStep);
      Vec<T> block[kStep];
      for (int64_t r = 0; r < kStep; ++r)
        block[r] = r < height ? load_lanes(from + (i + r) * columns + j, width) : Vec<T>{};
      transpose_vectors<kStep / 2>(block);
      for (int64_t c = 0; c < width; ++c) store_lanes(to + (j + c) * rows + i, block[c], height);
    }
  }
}

}  // namespace
}  // namespace attnkernels::criss_cross::SIMD_LEVEL
