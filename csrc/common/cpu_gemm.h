// Matrix products and transposes of the size of one attention line, on operands in cache; included once per level by
// the kernels that need them, no include guard. A matrix is `rows` rows of `row` elements:
//
//   element [i][j] is data[i * row + j]
namespace attnkernels::simd::SIMD_LEVEL {
namespace {

// A register tile is kTileRows rows of two vectors: as many accumulators as leave registers for two vectors of b and a
// broadcast of a (12 x 2 + 3 of 32 registers, 6 x 2 + 3 of 16).
inline constexpr int kTileRows = SIMD_LEVEL_NUMBER == 2 ? 12 : 6;

SIMD_INLINE int64_t min_lanes(int64_t a, int64_t b) { return a < b ? a : b; }

// The first `lanes` lanes, which are usually all.
template <class T>
SIMD_INLINE Vec<T> load_lanes(const T* from, int64_t lanes) {
  return lanes == kLanes<T> ? load(from) : load_partial(from, lanes);
}
template <class T>
SIMD_INLINE void store_lanes(T* to, Vec<T> v, int64_t lanes) {
  if (lanes == kLanes<T>) {
    store(to, v);
  } else {
    store_partial(to, v, lanes);
  }
}

SIMD_INLINE Uint32 load(const BFloat16Pair* from) { return load_raw<Uint32>(from); }
template <class T>
SIMD_INLINE auto spread(T value) {
  if constexpr (std::is_same_v<T, BFloat16Pair>) {
    return Uint32{} + value.bits;
  } else {
    return broadcast<T>(value);
  }
}

// The left factor in either orientation: element (i, k) is data[i * row + k * column].
template <class T>
struct LeftFactor {
  const T* data;
  int64_t row, column;
};

// The result; where `scale` is given, the product is added to scale[i] times what is there.
template <class T>
struct Product {
  T* data;
  int64_t row;
  const T* scale;
};

// The factors and the result of a register tile.
template <class T>
struct Tile {
  LeftFactor<T> a;
  const T* b;
  int64_t b_row;
  Product<Accumulator<T>> c;
  int64_t depth, last;  // number of products summed; lanes of the last vector that are stored, all are read from b
};

// c[i][j] = sum_k a(i, k) b[k][j] (+ scale[i] c[i][j]) for i < Rows, j in Vectors vectors
template <int Rows, int Vectors, class T>
[[gnu::noinline]] void multiply_tile(const Tile<T>& tile) {
  const T *a = tile.a.data, *b = tile.b;
  const int64_t a_row = tile.a.row, a_column = tile.a.column, b_row = tile.b_row;
  Accumulator<T>* const c = tile.c.data;
  const int64_t c_row = tile.c.row, last = tile.last;
#pragma GCC unroll 12
  for (int i = 0; i < Rows; ++i) {  // the result may be in memory: it arrives while the sums are formed
    __builtin_prefetch(c + i * c_row, 1);
    if (Vectors > 1) __builtin_prefetch(c + i * c_row + kLanes<T>, 1);
  }
  Vec<T> sum[Rows][Vectors] = {};
  for (int64_t k = tile.depth; k > 0; --k) {
    decltype(load(b)) right[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) right[v] = load(b + v * kLanes<T>);
#pragma GCC unroll 12
    for (int i = 0; i < Rows; ++i) {
      const auto left = spread(a[i * a_row]);
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sum[i][v] = fma(left, right[v], sum[i][v]);
    }
    a += a_column;
    b += b_row;
  }
#pragma GCC unroll 12
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      Accumulator<T>* to = c + i * c_row + v * kLanes<T>;
      const int64_t lanes = v + 1 < Vectors ? kLanes<T> : last;
      if (tile.c.scale) sum[i][v] = fma(load_lanes(to, lanes), broadcast<T>(tile.c.scale[i]), sum[i][v]);
      store_lanes(to, sum[i][v], lanes);
    }
  }
}

// A block of memory that will be needed next, fetched into the L2 cache a little with every panel of a product: a core
// that only reads or only computes wastes the other half of the time.
struct Ahead {
  const char* from = nullptr;
  int64_t row = 0, row_bytes = 0, rows = 0;  // bytes between rows and of each

  SIMD_INLINE void fetch(int64_t part, int64_t parts) const {
    const int64_t lines = row_bytes / 64, last = lines * rows * (part + 1) / parts;
    for (int64_t i = lines * rows * part / parts; i < last; ++i)
      __builtin_prefetch(from + i / lines * row + i % lines * 64, 0, 2);
  }
};

// multiply_tile of 1..kTileRows rows
template <int Vectors, class T, int Rows = kTileRows>
SIMD_INLINE void multiply_rows(int64_t rows, const Tile<T>& tile) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return multiply_rows<Vectors, T, Rows - 1>(rows, tile);
  }
  multiply_tile<Rows, Vectors>(tile);
}

// c[i][j] = sum_k a(i, k) b[k][j] (+ scale[i] c[i][j]), i < rows, j < columns, k < depth. Rows of b are read up to a
// whole number of vectors.
template <class T>
void multiply(int64_t rows, int64_t columns, int64_t depth, LeftFactor<T> a, const T* b, int64_t b_row,
              Product<Accumulator<T>> c, const Ahead& ahead = {}) {
  const int64_t blocks = (rows + kTileRows - 1) / kTileRows;  // of nearly equal height: no tile of one row is left over
  const int64_t height = blocks ? rows / blocks : 0, taller = rows - height * blocks;
  Tile<T> tile{a, b, b_row, c, depth, kLanes<T>};
  for (int64_t j = 0; j < columns; j += 2 * kLanes<T>) {
    tile.a.data = a.data;
    tile.b = b + j;
    tile.c.data = c.data + j;
    tile.c.scale = c.scale;
    const int64_t left = columns - j;
    if (ahead.from) ahead.fetch(j / (2 * kLanes<T>), (columns + 2 * kLanes<T> - 1) / (2 * kLanes<T>));
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t count = height + (block < taller);
      if (left > kLanes<T>) {
        tile.last = min_lanes(left - kLanes<T>, kLanes<T>);
        multiply_rows<2>(count, tile);
      } else {
        tile.last = left;
        multiply_rows<1>(count, tile);
      }
      tile.a.data += count * a.row;
      tile.c.data += count * c.row;
      if (c.scale) tile.c.scale += count;
    }
  }
}

#if SIMD_LEVEL_NUMBER == 2

// to[k][j] = (from[2 k][j], from[2 k + 1][j]) for k < depth / 2, in whole vectors; a missing last row is zero.
// `Rounded`: the numbers are not bfloat16 yet.
template <bool Rounded>
SIMD_INLINE void pair_rows(BFloat16Pair* to, int64_t to_row, const float* from, int64_t from_row, int64_t depth,
                           int64_t columns) {
  for (int64_t k = 0; k < depth; k += 2) {
    for (int64_t j = 0; j < columns; j += kLanes<float>) {
      const Float low = load(from + k * from_row + j);
      const Float high = k + 1 < depth ? load(from + (k + 1) * from_row + j) : Float{};
      const Uint32 pairs = Rounded ? widen(from_float(low, BFloat16{})) | widen(from_float(high, BFloat16{})) << 16
                                   : Uint32(low) >> 16 | (Uint32(high) & 0xffff0000u);
      memcpy(to + k / 2 * to_row + j, &pairs, sizeof(pairs));
    }
  }
}

// to[i][k] = (from[i][2 k], from[i][2 k + 1]) for k < depth / 2; a missing last element is zero
SIMD_INLINE void pair_columns(BFloat16Pair* to, int64_t to_row, const float* from, int64_t from_row, int64_t rows,
                              int64_t depth) {
  for (int64_t i = 0; i < rows; ++i) {
    BFloat16* row = reinterpret_cast<BFloat16*>(to + i * to_row);
    for (int64_t k = 0; k < depth; k += kLanes<float>)
      store(row + k, load_lanes(from + i * from_row + k, min_lanes(depth - k, kLanes<float>)));
  }
}

// The row of a matrix of pairs in cache: an odd number of vectors, so that a column of it spreads over all sets.
SIMD_INLINE int64_t pair_row(int64_t columns) {
  return ((columns + kLanes<float> - 1) / kLanes<float> | 1) * kLanes<float>;
}

// multiply with the left factor rounded to bfloat16, either contiguous along the rows or along the sum, and a right one
// that is bfloat16 already: twice as many products per instruction. In `left`, rows x pairs, and `right`, pairs x
// columns, both with rows of pair_row.
inline void multiply_pairs(int64_t rows, int64_t columns, int64_t depth, LeftFactor<float> a, const float* b,
                           int64_t b_row, Product<float> c, BFloat16Pair* left, BFloat16Pair* right,
                           const Ahead& ahead) {
  const int64_t pairs = (depth + 1) / 2, right_row = pair_row(columns);
  pair_rows<false>(right, right_row, b, b_row, depth, columns);
  LeftFactor<BFloat16Pair> factor{left, 1, pair_row(rows)};
  if (a.column == 1) {
    factor = {left, pair_row(pairs), 1};
    pair_columns(left, factor.row, a.data, a.row, rows, depth);
  } else {
    pair_rows<true>(left, factor.column, a.data, a.column, depth, rows);
  }
  multiply<BFloat16Pair>(rows, columns, pairs, factor, right, right_row, c, ahead);
}

#endif

// Swaps the odd blocks of Half lanes of `a` with the even ones of `b`.
template <int Half, class V, int... Lane>
SIMD_INLINE void exchange(V& a, V& b, std::integer_sequence<int, Lane...>) {
  constexpr int lanes = sizeof...(Lane);
  const V even = shuffle<(Lane & Half ? lanes + Lane - Half : Lane)...>(a, b);
  const V odd = shuffle<(Lane & Half ? lanes + Lane : Lane + Half)...>(a, b);
  a = even;
  b = odd;
}

// rows[i][j] <-> rows[j][i], in log2(lanes) rounds
template <int Half, class V, int Lanes>
SIMD_INLINE void transpose_vectors(V (&rows)[Lanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < Lanes; ++i)
    if (!(i & Half)) exchange<Half>(rows[i], rows[i + Half], std::make_integer_sequence<int, Lanes>{});
  if constexpr (Half > 1) transpose_vectors<Half / 2>(rows);
}

// to[j][i] = from[i][j] for i < rows, j < columns, converted; whole vectors are written, zero beyond `rows`
template <class T>
void transpose_into(Accumulator<T>* to, int64_t to_row, const T* from, int64_t from_row, int64_t rows,
                    int64_t columns) {
  constexpr int kStep = kLanes<T>;
  for (int64_t i = 0; i < rows; i += kStep) {
    for (int64_t j = 0; j < columns; j += kStep) {
      const T* corner = from + i * from_row + j;
      const int64_t height = rows - i < kStep ? rows - i : kStep, width = columns - j < kStep ? columns - j : kStep;
      Vec<T> block[kStep];
      if (height == kStep && width == kStep) {
#pragma GCC unroll 16
        for (int r = 0; r < kStep; ++r) block[r] = load(corner + r * from_row);
      } else {
        for (int r = 0; r < kStep; ++r) block[r] = r < height ? load_partial(corner + r * from_row, width) : Vec<T>{};
      }
      transpose_vectors<kStep / 2>(block);
      Accumulator<T>* target = to + j * to_row + i;
      if (width == kStep) {
#pragma GCC unroll 16
        for (int c = 0; c < kStep; ++c) store(target + c * to_row, block[c]);
      } else {
        for (int c = 0; c < width; ++c) store(target + c * to_row, block[c]);
      }
    }
  }
}

}  // namespace
}  // namespace attnkernels::simd::SIMD_LEVEL
