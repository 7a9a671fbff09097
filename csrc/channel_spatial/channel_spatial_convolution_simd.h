// The convolution of one level; no include guard, no torch.
//
// A plane lies in scratch with zeros around it, `pitch` numbers a row: a tap is the same distance away from every pixel,
// and vectors run on over the ends of rows, so that planes of 7 columns take few of them.
namespace attnkernels::channel_spatial::SIMD_LEVEL {
namespace {

using namespace simd::SIMD_LEVEL;

// The rows of a plane into `padded`, which is zero. With `gates` the plane is their gradient, and goes through the
// sigmoid.
template <class A>
void pad(const Padded& shape, A* padded, const A* plane, const A* gates) {
  const int64_t side = shape.taps / 2, width = shape.width;
  for (int64_t h = 0; h < shape.height; ++h) {
    A* to = padded + (h + side) * shape.pitch() + side;
    if (gates)
      sigmoid_gradients(to, plane + h * width, gates + h * width, width);
    else
      convert(to, plane + h * width, width);
  }
}

// to[h, w] = bias + sum over planes and taps of weight[plane, i, j] padded[plane, h + i, w + j] for the rows [first,
// last), or with `gate` its sigmoid; the taps of a plane are `step` numbers apart, from its first on, and `row` is
// scratch for rows_at_once() of them.
template <class A>
void convolve(const Padded& shape, A* to, const A* padded, int64_t planes, const A* weight, int64_t step, A bias,
              bool gate, int64_t first, int64_t last, A* row) {
  constexpr int64_t kLength = kLanes<A>, kVectors = 4;  // as many chains as hide the latency of fma
  const int64_t pitch = shape.pitch(), taps = shape.taps, at_once = shape.rows_at_once();
  for (int64_t begin = first; begin < last; begin += at_once) {
    const int64_t end = begin + at_once < last ? begin + at_once : last, count = (end - begin) * pitch;
    const auto sums_of = [&](int64_t q, auto& sums, auto read) {
      for (auto& sum : sums) sum = broadcast<A>(bias);
      const A* tap = weight;
      for (int64_t plane = 0; plane < planes; ++plane)
        for (int64_t i = 0; i < taps; ++i) {
          const A* from = padded + plane * shape.plane() + (begin + i) * pitch + q;
          for (int64_t j = 0; j < taps; ++j, tap += step) {
            const Vec<A> factor = broadcast<A>(*tap);
            int64_t offset = j;
            for (auto& sum : sums) sum = fma(factor, read(from + offset), sum), offset += kLength;
          }
        }
    };
    int64_t q = 0;
    for (; q + kVectors * kLength <= count; q += kVectors * kLength) {
      Vec<A> sums[kVectors];
      sums_of(q, sums, ReadAll{});
      for (int64_t v = 0; v < kVectors; ++v) store(row + q + v * kLength, sums[v]);
    }
    for (; q < count; q += kLength) {
      const int64_t lanes = count - q < kLength ? count - q : kLength;
      Vec<A> sums[1];
      sums_of(q, sums, ReadPartial{lanes});
      store_partial(row + q, sums[0], lanes);
    }
    for (int64_t h = begin; h < end; ++h) convert(to + h * shape.width, row + (h - begin) * pitch, shape.width);
    if (gate) {
      A* const logits = to + begin * shape.width;
      row_map(logits, (end - begin) * shape.width, [=](int64_t i, auto read) { return sigmoid(read(logits + i)); });
    }
  }
}

// sums[j] = sum over the pixels of grad[h, w] padded[h + i, w + j], for a row i of the taps. grad is padded as the plane
// is. Of so many terms the sums of some rows each are added in double.
template <class A>
void correlate(const Padded& shape, double* sums, const A* grad, const A* padded, int64_t i) {
  constexpr int64_t kTaps = 4;
  const int64_t pitch = shape.pitch(), side = shape.taps / 2, at_once = shape.rows_at_once();
  const A* const centre = grad + side * pitch + side;
  for (int64_t j = 0; j < shape.taps; ++j) sums[j] = 0;
  for (int64_t begin = 0; begin < shape.height; begin += at_once) {
    const int64_t end = begin + at_once < shape.height ? begin + at_once : shape.height;
    const int64_t count = (end - begin) * pitch - (shape.taps - 1);  // from the first pixel to the last
    const A *from = centre + begin * pitch, *at = padded + (begin + i) * pitch;
    for (int64_t j = 0; j < shape.taps; j += kTaps) {
      const int64_t taps = shape.taps - j < kTaps ? shape.taps - j : kTaps;
      Vec<A> partial[kTaps] = {};
      const auto add = [&](int64_t q, auto read) {
        const Vec<A> factor = read(from + q);
        for (int64_t k = 0; k < kTaps; ++k)
          if (k < taps) partial[k] = fma(factor, read(at + q + j + k), partial[k]);
      };
      int64_t q = 0;
      for (; q + kLanes<A> <= count; q += kLanes<A>) add(q, ReadAll{});
      if (q < count) add(q, ReadPartial{count - q});
      for (int64_t k = 0; k < taps; ++k) sums[j + k] += reduce_add(partial[k]);
    }
  }
}

template <class T>
inline constexpr ConvolutionKernels<T> kConvolution = {
    .pad = pad<Accumulator<T>>,
    .convolve = convolve<Accumulator<T>>,
    .correlate = correlate<Accumulator<T>>,
    .widen = convert<Accumulator<T>, T>,
    .narrow = convert<T, Accumulator<T>>,
};

}  // namespace
}  // namespace attnkernels::channel_spatial::SIMD_LEVEL
