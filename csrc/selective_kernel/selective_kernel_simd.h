// The selective_kernel kernels of one level; no include guard, no torch. Kernels<T> says which part each works on.
namespace attnkernels::selective_kernel::SIMD_LEVEL {
namespace {

using namespace simd::SIMD_LEVEL;

// U_m[n, unit] from the element `offset` on, for all branches
template <class T>
SIMD_INLINE void branch_pointers(const Branches<const T>& branches, int count, int64_t n, int64_t unit, int64_t offset,
                                 const T** pointers) {
  for (int m = 0; m < count; ++m) pointers[m] = branches.branch[m].row(n, unit) + offset;
}

// ---- forward

// sums[c] = sum_m sum_p U_m[n, c, p]
template <class T>
void pool(const Pool<T>& args, int64_t n, int64_t first, int64_t last, Accumulator<T>* sums) {
  const Shape& shape = args.shape;
  if (shape.channels_last) {
    for (int64_t c = 0; c < shape.channels; ++c) sums[c] = 0;
    for (int m = 0; m < shape.branches; ++m) {
      const T* x = args.branches.branch[m].row(n, first);
      const int64_t stride = args.branches.branch[m].row_stride;
      columns_reduce<T>(sums, last - first, shape.channels,
                        [=](Vec<T> sum, int64_t p, int64_t c, auto read) { return sum + read(x + p * stride + c); });
    }
    return;
  }
  for (int64_t c = first; c < last; ++c) {
    sums[c] = 0;
    for (int m = 0; m < shape.branches; ++m) {
      const T* x = args.branches.branch[m].row(n, c);
      sums[c] += row_reduce<T>(shape.pixels, [=](Vec<T> sum, int64_t i, auto read) { return sum + read(x + i); });
    }
  }
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
SIMD_INLINE void select_units(const Select<T>& args, int64_t n, int64_t first, int64_t last) {
  const Shape& shape = args.shape;
  const int branches = M ? M : shape.branches;
  const int64_t length = shape.row_length();
  const Accumulator<T>* weights = args.weights + n * branches * shape.channels;
  T* y = args.y + n * shape.channels * shape.pixels;
  const T* x[kMaxBranches];
  const auto mix = [&](int64_t j, auto read, auto weight) {
    Vec<T> sum = read(x[0] + j) * weight(0);
    for (int m = 1; m < branches; ++m) sum = fma(read(x[m] + j), weight(m), sum);
    return sum;
  };
  if (shape.channels_last) {
    const auto piece = [&](int64_t, int64_t pixel, int64_t offset) {
      branch_pointers(args.branches, branches, n, pixel, offset, x);
      return [&, a = weights + offset](int64_t j, auto read) {
        return mix(j, read, [&](int m) { return read(a + m * shape.channels + j); });
      };
    };
    map_backwards(y, first * length, last * length, length, args.stream, piece);
  } else {
    Vec<T> a[kMaxBranches];
    const auto piece = [&](int64_t, int64_t channel, int64_t offset) {
      branch_pointers(args.branches, branches, n, channel, offset, x);
      for (int m = 0; m < branches; ++m) a[m] = broadcast<T>(weights[m * shape.channels + channel]);
      return [&](int64_t j, auto read) { return mix(j, read, [&](int m) { return a[m]; }); };
    };
    map_backwards(y, first * length, last * length, length, args.stream, piece);
  }
  if (args.stream) stream_fence();
}

template <class T>
void select(const Select<T>& args, int64_t n, int64_t first, int64_t last) {
  if (args.shape.branches == 2)  // the usual number: pointers and weights stay in registers
    select_units<T, 2>(args, n, first, last);
  else
    select_units<T, 0>(args, n, first, last);
}

// ---- backward

// Elements of dy that are taken through all branches before the next: half of L1 at most.
inline constexpr int64_t kShared = 4096;

// sums[m, c] = sum_p dy[n, c, p] U_m[n, c, p]
template <class T>
void grad_weights(const GradLogits<T>& args, int64_t n, int64_t first, int64_t last, Accumulator<T>* sums) {
  const Shape& shape = args.shape;
  const int64_t length = shape.row_length();
  if (shape.channels_last) {
    for (int64_t i = 0; i < shape.branches * shape.channels; ++i) sums[i] = 0;
    const int64_t block = length < kShared ? kShared / length : 1;
    for (int64_t pixel = first; pixel < last; pixel += block) {
      const int64_t pixels = last - pixel < block ? last - pixel : block;
      for (int m = 0; m < shape.branches; ++m) {
        const T *dy = args.grad_y.row(n, pixel), *x = args.branches.branch[m].row(n, pixel);
        const int64_t dy_stride = args.grad_y.row_stride, x_stride = args.branches.branch[m].row_stride;
        columns_reduce<T>(sums + m * shape.channels, pixels, shape.channels,
                          [=](Vec<T> sum, int64_t p, int64_t c, auto read) {
                            return fma(read(dy + p * dy_stride + c), read(x + p * x_stride + c), sum);
                          });
      }
    }
    return;
  }
  for (int64_t c = first; c < last; ++c) {
    for (int m = 0; m < shape.branches; ++m) sums[m * shape.channels + c] = 0;
    for (int64_t begin = 0; begin < length; begin += kShared) {
      const T* dy = args.grad_y.row(n, c) + begin;
      for (int m = 0; m < shape.branches; ++m) {
        const T* x = args.branches.branch[m].row(n, c) + begin;
        sums[m * shape.channels + c] +=
            row_reduce<T>(length - begin < kShared ? length - begin : kShared,
                          [=](Vec<T> sum, int64_t i, auto read) { return fma(read(dy + i), read(x + i), sum); });
      }
    }
  }
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
  const Shape& shape = args.shape;
  const int64_t channels = shape.channels, length = shape.row_length();
  const Accumulator<T>*weights = args.weights + n * shape.branches * channels, *term = args.pooled_term + n * channels;
  // dy and the numbers of branch m from the channel and the element on; whole units of a pixel, or one channel
  const auto pixel_values = [](const T* dy, const Accumulator<T>* a, const Accumulator<T>* b) {
    return [=](int64_t j, auto read) { return fma(read(dy + j), read(a + j), read(b + j)); };
  };
  if (args.interleaved) {
    T* out = args.grad_branches[0] + n * args.sample_stride;
    const auto piece = [&](int64_t, int64_t index, int64_t c) {
      const int64_t pixel = index / shape.branches, m = index % shape.branches;
      return pixel_values(args.grad_y.row(n, pixel) + c, weights + m * channels + c, term + c);
    };
    const int64_t pixel_length = shape.branches * channels;
    map_backwards(out, first * pixel_length, last * pixel_length, channels, args.stream, piece);
  } else {
    // In blocks, so that dy is in L1 from one branch to the next.
    for (int64_t begin = first * length; begin < last * length; begin += kShared) {
      const int64_t end = last * length - begin > kShared ? begin + kShared : last * length;
      for (int m = 0; m < shape.branches; ++m) {
        if (!args.grad_branches[m]) continue;
        T* out = args.grad_branches[m] + n * args.sample_stride;
        if (shape.channels_last) {
          map_backwards(out, begin, end, length, args.stream, [&](int64_t, int64_t pixel, int64_t c) {
            return pixel_values(args.grad_y.row(n, pixel) + c, weights + m * channels + c, term + c);
          });
        } else {
          map_backwards(out, begin, end, length, args.stream, [&](int64_t, int64_t c, int64_t offset) {
            const T* dy = args.grad_y.row(n, c) + offset;
            const Vec<T> a = broadcast<T>(weights[m * channels + c]), b = broadcast<T>(term[c]);
            return [=](int64_t j, auto read) { return fma(read(dy + j), a, b); };
          });
        }
      }
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
