// The CUDA kernels of criss_cross_attention; the symbols are those of attnkernels/ops/criss_cross/reference.py.
//
// Every map is [N, P, channels] with P pixels. A pass runs along one axis and continues from what the passes before
// left in `partial`: no atomics. Results and partial sums start at multiples of 16 bytes.
#pragma once
#include "common/pointwise.cuh"
#include "common/reduce.cuh"
#include "criss_cross/criss_cross_tile.cuh"

namespace attnkernels::criss_cross {

// The statistics of the softmax over the keys of some passes: [N, P] each. A pass has a block for every tile of the
// channels, which all read the statistics so far and of which the first writes new ones: never to the same memory.
template <class acc_t>
struct Statistics {
  acc_t *largest, *sum;  // the largest energy; sum of exp(energy - largest energy)
};

template <class T>
struct AttentionPass {
  using acc_t = acc_type<T>;
  Lines lines;
  int64_t query_channels, value_channels;
  const T *query, *key, *value;
  Statistics<acc_t> before, after;  // null in the first and the last pass
  acc_t* partial;                   // sum of exp(energy - largest energy) value; not used by an only pass
  T* out;
  acc_t* log_sum_exp;
  bool is_last;  // whether to write out and log_sum_exp, or partial and after
};

// Which pairs of a tile's rows and columns are a query and a key of its line.
struct Pairs {
  int rows, columns;
  bool without_diagonal;

  __device__ bool has(int row, int column) const {
    return row < rows && column < columns && !(without_diagonal && row == column);
  }
};

template <class T>
__device__ __forceinline__ Pairs pairs_of(const Lines& lines, const Place& place, int64_t column) {
  static_assert(Tile<T>::kRows == Tile<T>::kColumns);  // a tile holds the line's diagonal in its own, or not at all
  return {place.left(place.row, Tile<T>::kRows), place.left(column, Tile<T>::kColumns),
          lines.skips_itself && place.row == column};
}

// e[k] = sum_c query[p, c] key[k, c];  m = max_k e[k]
// out[p] = sum_k exp(e[k] - m) value[k], in the last pass divided by sum_k exp(e[k] - m)
//
// over the keys k of this and the earlier axes                                      blocks [N, lines, rows, tiles of C]
template <class T>
__global__ void __launch_bounds__(Tile<T>::kThreads, Tile<T>::kTensorCores ? 3 : 1)
    criss_cross_attention_pass(const int64_t first_block, const AttentionPass<T> pass, const int64_t tiles) {
  using Tile = criss_cross::Tile<T>;
  using acc_t = acc_type<T>;
  SHARED(typename Tile::Shared, shared);
  const acc_t infinity = acc_t(INFINITY);
  const Place place = place_of<T>(pass.lines, first_block, tiles);
  const int64_t channel = place.rest * Tile::kChannels;
  typename Tile::Result out;
  load_result<T>(out, pass.before.sum ? pass.partial : nullptr, place, pass.value_channels, channel);
  acc_t largest[Tile::kThreadRows], sum[Tile::kThreadRows];  // sum: of this thread's columns
#pragma unroll
  for (int r = 0; r < Tile::kThreadRows; ++r) {
    const int64_t i = place.row + Tile::row_of(r);
    const bool continues = pass.before.sum && i < place.length;
    largest[r] = continues ? pass.before.largest[place.pixel(i)] : -infinity;
    sum[r] = continues && Tile::leads_row() ? pass.before.sum[place.pixel(i)] : acc_t(0);
  }
#pragma unroll 1
  for (int64_t column = 0; column < place.length; column += Tile::kColumns) {
    load_tile<T, Tile::kColumns, Tile::kChannels, Tile::kFactorStride>(shared.factor, pass.value, place, column,
                                                                       pass.value_channels, channel);
    typename Tile::Products energy;
    multiply_pixels<T>(energy, shared, pass.query, pass.key, place, column, pass.query_channels);
    const Pairs pairs = pairs_of<T>(pass.lines, place, column);
#pragma unroll
    for (int r = 0; r < Tile::kThreadRows; ++r) {
      acc_t now = largest[r];
#pragma unroll
      for (int c = 0; c < Tile::kThreadColumns; ++c) {
        if (!pairs.has(Tile::row_of(r), Tile::column_of(c))) energy[r][c] = -infinity;
        now = energy[r][c] > now ? energy[r][c] : now;
      }
#pragma unroll
      for (int offset = Tile::kLanes / 2; offset > 0; offset /= 2) {
        const acc_t other = __shfl_xor_sync(0xffffffffu, now, offset);
        now = other > now ? other : now;
      }
      // No key yet, or none that counts: exp(-inf - 0) is 0, as it must be.
      const acc_t base = now == -infinity ? acc_t(0) : now, rescale = exponential(largest[r] - base);
      largest[r] = now;
      sum[r] *= rescale;
#pragma unroll
      for (int c = 0; c < Tile::kThreadColumns; ++c) {
        const acc_t weight = exponential(energy[r][c] - base);
        sum[r] += weight;
        shared.rows[Tile::row_of(r) * Tile::kRowStride + Tile::column_of(c)] = narrow<T>(weight);
      }
#pragma unroll
      for (int c = 0; c < Tile::kThreadChannels; ++c) out[r][c] *= rescale;
    }
    apply_weights<T>(out, shared, place, column, pass.value_channels - channel);
  }
#pragma unroll
  for (int r = 0; r < Tile::kThreadRows; ++r) {
    const int64_t i = place.row + Tile::row_of(r);
    sum[r] = sum_lanes(sum[r], Tile::kLanes);
    if (pass.is_last) {
      const acc_t inverse = acc_t(1) / sum[r];
#pragma unroll
      for (int c = 0; c < Tile::kThreadChannels; ++c) out[r][c] *= inverse;
    }
    if (place.rest || !Tile::leads_row() || i >= place.length) continue;
    if (pass.is_last) {
      pass.log_sum_exp[place.pixel(i)] = largest[r] + logarithm(sum[r]);
    } else {
      pass.after.largest[place.pixel(i)] = largest[r];
      pass.after.sum[place.pixel(i)] = sum[r];
    }
  }
  if (pass.is_last) {
    store_result<T>(pass.out, out, place, pass.value_channels, channel);
  } else {
    store_result<T>(pass.partial, out, place, pass.value_channels, channel);
  }
}

constexpr int kDeltaThreads = 256;  // a warp to a pixel

// delta[p] = sum_c grad_out[p, c] out[p, c]                                                            blocks of [N, P]
template <class T>
__global__ void __launch_bounds__(kDeltaThreads)
    criss_cross_delta(const int64_t first_block, const T* grad_out, const T* out, acc_type<T>* delta,
                      const int64_t pixels, const int64_t channels) {
  constexpr int kVector = kVectorWidth<T>;
  const int64_t pixel = (first_block + blockIdx.x) * (kDeltaThreads / 32) + threadIdx.x / 32;
  if (pixel >= pixels) return;
  grad_out += pixel * channels;
  out += pixel * channels;
  acc_type<T> sum = 0;
  if (channels % kVector == 0 && misalignment(grad_out) == 0 && misalignment(out) == 0) {
    for (int64_t c = threadIdx.x % 32 * kVector; c < channels; c += 32 * kVector) {
      const auto a = load<kVector>(grad_out + c), b = load<kVector>(out + c);
#pragma unroll
      for (int k = 0; k < kVector; ++k) sum += a.get(k) * b.get(k);
    }
  } else {
    for (int64_t c = threadIdx.x % 32; c < channels; c += 32) sum += widen(grad_out[c]) * widen(out[c]);
  }
  sum = sum_lanes(sum, 32);
  if (threadIdx.x % 32 == 0) delta[pixel] = sum;
}

// a, b: the maps of either side whose products are the energies and, with grad_out and value, the probabilities'
// gradients. The rows of the result are those of row_a and row_b.
template <class T>
struct GradientPass {
  using acc_t = acc_type<T>;
  Lines lines;
  bool query_rows;                 // whether rows are queries, and columns keys
  int64_t a_channels, b_channels;  // Cq, C
  const T *row_a, *column_a;       // query and key, or key and query
  const T *row_b, *column_b;       // grad_out and value, or value and grad_out; row_b not without derivative
  const acc_t *log_sum_exp, *delta;
  const acc_t* before;  // null in the first pass
  acc_t* partial;       // not used by an only pass
  T* result;            // null but in the last pass
};

// kDerivative and query_rows:  grad_query[p] = sum_k grad_energy[p, k] key[k]
// kDerivative alone:           grad_key[k] = sum_p grad_energy[p, k] query[p]
// neither:                     grad_value[k] = sum_p probability[p, k] grad_out[p]
//
// probability = exp(e - log_sum_exp);  grad_energy = probability (grad_out[p] . value[k] - delta[p])
//                                                                     blocks [N, lines, rows, tiles of the result's C]
template <class T, bool kDerivative>
__global__ void __launch_bounds__(Tile<T>::kThreads, 1)
    criss_cross_gradient_pass(const int64_t first_block, const GradientPass<T> pass, const int64_t tiles) {
  using Tile = criss_cross::Tile<T>;
  using acc_t = acc_type<T>;
  SHARED(typename Tile::Shared, shared);
  const Place place = place_of<T>(pass.lines, first_block, tiles);
  const int64_t channel = place.rest * Tile::kChannels, channels = kDerivative ? pass.a_channels : pass.b_channels;
  typename Tile::Result result;
  load_result<T>(result, pass.before, place, channels, channel);
#pragma unroll 1
  for (int64_t column = 0; column < place.length; column += Tile::kColumns) {
    load_tile<T, Tile::kColumns, Tile::kChannels, Tile::kFactorStride>(
        shared.factor, kDerivative ? pass.column_a : pass.column_b, place, column, channels, channel);
    typename Tile::Products weight;
    multiply_pixels<T>(weight, shared, pass.row_a, pass.column_a, place, column, pass.a_channels);
    const Pairs pairs = pairs_of<T>(pass.lines, place, column);
    // weight = f(r, c, statistic of the pair's query) for the pairs that are, 0 for the others
    const auto for_each_pair = [&](const acc_t* statistics, auto f) {
      acc_t of_row[Tile::kThreadRows];
#pragma unroll
      for (int r = 0; r < Tile::kThreadRows; ++r) {
        const bool reads = pass.query_rows && Tile::row_of(r) < pairs.rows;
        of_row[r] = reads ? statistics[place.pixel(place.row + Tile::row_of(r))] : acc_t(0);
      }
#pragma unroll
      for (int c = 0; c < Tile::kThreadColumns; ++c) {
        const int j = Tile::column_of(c);
        const bool reads = !pass.query_rows && j < pairs.columns;
        const acc_t of_column = reads ? statistics[place.pixel(column + j)] : acc_t(0);
#pragma unroll
        for (int r = 0; r < Tile::kThreadRows; ++r) {
          const acc_t of_query = pass.query_rows ? of_row[r] : of_column;
          weight[r][c] = pairs.has(Tile::row_of(r), j) ? f(r, c, of_query) : acc_t(0);
        }
      }
    };
    for_each_pair(pass.log_sum_exp, [&](int r, int c, acc_t of_query) { return exponential(weight[r][c] - of_query); });
    if constexpr (kDerivative) {
      typename Tile::Products derivative;
      multiply_pixels<T>(derivative, shared, pass.row_b, pass.column_b, place, column, pass.b_channels);
      for_each_pair(pass.delta,
                    [&](int r, int c, acc_t of_query) { return weight[r][c] * (derivative[r][c] - of_query); });
    }
#pragma unroll
    for (int r = 0; r < Tile::kThreadRows; ++r)
#pragma unroll
      for (int c = 0; c < Tile::kThreadColumns; ++c)
        shared.rows[Tile::row_of(r) * Tile::kRowStride + Tile::column_of(c)] = narrow<T>(weight[r][c]);
    apply_weights<T>(result, shared, place, column, channels - channel);
  }
  if (pass.result) {
    store_result<T>(pass.result, result, place, channels, channel);
  } else {
    store_result<T>(pass.partial, result, place, channels, channel);
  }
}

}  // namespace attnkernels::criss_cross
