// The kernels of selective_kernel at one instruction-set level; see common/simd.h. Each works on some rows of one
// sample: a row is a plane [H W] of one channel or, channels_last, a pixel [C].
namespace attnkernels::selective_kernel::SIMD_LEVEL {
namespace {

using namespace simd::SIMD_LEVEL;

// Elements of one row taken at a time, so that what several branches share (dy, y) stays in L1 between them.
inline constexpr int64_t kChunk = 512;

// Rows of one output in the order of memory. Where `stream` is set they are gathered in L1 and copied past the caches.
template <class T>
class Writer {
 public:
  explicit Writer(bool stream) : stream_(stream) {}

  // Where to write the next `count` <= kChunk elements of the output at `place`.
  SIMD_INLINE T* reserve(T* place, int64_t count) {
    if (!stream_) return place;
    if (place != output_ + held_ || held_ + count > kHeld) {
      flush();
      output_ = place;
    }
    held_ += count;
    return buffer_ + held_ - count;
  }
  void flush() {
    if (held_ > 0) stream_copy(output_, buffer_, held_ * sizeof(T));
    held_ = 0;
  }
  void finish() {
    flush();
    if (stream_) stream_fence();
  }

 private:
  static constexpr int64_t kHeld =
      4 * kChunk;  // few partial cache lines between flushes; M of these fit in L1 for M = 2
  alignas(64) T buffer_[kHeld];
  T* output_ = nullptr;
  int64_t held_ = 0;
  bool stream_;
};

// sum_i x[i]
template <class T>
SIMD_INLINE Accumulator<T> row_sum(const T* x, int64_t count) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> sum[4] = {};  // independent sums hide the latency of the addition
  int64_t i = 0;
  for (; i + 4 * L <= count; i += 4 * L)
    for (int k = 0; k < 4; ++k) sum[k] += load(x + i + k * L);
  for (; i < count; i += L) sum[0] += load_partial(x + i, count - i < L ? count - i : L);
  return reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// sum_i x[i] y[i], the lanes not yet added up
template <class T>
SIMD_INLINE Vec<T> row_dot(const T* x, const T* y, int64_t count) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * L <= count; i += 4 * L)
    for (int k = 0; k < 4; ++k) sum[k] = fma(load(x + i + k * L), load(y + i + k * L), sum[k]);
  for (; i < count; i += L) {
    const int64_t lanes = count - i < L ? count - i : L;
    sum[0] = fma(load_partial(x + i, lanes), load_partial(y + i, lanes), sum[0]);
  }
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// The pixels whose products are added up before they join a running sum: one load and one store of it for eight pixels,
// and a rounding error that grows with H W / 8.
inline constexpr int kPixels = 8;

// sum[c] += sum_p term(pixel p, c .. c + lanes) over `count` <= kPixels pixels; term is called with constant lanes, or
// with fewer for the last channels.
template <class T, class Term>
SIMD_INLINE void add_pixels(Accumulator<T>* sum, int64_t channels, int count, Term term) {
  constexpr int64_t L = kLanes<T>;
  int64_t c = 0;
  for (; c + L <= channels; c += L) {
    Vec<T> part = term(0, c, L);
    if (count == kPixels) {
      for (int p = 1; p < kPixels; ++p) part += term(p, c, L);
    } else {
      for (int p = 1; p < count; ++p) part += term(p, c, L);
    }
    store(sum + c, load(sum + c) + part);
  }
  if (c < channels) {
    Vec<T> part = {};
    for (int p = 0; p < count; ++p) part += term(p, c, channels - c);
    store_partial(sum + c, load_partial(sum + c, channels - c) + part, channels - c);
  }
}

template <class T>
SIMD_INLINE Vec<T> load_lanes(const T* from, int64_t lanes) {
  return lanes == kLanes<T> ? load(from) : load_partial(from, lanes);
}

// pooled[n, c] = sum_m sum_p U_m[n, c, p] / pixels        channels first .. last of one sample, NCHW
template <class T>
void pool_planes(const Pool<T>& args, int64_t sample, int64_t first, int64_t last) {
  const Shape& shape = args.shape;
  for (int64_t c = first; c < last; ++c) {
    Accumulator<T> sum = 0;
    for (int m = 0; m < shape.branches; ++m) sum += row_sum(args.branches.branch[m].row(sample, c), shape.pixels);
    store_partial(args.pooled + sample * shape.channels + c, broadcast<T>(sum / shape.pixels), 1);
  }
}

// The same for channels_last. scratch [C] holds the sums.
template <class T>
void pool_pixels(const Pool<T>& args, int64_t sample, int64_t first, int64_t last, Accumulator<T>* scratch) {
  const Shape& shape = args.shape;
  const int64_t channels = last - first;
  for (int64_t c = 0; c < channels; ++c) scratch[c] = 0;
  for (int64_t pixel = 0; pixel < shape.pixels; pixel += kPixels) {
    const int count = int(shape.pixels - pixel < kPixels ? shape.pixels - pixel : kPixels);
    for (int m = 0; m < shape.branches; ++m) {
      const T* x = args.branches.branch[m].row(sample, pixel) + first;
      const int64_t stride = args.branches.branch[m].row_stride;
      add_pixels<T>(scratch, channels, count, [=](int p, int64_t c, int64_t lanes) [[gnu::always_inline]] {
        return load_lanes(x + p * stride + c, lanes);
      });
    }
  }
  T* pooled = args.pooled + sample * shape.channels + first;
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    const int64_t lanes = channels - c < kLanes<T> ? channels - c : kLanes<T>;
    store_partial(pooled + c, load_partial(scratch + c, lanes) / Accumulator<T>(shape.pixels), lanes);
  }
}

// weights[n, :, c] = softmax(logits[n, :, c])
template <class T>
void softmax(const Shape& shape, const T* logits, Accumulator<T>* weights, int64_t sample) {
  constexpr int64_t L = kLanes<T>;
  const int64_t channels = shape.channels, offset = sample * shape.branches * channels;
  for (int64_t c = 0; c < channels; c += L) {
    const int64_t lanes = channels - c < L ? channels - c : L;
    const T* z = logits + offset + c;
    Accumulator<T>* a = weights + offset + c;
    Vec<T> value[kMaxBranches], largest = {}, sum = {};
    for (int m = 0; m < shape.branches; ++m) {
      value[m] = load_partial(z + m * channels, lanes);
      largest = m == 0 ? value[0] : max(largest, value[m]);
    }
    for (int m = 0; m < shape.branches; ++m) sum += value[m] = exp(value[m] - largest);
    for (int m = 0; m < shape.branches; ++m) store_partial(a + m * channels, value[m] / sum, lanes);
  }
}

// y[n, c, p] = sum_m a[n, m, c] U_m[n, c, p]        rows first .. last of one sample; M == 0: as many as shape says
template <class T, int M>
SIMD_INLINE void select_rows(const Select<T>& args, int64_t sample, int64_t first, int64_t last) {
  constexpr int64_t L = kLanes<T>;
  const Shape& shape = args.shape;
  const int branches = M ? M : shape.branches;
  const int64_t length = shape.row_length();
  const Accumulator<T>* weights = args.weights + sample * shape.branches * shape.channels;
  const T* row[kMaxBranches];
  Vec<T> plane_weight[kMaxBranches];
  Writer<T> writer(args.stream);
  for (int64_t r = first; r < last; ++r) {
    for (int m = 0; m < branches; ++m) row[m] = args.branches.branch[m].row(sample, r);
    if (!shape.channels_last)
      for (int m = 0; m < branches; ++m) plane_weight[m] = broadcast<T>(weights[m * shape.channels + r]);
    for (int64_t begin = 0; begin < length; begin += kChunk) {
      const int64_t count = length - begin < kChunk ? length - begin : kChunk;
      T* y = writer.reserve(args.y.row(sample, r) + begin, count);
      const auto mix = [&](int64_t i, int64_t lanes, auto weight_of) [[gnu::always_inline]] {
        Vec<T> sum = load_lanes(row[0] + begin + i, lanes) * weight_of(0, i, lanes);
        for (int m = 1; m < branches; ++m)
          sum = fma(load_lanes(row[m] + begin + i, lanes), weight_of(m, i, lanes), sum);
        return sum;
      };
      const auto all = [&](auto weight_of) [[gnu::always_inline]] {
        int64_t i = 0;
        for (; i + L <= count; i += L) store(y + i, mix(i, L, weight_of));
        if (i < count) store_partial(y + i, mix(i, count - i, weight_of), count - i);
      };
      if (shape.channels_last)
        all([&](int m, int64_t i, int64_t lanes)
                [[gnu::always_inline]] { return load_lanes(weights + m * shape.channels + begin + i, lanes); });
      else
        all([&](int m, int64_t, int64_t) [[gnu::always_inline]] { return plane_weight[m]; });
    }
  }
  writer.finish();
}

template <class T>
void select(const Select<T>& args, int64_t sample, int64_t first, int64_t last) {
  if (args.shape.branches == 2)  // the usual number gets code of its own
    select_rows<T, 2>(args, sample, first, last);
  else
    select_rows<T, 0>(args, sample, first, last);
}

// da[n, m, c] = sum_p dy[n, c, p] U_m[n, c, p]        channels first .. last of one sample, NCHW
template <class T>
void grad_weights_planes(const GradWeights<T>& args, int64_t sample, int64_t first, int64_t last) {
  const Shape& shape = args.shape;
  for (int64_t c = first; c < last; ++c) {
    const T* grad_y = args.grad_y.row(sample, c);
    Vec<T> sum[kMaxBranches] = {};
    for (int64_t begin = 0; begin < shape.pixels; begin += kChunk) {
      const int64_t count = shape.pixels - begin < kChunk ? shape.pixels - begin : kChunk;
      for (int m = 0; m < shape.branches; ++m)
        sum[m] += row_dot(grad_y + begin, args.branches.branch[m].row(sample, c) + begin, count);
    }
    for (int m = 0; m < shape.branches; ++m)
      args.grad_weights[(sample * shape.branches + m) * shape.channels + c] = reduce_add(sum[m]);
  }
}

// The same for channels_last.
template <class T>
void grad_weights_pixels(const GradWeights<T>& args, int64_t sample, int64_t first, int64_t last) {
  const Shape& shape = args.shape;
  const int64_t channels = last - first;
  Accumulator<T>* sum[kMaxBranches];
  for (int m = 0; m < shape.branches; ++m) {
    sum[m] = args.grad_weights + (sample * shape.branches + m) * shape.channels + first;
    for (int64_t c = 0; c < channels; ++c) sum[m][c] = 0;
  }
  for (int64_t pixel = 0; pixel < shape.pixels; pixel += kPixels) {
    const int count = int(shape.pixels - pixel < kPixels ? shape.pixels - pixel : kPixels);
    const T* grad_y = args.grad_y.row(sample, pixel) + first;
    for (int m = 0; m < shape.branches; ++m) {
      const T* x = args.branches.branch[m].row(sample, pixel) + first;
      const int64_t stride = args.branches.branch[m].row_stride, grad_stride = args.grad_y.row_stride;
      add_pixels<T>(sum[m], channels, count, [=](int p, int64_t c, int64_t lanes) [[gnu::always_inline]] {
        return load_lanes(grad_y + p * grad_stride + c, lanes) * load_lanes(x + p * stride + c, lanes);
      });
    }
  }
}

// dz_m = a_m (da_m - sum_k a_k da_k)        one sample
template <class T>
void softmax_backward(const Shape& shape, const Accumulator<T>* weights, const Accumulator<T>* grad_weights,
                      T* grad_logits, int64_t sample) {
  constexpr int64_t L = kLanes<T>;
  const int64_t channels = shape.channels, offset = sample * shape.branches * channels;
  for (int64_t c = 0; c < channels; c += L) {
    const int64_t lanes = channels - c < L ? channels - c : L;
    const Accumulator<T>*a = weights + offset + c, *grad_a = grad_weights + offset + c;
    Vec<T> mean = {};
    for (int m = 0; m < shape.branches; ++m)
      mean = fma(load_partial(a + m * channels, lanes), load_partial(grad_a + m * channels, lanes), mean);
    for (int m = 0; m < shape.branches; ++m) {
      const Vec<T> grad = load_partial(a + m * channels, lanes) * (load_partial(grad_a + m * channels, lanes) - mean);
      store_partial(grad_logits + offset + m * channels + c, grad, lanes);
    }
  }
}

// dU_m[n, c, p] = a[n, m, c] dy[n, c, p] + ds[n, c] / pixels        rows first .. last of one sample
// scratch [C] holds the second term of one sample.
template <class T>
void grad_branches(const GradBranches<T>& args, int64_t sample, int64_t first, int64_t last, Accumulator<T>* scratch) {
  constexpr int64_t L = kLanes<T>;
  const Shape& shape = args.shape;
  const int64_t length = shape.row_length(), channels = shape.channels;
  const Accumulator<T>* weights = args.weights + sample * shape.branches * channels;
  for (int64_t c = 0; c < channels; c += L) {
    const int64_t lanes = channels - c < L ? channels - c : L;
    const Vec<T> term = args.grad_pooled ? load_partial(args.grad_pooled + sample * channels + c, lanes) : Vec<T>{};
    store_partial(scratch + c, term / Accumulator<T>(shape.pixels), lanes);
  }
  for (int m0 = 0; m0 < shape.branches; m0 += 2) {  // two outputs at a time: their buffers and dy fit in L1
    Writer<T> writer[2] = {Writer<T>(args.stream), Writer<T>(args.stream)};
    for (int64_t r = first; r < last; ++r) {
      const T* row = args.grad_y.row(sample, r);
      for (int64_t begin = 0; begin < length; begin += kChunk) {
        const int64_t count = length - begin < kChunk ? length - begin : kChunk;
        for (int m = m0; m < m0 + 2 && m < shape.branches; ++m) {
          const Rows<T>& out = args.grad_branches.branch[m];
          if (!out.data) continue;
          T* to = writer[m - m0].reserve(out.row(sample, r) + begin, count);
          const T* from = row + begin;
          int64_t i = 0;
          if (shape.channels_last) {
            const Accumulator<T>*a = weights + m * channels + begin, *b = scratch + begin;
            for (; i + L <= count; i += L) store(to + i, fma(load(from + i), load(a + i), load(b + i)));
            if (i < count) {
              const int64_t lanes = count - i;
              const Vec<T> grad =
                  fma(load_partial(from + i, lanes), load_partial(a + i, lanes), load_partial(b + i, lanes));
              store_partial(to + i, grad, lanes);
            }
          } else {
            const Vec<T> a = broadcast<T>(weights[m * channels + r]), b = broadcast<T>(scratch[r]);
            for (; i + L <= count; i += L) store(to + i, fma(load(from + i), a, b));
            if (i < count) store_partial(to + i, fma(load_partial(from + i, count - i), a, b), count - i);
          }
        }
      }
    }
    writer[0].finish();
    writer[1].finish();
  }
}

}  // namespace
}  // namespace attnkernels::selective_kernel::SIMD_LEVEL
