// Reductions of maps over their pixels and over their channels in one pass; no include guard: the kernels of an op
// include it after simd_gate.h, whose operands it takes, and after cpu_axes.h.
//
//   reduce_rows<SumOf<T>, SumOf<T>>(shape, first, last, channels, pixels, [](auto& channel, auto& pixel, V x) {
//     channel(x), pixel(x);
//   }, dense_rows(shape, x, n))
namespace attnkernels::simd::SIMD_LEVEL {
namespace {

// ---- operands

// Coefficients [H W]: the lanes are pixels, or all of one pixel.
template <class A>
struct PerPixel {
  const A* coefficients;
  template <bool kChannelsLast>
  SIMD_INLINE auto at(int64_t row, int64_t offset) const {
    if constexpr (kChannelsLast)
      return Same<A>{broadcast<A>(coefficients[row])};
    else
      return Along<const A>{coefficients + offset};
  }
};

// The numbers of the lanes, counted from the start of the row.
template <class A>
struct Counting {
  int64_t from;
  template <class Read>
  SIMD_INLINE Vec<A> operator()(int64_t j, Read) const {
    return lane_numbers<Vec<A>>() + A(from + j);
  }
};

// An element's channel or, kOfPixels, its pixel.
template <class A, bool kOfPixels>
struct Place {
  template <bool kChannelsLast>
  SIMD_INLINE auto at(int64_t row, int64_t offset) const {
    if constexpr (kChannelsLast == kOfPixels)
      return Same<A>{broadcast<A>(A(row))};
    else
      return Counting<A>{offset};
  }
};

// ---- reducers: a result in each lane

template <class T>
struct Nothing {
  static constexpr int kFields = 0;
  Vec<T> field[1];
  SIMD_INLINE static Nothing start(Vec<T>) { return {}; }
  SIMD_INLINE void add(Vec<T>, Vec<T>) {}
  SIMD_INLINE void join(const Nothing&) {}
  SIMD_INLINE void fold() {}
};

template <class T>
struct SumOf {
  static constexpr int kFields = 1;
  Vec<T> field[1];
  SIMD_INLINE static SumOf start(Vec<T>) { return {}; }
  SIMD_INLINE void add(Vec<T> term, Vec<T>) { field[0] += term; }
  SIMD_INLINE void join(const SumOf& other) { field[0] += other.field[0]; }
  SIMD_INLINE void fold() { field[0] = broadcast<T>(reduce_add(field[0])); }
};

// The lanes in which x takes the place of the maximum m: where it is greater, or the first NaN.
template <class V>
SIMD_INLINE Integers<V> beats(V x, V m) {
  return (m == m) & ~(x <= m);
}

// With kShare the third number counts the elements that are equal to the maximum, none where that is NaN; without it
// is the place of the first.
template <class T, bool kShare>
struct SumAndMaximumOf {
  using V = Vec<T>;
  static constexpr int kFields = 3;
  V field[3];
  SIMD_INLINE static SumAndMaximumOf start(V place) {
    return {{V{}, V{} - Accumulator<T>(__builtin_inf()), kShare ? V{} : place}};
  }
  SIMD_INLINE void add(V term, V place) {
    const Integers<V> greater = beats(term, field[1]);
    field[0] += term;
    field[1] = greater ? term : field[1];
    if constexpr (kShare) {
      const V count = greater ? V{} : field[2];
      field[2] = term == field[1] ? count + 1 : count;
    } else {
      field[2] = greater ? place : field[2];
    }
  }
  SIMD_INLINE void join(const SumAndMaximumOf& other) {
    const Integers<V> greater = beats(other.field[1], field[1]);
    field[0] += other.field[0];
    if constexpr (kShare) {
      const V count = greater ? V{} : field[2];
      field[1] = greater ? other.field[1] : field[1];
      field[2] = other.field[1] == field[1] ? count + other.field[2] : count;
    } else {
      const Integers<V> other_first = ~beats(field[1], other.field[1]) & (other.field[2] < field[2]);
      field[1] = greater ? other.field[1] : field[1];
      field[2] = greater | other_first ? other.field[2] : field[2];
    }
  }
  template <int kBy = int(kLanes<T>) / 2>
  SIMD_INLINE void fold() {
    join({{rotated<kBy>(field[0]), rotated<kBy>(field[1]), rotated<kBy>(field[2])}});
    if constexpr (kBy > 1) fold<kBy / 2>();
  }
};

// What a formula gives its terms to.
template <class Reducer, class V, class Read>
struct Cursor {
  Reducer& to;
  V place;
  Read read;
  SIMD_INLINE void operator()(V term) const {
    Reducer next = to;
    next.add(term, place);
    for (int i = 0; i < Reducer::kFields; ++i) to.field[i] = read.kept(next.field[i], to.field[i]);
  }
};

template <class Reducer, class A, class Read>
SIMD_INLINE Reducer load_fields(const Fields<A>& from, int64_t i, Read read) {
  Reducer result;
  for (int f = 0; f < Reducer::kFields; ++f) result.field[f] = read(static_cast<const A*>(from.at[f] + i));
  return result;
}
template <class Reducer, class A, class Read>
SIMD_INLINE void store_fields(const Fields<A>& to, int64_t i, const Reducer& from, Read read) {
  for (int f = 0; f < Reducer::kFields; ++f) read.write(to.at[f] + i, from.field[f]);
}

// f(i, read) for the vectors of [0, count)
template <class T, class F>
SIMD_INLINE void for_vectors(int64_t count, F f) {
  constexpr int64_t kStep = kLanes<T>;
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) f(i, ReadAll{});
  if (i < count) f(i, ReadPartial{count - i});
}

// into[i] of the rows before, from[i] of those after them
template <class Reducer, class A>
void join_fields(const Fields<A>& into, const Fields<A>& from, int64_t begin, int64_t end) {
  for_vectors<A>(end - begin, [&](int64_t i, auto read) SIMD_INLINE_LAMBDA {
    Reducer sum = load_fields<Reducer>(into, begin + i, read);
    sum.join(load_fields<Reducer>(from, begin + i, read));
    store_fields(into, begin + i, sum, read);
  });
}

template <class A>
void join_axes(Reduction kind, const Fields<A>& into, const Fields<A>& from, int64_t begin, int64_t end) {
  if (kind == Reduction::kSum) return join_fields<SumOf<A>>(into, from, begin, end);
  if (kind == Reduction::kFirstMaximum) return join_fields<SumAndMaximumOf<A, false>>(into, from, begin, end);
  if (kind == Reduction::kSharedMaximum) return join_fields<SumAndMaximumOf<A, true>>(into, from, begin, end);
}

// ---- the loop

inline constexpr int64_t kColumnBytes = 8 * 1024;  // of the numbers of a column: three of them are half of an L1
inline constexpr int64_t kRowsAtATime = 64;        // rounding errors grow with these and rows / these

// Pieces of the rows that have so few columns that their numbers stay in L1; in each row by row, as columns_reduce.
template <bool kChannelsLast, class T, class Row, class Column, class Step, class... Operands>
SIMD_INLINE void reduce_rows_of(int64_t length, int64_t first, int64_t last, const Fields<Accumulator<T>>& rows,
                                const Fields<Accumulator<T>>& columns, bool more, Step step, Operands... operands) {
  using A = Accumulator<T>;
  using V = Vec<T>;
  constexpr int64_t kStep = kLanes<T>, kMost = Column::kFields ? kColumnBytes / sizeof(A) : 1;
  constexpr int kChains = Row::kFields > 1 || Column::kFields > 1 ? 2 : 4;
  alignas(64) A numbers[Column::kFields + !Column::kFields][kMost];
  Fields<A> partial = {};
  for (int f = 0; f < Column::kFields; ++f) partial.at[f] = numbers[f];
  // Equal pieces of whole cache lines.
  const int64_t pieces = Column::kFields ? (length + kMost - 1) / kMost : 1;
  const int64_t piece = pieces == 1 ? length : ((length + pieces - 1) / pieces + 31) / 32 * 32;
  for (int64_t begin = 0; begin < length; begin += piece) {
    const int64_t count = length - begin < piece ? length - begin : piece;
    for (int64_t block = first; block < last; block += kRowsAtATime) {
      const int64_t block_end = last - block < kRowsAtATime ? last : block + kRowsAtATime;
      if constexpr (Column::kFields > 0)
        for_vectors<A>(count, [&](int64_t j, auto read) SIMD_INLINE_LAMBDA {
          store_fields(partial, j, Column::start(broadcast<A>(A(block))), read);
        });
      for (int64_t row = block; row < block_end; ++row) {
        const auto visit = [&, row_place = broadcast<A>(A(row)),
                            ... from = operands.template at<kChannelsLast>(row, begin)](Row& of_row, int64_t j,
                                                                                        auto read) SIMD_INLINE_LAMBDA {
          Column of_column = load_fields<Column>(partial, j, read);
          const Cursor<Row, V, decltype(read)> to_row{of_row, lane_numbers<V>() + A(begin + j), read};
          const Cursor<Column, V, decltype(read)> to_column{of_column, row_place, read};
          if constexpr (kChannelsLast)
            step(to_column, to_row, from(j, read)...);
          else
            step(to_row, to_column, from(j, read)...);
          store_fields(partial, j, of_column, read);
        };
        Row chain[kChains];
        for (int i = 0; i < kChains; ++i) chain[i] = Row::start(lane_numbers<V>() + A(begin + i * kStep));
        int64_t j = 0;
        for (; j + kChains * kStep <= count; j += kChains * kStep)
          for (int i = 0; i < kChains; ++i) visit(chain[i], j + i * kStep, ReadAll{});
        for (; j + kStep <= count; j += kStep) visit(chain[0], j, ReadAll{});
        if (j < count) visit(chain[1], j, ReadPartial{count - j});
        if constexpr (Row::kFields > 0) {
          for (int i = 1; i < kChains; ++i) chain[0].join(chain[i]);
          chain[0].fold();
          if (begin > 0) {
            Row before;
            for (int f = 0; f < Row::kFields; ++f) before.field[f] = broadcast<A>(rows.at[f][row]);
            before.join(chain[0]);
            chain[0] = before;
          }
          for (int f = 0; f < Row::kFields; ++f) rows.at[f][row] = chain[0].field[f][0];
        }
      }
      if constexpr (Column::kFields > 0)
        for_vectors<A>(count, [&](int64_t j, auto read) SIMD_INLINE_LAMBDA {
          Column sum = load_fields<Column>(partial, j, read);
          if (more || block > first) {
            Column before = load_fields<Column>(columns, begin + j, read);
            before.join(sum);
            sum = before;
          }
          store_fields(columns, begin + j, sum, read);
        });
    }
  }
}

// For the elements of the rows [first, last): step(channel, pixel, operands...) gives channel(term) what is to be reduced
// over the pixels, and pixel(term) what is to be reduced over the channels. `more`: added to the results across rows
// that are there already.
template <class OfChannel, class OfPixel, class T, class Step, class... Operands>
SIMD_INLINE void reduce_rows(const MapShape& shape, int64_t first, int64_t last, const Fields<Accumulator<T>>& channels,
                             const Fields<Accumulator<T>>& pixels, bool more, Step step, Operands... operands) {
  if (shape.channels_last)
    reduce_rows_of<true, T, OfPixel, OfChannel>(shape.channels, first, last, pixels, channels, more, step, operands...);
  else
    reduce_rows_of<false, T, OfChannel, OfPixel>(shape.pixels, first, last, channels, pixels, more, step, operands...);
}

}  // namespace
}  // namespace attnkernels::simd::SIMD_LEVEL
