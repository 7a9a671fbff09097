// Fully connected layers on a few samples; included once per level by simd_level.h, no include guard.
// Weights are of type T, everything else in accumulators; a matrix is a pointer and the distance between its rows.
// An element's sum runs in an order that does not depend on the tile or the thread that it falls to.
namespace attnkernels::simd::SIMD_LEVEL {
namespace {

inline constexpr int kTile = 4;  // 4 x 4 sums fill the registers without spilling at 32 registers, nearly so at 16

template <class A>
struct Matrix {
  A* data;
  int64_t stride;
  SIMD_INLINE A* row(int64_t index) const { return data + index * stride; }
};

// y[s, o] = bias[o] + sum_i weight[o, i] x[s, i]        one tile: kOutputs rows of the weight, kSamples rows of x
template <int kOutputs, int kSamples, class T, class A>
void linear_tile(Matrix<A> y, const T* weight, const T* bias, Matrix<const A> x, int64_t output, int64_t sample,
                 int64_t inputs) {
  Vec<A> sums[kOutputs][kSamples] = {};
  const T* rows = weight + output * inputs;
  const auto step = [&](int64_t i, auto read) {
    Vec<A> columns[kSamples];
    for (int s = 0; s < kSamples; ++s) columns[s] = read(x.row(sample + s) + i);
    for (int o = 0; o < kOutputs; ++o) {
      const Vec<A> values = read(rows + o * inputs + i);
      for (int s = 0; s < kSamples; ++s) sums[o][s] = fma(values, columns[s], sums[o][s]);
    }
  };
  int64_t i = 0;
  for (; i + kLanes<A> <= inputs; i += kLanes<A>) step(i, ReadAll{});
  if (i < inputs) step(i, ReadPartial{inputs - i});
  for (int o = 0; o < kOutputs; ++o) {
    const A offset = bias ? to_accumulator(bias[output + o]) : A(0);
    for (int s = 0; s < kSamples; ++s) y.row(sample + s)[output + o] = reduce_add(sums[o][s]) + offset;
  }
}

// The outputs [begin, end) of a layer for rows [0, samples) of x; bias may be null.
template <class T, class A>
void linear(Matrix<A> y, const T* weight, const T* bias, Matrix<const A> x, int64_t samples, int64_t inputs,
            int64_t begin, int64_t end) {
  const auto outputs = [&]<int kOutputs>(int64_t output, std::integral_constant<int, kOutputs>) {
    int64_t sample = 0;
    for (; sample + kTile <= samples; sample += kTile)
      linear_tile<kOutputs, kTile>(y, weight, bias, x, output, sample, inputs);
    for (; sample < samples; ++sample) linear_tile<kOutputs, 1>(y, weight, bias, x, output, sample, inputs);
  };
  int64_t output = begin;
  for (; output + kTile <= end; output += kTile) outputs(output, std::integral_constant<int, kTile>{});
  for (; output < end; ++output) outputs(output, std::integral_constant<int, 1>{});
}

// How the left factor of weighted_rows is laid out: element (m, k) at data[m * row + k * step].
template <class A>
struct Strided {
  const A* data;
  int64_t row, step;
};

// y[m, i] = sum_k a[m, k] b[k, i]        one tile: kRows rows of y, kVectors vectors of columns from `column`
template <int kRows, int kVectors, class Y, class B, class A, class Read>
SIMD_INLINE void weighted_rows_tile(Matrix<Y> y, Strided<A> a, Matrix<const B> b, int64_t m, int64_t column,
                                    int64_t count, Read read, int64_t last) {
  Vec<A> sums[kRows][kVectors] = {};
  for (int64_t k = 0; k < count; ++k) {
    Vec<A> values[kVectors];
    for (int v = 0; v < kVectors; ++v) values[v] = read(b.row(k) + column + v * kLanes<A>);
    for (int r = 0; r < kRows; ++r) {
      const Vec<A> factor = broadcast<A>(a.data[(m + r) * a.row + k * a.step]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = fma(factor, values[v], sums[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) {
      Y* to = y.row(m + r) + column + v * kLanes<A>;
      if constexpr (std::is_same_v<Read, ReadPartial>)
        store_partial(to, sums[r][v], last);
      else
        store(to, sums[r][v]);
    }
}

// Rows [0, rows) and columns [begin, end) of y = a b, `count` being the length of the sums: the transposed layer
// (a: a gradient, b: the weight) and the weight's gradient (a: the outputs' gradients, transposed, b: the inputs).
template <class Y, class B, class A>
void weighted_rows(Matrix<Y> y, Strided<A> a, Matrix<const B> b, int64_t rows, int64_t count, int64_t begin,
                   int64_t end) {
  constexpr int64_t kStep = kLanes<A>;
  const auto columns = [&]<int kRows>(int64_t m, std::integral_constant<int, kRows>) {
    int64_t i = begin;
    for (; i + kTile * kStep <= end; i += kTile * kStep)
      weighted_rows_tile<kRows, kTile>(y, a, b, m, i, count, ReadAll{}, 0);
    for (; i + kStep <= end; i += kStep) weighted_rows_tile<kRows, 1>(y, a, b, m, i, count, ReadAll{}, 0);
    if (i < end) weighted_rows_tile<kRows, 1>(y, a, b, m, i, count, ReadPartial{end - i}, end - i);
  };
  int64_t m = 0;
  for (; m + kTile <= rows; m += kTile) columns(m, std::integral_constant<int, kTile>{});
  for (; m < rows; ++m) columns(m, std::integral_constant<int, 1>{});
}

// The gradients of the weights and biases of a layer's outputs [begin, end), samples in order; either may be null.
// grad_weight[o, i] = sum_s grads[s, o] x[s, i], grad_bias[o] = times sum_s grads[s, o]: the bias is added `times`.
template <class T, class A>
void linear_gradients(T* grad_weight, T* grad_bias, Matrix<const A> grads, Matrix<const A> x, int64_t samples,
                      int64_t inputs, int64_t begin, int64_t end, A times = 1) {
  if (grad_weight)
    weighted_rows<T, A, A>({grad_weight + begin * inputs, inputs}, {grads.data + begin, 1, grads.stride}, x,
                           end - begin, samples, 0, inputs);
  if (grad_bias) weighted_rows<T, A, A>({grad_bias, 0}, {&times, 0, 0}, grads, 1, samples, begin, end);
}

}  // namespace
}  // namespace attnkernels::simd::SIMD_LEVEL
