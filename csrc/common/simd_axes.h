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
  // Where no term is NaN, which the sum would be too, two reductions after each other are less than those of all three.
  SIMD_INLINE void fold() {
    const Accumulator<T> sum = reduce_add(field[0]);
    if (sum != sum) return fold_halves<kLanes<T> / 2>();
    const V largest = broadcast<T>(reduce_max(field[1]));
    if constexpr (kShare)
      field[2] = broadcast<T>(reduce_add(field[1] == largest ? field[2] : V{}));
    else
      field[2] = broadcast<T>(reduce_min(field[1] == largest ? field[2] : V{} + Accumulator<T>(__builtin_inf())));
    field[0] = broadcast<T>(sum);
    field[1] = largest;
  }
  template <int kBy>
  SIMD_INLINE void fold_halves() {
    join({{rotated<kBy>(field[0]), rotated<kBy>(field[1]), rotated<kBy>(field[2])}});
    if constexpr (kBy > 1) fold_halves<kBy / 2>();
  }
};

// The maximum without a mark.
template <class T>
struct SumAndUnmarkedMaximumOf {
  using V = Vec<T>;
  static constexpr int kFields = 2;
  V field[2];
  SIMD_INLINE static SumAndUnmarkedMaximumOf start(V) { return {{V{}, V{} - Accumulator<T>(__builtin_inf())}}; }
  SIMD_INLINE void add(V term, V) {
    field[0] += term;
    field[1] = beats(term, field[1]) ? term : field[1];
  }
  SIMD_INLINE void join(const SumAndUnmarkedMaximumOf& other) {
    field[0] += other.field[0];
    field[1] = beats(other.field[1], field[1]) ? other.field[1] : field[1];
  }
  SIMD_INLINE void fold() {
    const Accumulator<T> sum = reduce_add(field[0]);
    if (sum != sum) {  // a NaN among the terms, or infinities of both signs
      for (int64_t i = 1; i < kLanes<T>; ++i)
        if (field[1][0] == field[1][0] && !(field[1][i] <= field[1][0])) field[1][0] = field[1][i];
      field[1] = broadcast<T>(field[1][0]);
    } else {
      field[1] = broadcast<T>(reduce_max(field[1]));
    }
    field[0] = broadcast<T>(sum);
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

// Functions, and not a part of every loop: they run once for many elements.

// No term so far; the next one is of this row.
template <class Reducer, class A>
[[gnu::noinline]] void start_fields(const Fields<A>& to, int64_t count, A row) {
  for_vectors<A>(count, [&](int64_t i, auto read)
                            SIMD_INLINE_LAMBDA { store_fields(to, i, Reducer::start(broadcast<A>(row)), read); });
}

// into[begin + i] of the rows before, if any, and from[i] of those after them
template <class Reducer, class A>
[[gnu::noinline]] void join_fields(const Fields<A>& into, int64_t begin, const Fields<A>& from, int64_t count,
                                   bool any) {
  for_vectors<A>(count, [&](int64_t i, auto read) SIMD_INLINE_LAMBDA {
    Reducer sum = load_fields<Reducer>(any ? into : from, any ? begin + i : i, read);
    if (any) sum.join(load_fields<Reducer>(from, i, read));
    store_fields(into, begin + i, sum, read);
  });
}

// The same of a row, whose terms are in the lanes of two.
template <class Reducer, class A>
[[gnu::noinline]] void join_lanes(const Fields<A>& into, int64_t row, Reducer even, const Reducer& odd, bool any) {
  even.join(odd);
  even.fold();
  if (any) {
    Reducer before;
    for (int f = 0; f < Reducer::kFields; ++f) before.field[f] = broadcast<A>(into.at[f][row]);
    before.join(even);
    even = before;
  }
  for (int f = 0; f < Reducer::kFields; ++f) into.at[f][row] = even.field[f][0];
}

template <class A>
void join_axes(Reduction kind, const Fields<A>& into, const Fields<A>& from, int64_t count) {
  if (kind == Reduction::kSum) return join_fields<SumOf<A>>(into, 0, from, count, true);
  if (kind == Reduction::kFirstMaximum) return join_fields<SumAndMaximumOf<A, false>>(into, 0, from, count, true);
  if (kind == Reduction::kSharedMaximum) return join_fields<SumAndMaximumOf<A, true>>(into, 0, from, count, true);
  if (kind == Reduction::kMaximum) return join_fields<SumAndUnmarkedMaximumOf<A>>(into, 0, from, count, true);
}

// ---- the loop

inline constexpr int64_t kPieceBytes = 8 * 1024;  // of each number of the columns: three of them are half of an L1
inline constexpr int64_t kRowsAtATime = 64;       // rounding errors grow with these and with rows / these

// Row by row, as columns_reduce, in pieces that have so few columns that their numbers stay in L1.
template <bool kChannelsLast, class T, class Row, class Column, class Step, class... Operands>
SIMD_INLINE void reduce_rows_of(int64_t length, int64_t first, int64_t last, const Fields<Accumulator<T>>& rows,
                                const Fields<Accumulator<T>>& columns, bool more, Step step, Operands... operands) {
  using A = Accumulator<T>;
  using V = Vec<T>;
  constexpr int64_t kStep = kLanes<T>, kMost = kPieceBytes / sizeof(A);
  alignas(64) A numbers[Column::kFields + !Column::kFields][Column::kFields ? kMost : 1];
  Fields<A> partial = {};
  for (int f = 0; f < Column::kFields; ++f) partial.at[f] = numbers[f];
  // Two chains of terms: the second starts while the latency of the first passes.
  const auto reduce_piece = [&](int64_t row, int64_t begin, int64_t count) SIMD_INLINE_LAMBDA {
    const auto visit = [&, ... from = operands.template at<kChannelsLast>(row, begin)](Row& of_row, V place, int64_t j,
                                                                                       auto read) SIMD_INLINE_LAMBDA {
      Column of_column = load_fields<Column>(partial, j, read);
      const Cursor<Row, V, decltype(read)> to_row{of_row, place, read};
      const Cursor<Column, V, decltype(read)> to_column{of_column, broadcast<A>(A(row)), read};
      if constexpr (kChannelsLast)
        step(to_column, to_row, from(j, read)...);
      else
        step(to_row, to_column, from(j, read)...);
      store_fields(partial, j, of_column, read);
    };
    V place = lane_numbers<V>() + A(begin);
    Row even = Row::start(place), odd = Row::start(place + A(kStep));
    int64_t j = 0;
    for (; j + 2 * kStep <= count; j += 2 * kStep, place += A(2 * kStep)) {
      visit(even, place, j, ReadAll{});
      visit(odd, place + A(kStep), j + kStep, ReadAll{});
    }
    for (; j < count; j += kStep, place += A(kStep))
      visit(even, place, j, ReadPartial{count - j < kStep ? count - j : kStep});
    if constexpr (Row::kFields > 0) join_lanes(rows, row, Row(even), Row(odd), begin > 0);
  };
  // Equal pieces of whole cache lines.
  const int64_t pieces = (length + kMost - 1) / kMost;
  const int64_t piece = pieces == 1 ? length : ((length + pieces - 1) / pieces + 31) / 32 * 32;
  const auto count_from = [&](int64_t begin) { return length - begin < piece ? length - begin : piece; };
  if constexpr (Column::kFields > 0) {
    for (int64_t begin = 0; begin < length; begin += piece) {
      const int64_t count = count_from(begin);
      for (int64_t block = first; block < last; block += kRowsAtATime) {
        const int64_t block_end = last - block < kRowsAtATime ? last : block + kRowsAtATime;
        start_fields<Column>(partial, count, A(block));
        for (int64_t row = block; row < block_end; ++row) reduce_piece(row, begin, count);
        join_fields<Column>(columns, begin, partial, count, more || block > first);
      }
    }
  } else {
    for (int64_t row = first; row < last; ++row)
      for (int64_t begin = 0; begin < length; begin += piece) reduce_piece(row, begin, count_from(begin));
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
