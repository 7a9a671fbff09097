// The selective_kernel kernels of one level; no include guard, no torch. Kernels<T> says which part each works on.
#include "common/simd_gate.h"

namespace attnkernels::selective_kernel::SIMD_LEVEL {
namespace {

using namespace simd::SIMD_LEVEL;

template <class T>
SIMD_INLINE SampleRows<T> sample_rows(const Rows<T>& map, int64_t n) {
  return {map.row(n, 0), map.row_stride};
}

// An operand of every branch: what it gives is value(m).
template <class Reader, int kMost>
struct EachReader {
  Reader of[kMost];
  template <class Read>
  SIMD_INLINE auto operator()(int64_t j, Read read) const {
    return [this, j, read](int m) { return of[m](j, read); };
  }
};
template <class Operand, int kMost>
struct Each {
  Operand of[kMost];
  int count;
  template <bool kChannelsLast>
  SIMD_INLINE auto at(int64_t row, int64_t offset) const {
    EachReader<decltype(of[0].template at<kChannelsLast>(row, offset)), kMost> reader;
    for (int m = 0; m < count; ++m) reader.of[m] = of[m].template at<kChannelsLast>(row, offset);
    return reader;
  }
};

// ---- forward

// sums[c] = sum_m sum_p U_m[n, c, p]
template <class T>
void pool(const Pool<T>& args, int64_t n, int64_t first, int64_t last, Accumulator<T>* sums) {
  const Shape& shape = args.shape;
  clear_sums(shape, first, last, sums);
  for (int m = 0; m < shape.branches; ++m)
    add_rows<T>(
        shape, first, last, 0, shape.row_length(), sums, [](Vec<T> sum, Vec<T> x) { return sum + x; },
        sample_rows(args.branches.branch[m], n));
}

// weights[n, :, c] = softmax(logits[n, :, c])
template <class T>
void softmax(const Shape& shape, const T* logits, Accumulator<T>* weights, int64_t n) {
  constexpr int64_t kStep = kLanes<T>;
  const int64_t channels = shape.channels, sample = n * shape.branches * channels;
  for (int64_t c = 0; c < channels; c += kStep) {
    const int64_t count = channels - c < kStep ? channels - c : kStep;
    const T* z = logits + sample + c;
    Accumulator<T>* a = weights + sample + c;
    Vec<T> value[kMaxBranches], largest = load_partial(z, count), sum = {};
    for (int m = 0; m < shape.branches; ++m) {
      value[m] = load_partial(z + m * channels, count);
      largest = max(largest, value[m]);
    }
    for (int m = 0; m < shape.branches; ++m) sum += value[m] = exp(value[m] - largest);
    for (int m = 0; m < shape.branches; ++m) store_partial(a + m * channels, value[m] / sum, count);
  }
}

// y[n, c, p] = sum_m a[n, m, c] U_m[n, c, p]        M == 0: as many branches as shape says
template <class T, int M>
SIMD_INLINE void select_rows(const Select<T>& args, int64_t n, int64_t first, int64_t last) {
  const Shape& shape = args.shape;
  const int branches = M ? M : shape.branches;
  const int64_t length = shape.row_length();
  Each<SampleRows<const T>, M ? M : kMaxBranches> x;
  Each<PerChannel<Accumulator<T>>, M ? M : kMaxBranches> weights;
  x.count = weights.count = branches;
  for (int m = 0; m < branches; ++m) {
    x.of[m] = sample_rows(args.branches.branch[m], n);
    weights.of[m] = {args.weights + (n * branches + m) * shape.channels};
  }
  map_rows(
      shape, first * length, last * length, dense_rows(shape, args.y, n).data, args.stream,
      [=](const auto& x, const auto& weight) {
        Vec<T> sum = x(0) * weight(0);
        for (int m = 1; m < branches; ++m) sum = fma(x(m), weight(m), sum);
        return sum;
      },
      x, weights);
  if (args.stream) stream_fence();
}

template <class T>
void select(const Select<T>& args, int64_t n, int64_t first, int64_t last) {
  if (args.shape.branches == 2)  // the usual number: pointers and weights stay in registers
    select_rows<T, 2>(args, n, first, last);
  else
    select_rows<T, 0>(args, n, first, last);
}

// ---- backward

// Elements of dy that are taken through all branches before the next: half of L1 at most.
inline constexpr int64_t kShared = 4096;

// sums[m, c] = sum_p dy[n, c, p] U_m[n, c, p]
template <class T>
void grad_weights(const GradLogits<T>& args, int64_t n, int64_t first, int64_t last, Accumulator<T>* sums) {
  const Shape& shape = args.shape;
  const int64_t length = shape.row_length();
  // Whole pixels, or a part of a plane.
  const int64_t rows = shape.channels_last && length < kShared ? kShared / length : 1;
  const int64_t columns = shape.channels_last ? length : kShared;
  const auto dy = sample_rows(args.grad_y, n);
  for (int m = 0; m < shape.branches; ++m) clear_sums(shape, first, last, sums + m * shape.channels);
  for (int64_t row = first; row < last; row += rows)
    for (int64_t begin = 0; begin < length; begin += columns)
      for (int m = 0; m < shape.branches; ++m)
        add_rows<T>(
            shape, row, last - row < rows ? last : row + rows, begin,
            length - begin < columns ? length : begin + columns, sums + m * shape.channels,
            [](Vec<T> sum, Vec<T> dy, Vec<T> x) { return fma(dy, x, sum); }, dy,
            sample_rows(args.branches.branch[m], n));
}

// dz_m = a_m (da_m - sum_k a_k da_k)        da of this sample [M, C]
template <class T>
void grad_logits(const Shape& shape, const Accumulator<T>* weights, const Accumulator<T>* grad_weights, T* grad_logits,
                 int64_t n) {
  constexpr int64_t kStep = kLanes<T>;
  const int64_t channels = shape.channels, sample = n * shape.branches * channels;
  for (int64_t c = 0; c < channels; c += kStep) {
    const int64_t count = channels - c < kStep ? channels - c : kStep;
    const Accumulator<T>*a = weights + sample + c, *da = grad_weights + c;
    Vec<T> mean = {};
    for (int m = 0; m < shape.branches; ++m)
      mean = fma(load_partial(a + m * channels, count), load_partial(da + m * channels, count), mean);
    for (int m = 0; m < shape.branches; ++m)
      store_partial(grad_logits + sample + m * channels + c,
                    load_partial(a + m * channels, count) * (load_partial(da + m * channels, count) - mean), count);
  }
}

// dU_m[n, c, p] = a[n, m, c] dy[n, c, p] + pooled_term[n, c]
template <class T>
void grad_branches(const GradBranches<T>& args, int64_t n, int64_t first, int64_t last) {
  using A = Accumulator<T>;
  const Shape& shape = args.shape;
  const int64_t channels = shape.channels, length = shape.row_length();
  const A *weights = args.weights + n * shape.branches * channels, *term = args.pooled_term + n * channels;
  const auto dy = sample_rows(args.grad_y, n);
  if (args.interleaved) {
    const auto piece = [=, branches = shape.branches](int64_t row, int64_t c) {
      const T* from = dy.data + row / branches * dy.stride + c;
      const A *a = weights + row % branches * channels + c, *b = term + c;
      return [=](int64_t j, auto read) { return fma(read(from + j), read(a + j), read(b + j)); };
    };
    const int64_t pixel_length = shape.branches * channels;
    map_backwards(args.grad_branches[0] + n * args.sample_stride, first * pixel_length, last * pixel_length, channels,
                  args.stream, piece);
  } else {
    // In blocks, so that dy is in L1 from one branch to the next.
    for (int64_t begin = first * length; begin < last * length; begin += kShared) {
      const int64_t end = last * length - begin > kShared ? begin + kShared : last * length;
      for (int m = 0; m < shape.branches; ++m)
        if (args.grad_branches[m])
          map_rows(
              shape, begin, end, args.grad_branches[m] + n * args.sample_stride, args.stream,
              [](Vec<T> dy, Vec<T> a, Vec<T> term) { return fma(dy, a, term); }, dy,
              PerChannel<A>{weights + m * channels}, PerChannel<A>{term});
    }
  }
  if (args.stream) stream_fence();
}

// to[i] = factor from[i]
template <class To, class From>
void scale(To* to, const From* from, Accumulator<From> factor, int64_t count) {
  row_map(to, count, [=](int64_t i, auto read) { return read(from + i) * factor; });
}

template <class T>
inline constexpr Kernels<T> kKernels = {
    .pool = pool<T>,
    .softmax = softmax<T>,
    .select = select<T>,
    .grad_weights = grad_weights<T>,
    .grad_logits = grad_logits<T>,
    .grad_branches = grad_branches<T>,
    .scale = scale<T, Accumulator<T>>,
    .scale_up = scale<Accumulator<T>, T>,
};

}  // namespace
}  // namespace attnkernels::selective_kernel::SIMD_LEVEL
