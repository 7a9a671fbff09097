// Loops over rows and columns of one level; included once per level by simd_level.h, no include guard.
//
// A loop body gets `read`, which loads a whole vector or, at the end of a row, a partial one (the other lanes are
// zero):
//   row_reduce<T>(count, [&](Vec<T> sum, int64_t i, auto read) { return fma(read(x + i), read(y + i), sum); })
// read.write(to, v) stores as much, and returns v with zero in the other lanes; read.kept(v, others) is v in the lanes
// that are read.
namespace attnkernels::simd::SIMD_LEVEL {
namespace {

struct ReadAll {
  template <class T>
  SIMD_INLINE Vec<T> operator()(const T* from) const {
    return load(from);
  }
  template <class T>
  SIMD_INLINE Vec<T> write(T* to, Vec<T> v) const {
    store(to, v);
    return v;
  }
  template <class V>
  SIMD_INLINE V kept(V v, V) const {
    return v;
  }
};
struct ReadPartial {
  int64_t count;
  template <class T>
  SIMD_INLINE Vec<T> operator()(const T* from) const {
    return load_partial(from, count);
  }
  template <class T>
  SIMD_INLINE Vec<T> write(T* to, Vec<T> v) const {
    store_partial(to, v, count);
    return first_lanes(v, count);
  }
  template <class V>
  SIMD_INLINE V kept(V v, V others) const {
    return first_lanes(v, count, others);
  }
};

// sum over 0 <= i < count of the terms that `add(sum, i, read)` adds
template <class T, class Add>
SIMD_INLINE Accumulator<T> row_reduce(int64_t count, Add add) {
  constexpr int64_t kStep = kLanes<T>;
  Vec<T> sums[4] = {};  // four chains hide the latency of the addition
  int64_t i = 0;
  for (; i + 4 * kStep <= count; i += 4 * kStep)
    for (int chain = 0; chain < 4; ++chain) sums[chain] = add(sums[chain], i + chain * kStep, ReadAll{});
  for (; i + kStep <= count; i += kStep) sums[0] = add(sums[0], i, ReadAll{});
  if (i < count) sums[1] = add(sums[1], i, ReadPartial{count - i});
  return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// sums[c] += over 0 <= r < rows the terms that `add(sum, r, c, read)` adds
//
// Row by row, in the order of memory: interleaving the rows of one page halves the speed, the prefetchers lose track
// (8 rows at a time 10 GB/s at 128 columns of float, one at a time 19, a plain sum of the same memory 22).
template <class T, class Add>
SIMD_INLINE void columns_reduce(Accumulator<T>* sums, int64_t rows, int64_t columns, Add add) {
  constexpr int64_t kStep = kLanes<T>;
  constexpr int64_t kColumns = 1024, kRows = 64;  // partial sums in L1; rounding errors grow with kRows + rows / kRows
  alignas(64) Accumulator<T> partial[kColumns];
  for (int64_t first = 0; first < columns; first += kColumns) {
    const int64_t count = columns - first < kColumns ? columns - first : kColumns;
    for (int64_t row = 0; row < rows; row += kRows) {
      const int64_t last_row = rows - row < kRows ? rows : row + kRows;
      for (int64_t c = 0; c < count; ++c) partial[c] = 0;
      for (int64_t r = row; r < last_row; ++r) {
        int64_t c = 0;
        for (; c + 4 * kStep <= count; c += 4 * kStep) {
          Vec<T> sum[4];
          for (int i = 0; i < 4; ++i) sum[i] = add(load(partial + c + i * kStep), r, first + c + i * kStep, ReadAll{});
          for (int i = 0; i < 4; ++i) store(partial + c + i * kStep, sum[i]);
        }
        for (; c + kStep <= count; c += kStep) store(partial + c, add(load(partial + c), r, first + c, ReadAll{}));
        if (c < count) {
          const int64_t lanes = count - c;
          store_partial(partial + c, add(load_partial(partial + c, lanes), r, first + c, ReadPartial{lanes}), lanes);
        }
      }
      for (int64_t c = 0; c < count; ++c) sums[first + c] += partial[c];
    }
  }
}

// y[i] = value(i, read) for 0 <= i < count
template <class T, class Value>
SIMD_INLINE void row_map(T* y, int64_t count, Value value) {
  constexpr int64_t kStep = kLanes<T>;
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) store(y + i, value(i, ReadAll{}));
  if (i < count) store_partial(y + i, value(i, ReadPartial{count - i}), count - i);
}

// to[i] = from[i], converted
template <class To, class From>
void convert(To* to, const From* from, int64_t count) {
  row_map(to, count, [=](int64_t i, auto read) { return read(from + i); });
}

// to[i] = the gradient of what gates[i] is the sigmoid of, from the gate's own
template <class A>
void sigmoid_gradients(A* to, const A* grads, const A* gates, int64_t count) {
  row_map(to, count, [=](int64_t i, auto read) { return sigmoid_gradient(read(grads + i), read(gates + i)); });
}

inline constexpr int64_t kChunkBytes = 256 * 1024;  // a quarter of an L2; chunks of 16 KB were 1.3 to 2 times slower
inline constexpr int64_t kStagingBytes = 2 * 1024;  // short bursts: with 8 KB the reads wait for them, 1.7x slower

// y[i] for begin <= i < end, in pieces within one multiple of `period`: piece(index, offset) gives the values
// from i = index * period + offset on as value(j, read). Chunks in reverse order, as what was read last is still in the
// cache; ascending within a chunk, for the prefetcher. `stream`: past the caches; call stream_fence() after.
template <class T, class Piece>
SIMD_INLINE void map_backwards(T* y, int64_t begin, int64_t end, int64_t period, bool stream, Piece piece) {
  constexpr int64_t kChunk = kChunkBytes / sizeof(T), kBlock = kStagingBytes / sizeof(T);
  alignas(64) T staging[kBlock];
  for (int64_t chunk_end = end; chunk_end > begin; chunk_end -= kChunk) {
    const int64_t chunk = chunk_end - begin > kChunk ? chunk_end - kChunk : begin;
    int64_t index = chunk / period, offset = chunk % period;
    for (int64_t block = chunk; block < chunk_end; block += kBlock) {
      const int64_t block_end = chunk_end - block > kBlock ? block + kBlock : chunk_end;
      for (int64_t i = block; i < block_end;) {
        const int64_t count = block_end - i < period - offset ? block_end - i : period - offset;
        row_map(stream ? staging + (i - block) : y + i, count, piece(index, offset));
        i += count;
        offset += count;
        if (offset == period) ++index, offset = 0;
      }
      if (stream) stream_copy(y + block, staging, (block_end - block) * sizeof(T));
    }
  }
}

}  // namespace
}  // namespace attnkernels::simd::SIMD_LEVEL
