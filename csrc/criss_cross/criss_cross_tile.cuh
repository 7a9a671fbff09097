// A block's share of a matrix product along the lines of a map: tiles in shared memory, sums in registers.
#pragma once
#include "common/mma.cuh"
#include "common/numeric.cuh"
#include "criss_cross/criss_cross.h"

namespace attnkernels::criss_cross {

// Sizes of a block's tiles. Each warp has 16 rows of the sums, and of its 16-bit factors, as mma.sync wants them.
// Lane l has rows l / kLanes + r 32 / kLanes for r < kThreadRows, and of their columns runs of kRun: see column_of.
template <class T>
struct Tile {
  using acc_t = acc_type<T>;
  static constexpr bool kTensorCores = sizeof(T) == 2;
  static constexpr int kRows = sizeof(T) == 8 ? 32 : 64;  // double's sums take twice the registers
  static constexpr int kColumns = kRows;                  // of the products of pixels
  static constexpr int kTerms = 128 / sizeof(T);          // channels that are multiplied at a time: a cache line
  static constexpr int kChannels = 256 / sizeof(T);       // of the result
  static constexpr int kThreads = 2 * kRows;
  static constexpr int kPad = 16 / sizeof(T);  // keeps rows aligned, and in other banks than their neighbours
  static constexpr int kLanes = kTensorCores ? 4 : 8;
  static constexpr int kThreadRows = 16 * kLanes / 32;
  static constexpr int kRun = kTensorCores ? 2 : 1;
  static constexpr int kThreadColumns = kColumns / kLanes;
  static constexpr int kThreadChannels = kChannels / kLanes;

  static constexpr int kRowStride = kColumns + kPad;      // of Shared::rows; kTerms <= kColumns
  static constexpr int kColumnStride = kTerms + kPad;     // of Shared::columns
  static constexpr int kFactorStride = kChannels + kPad;  // of Shared::factor
  static_assert(kTerms <= kColumns);

  struct alignas(16) Shared {
    T rows[kRows * kRowStride];           // [row][term], or the weights [row][column]
    T columns[kColumns * kColumnStride];  // [column][term]
    T factor[kColumns * kFactorStride];   // [column][channel]: what the weights are multiplied with
  };

  using Products = acc_t[kThreadRows][kThreadColumns];
  using Result = acc_t[kThreadRows][kThreadChannels];

  __device__ static int row_of(int r) { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / kLanes + r * (32 / kLanes); }
  __device__ static int column_of(int c) { return (c / kRun * kLanes + threadIdx.x % kLanes) * kRun + c % kRun; }
  __device__ static bool leads_row() { return threadIdx.x % kLanes == 0; }
};

// What a block works on: pixel i of its line is pixel first + i step of [N, P]; `row` is the first of its rows, `rest`
// the number of its tile of whatever else is divided.
struct Place {
  int64_t first, step, length, row, rest;

  __device__ int64_t pixel(int64_t i) const { return first + i * step; }
  __device__ int left(int64_t from, int tile) const { return int(min(length - from, int64_t(tile))); }
};

// Blocks are numbered [sample, line, rows, rest].
template <class T>
__device__ __forceinline__ Place place_of(const Lines& lines, int64_t first_block, int64_t rests) {
  int64_t block = first_block + blockIdx.x;
  const int64_t rest = block % rests;
  block /= rests;
  const int64_t tiles = (lines.length + Tile<T>::kRows - 1) / Tile<T>::kRows, row = block % tiles * Tile<T>::kRows;
  block /= tiles;
  const int64_t first = block / lines.count * lines.count * lines.length + line_start(lines, block % lines.count);
  return {first, lines.step, lines.length, row, rest};
}

// to[i][c] = map[pixel start + i of the line][channel + c], 0 outside; the map is [N P][channels].
template <class T, int kPixels, int kWidth, int kStride>
__device__ __forceinline__ void load_tile(T* to, const T* map, const Place& place, int64_t start, int64_t channels,
                                          int64_t channel) {
  constexpr int kVector = kVectorWidth<T>, kThreads = Tile<T>::kThreads;
  constexpr int kPerPixel = kWidth / kVector, kPixelsAtOnce = kThreads / kPerPixel;
  static_assert(kThreads % kPerPixel == 0 && kPixels % kPixelsAtOnce == 0);
  const int first = threadIdx.x / kPerPixel, c = threadIdx.x % kPerPixel * kVector;
  const int pixels = place.left(start, kPixels), width = int(min(channels - channel - c, int64_t(kVector)));
  const T* from = map + place.pixel(start + first) * channels + channel + c;
  const int64_t stride = kPixelsAtOnce * place.step * channels;
  to += first * kStride + c;
  if (channels % kVector == 0 && misalignment(map) == 0) {
#pragma unroll
    for (int i = 0; i < kPixels; i += kPixelsAtOnce) {
      Vector<T, kVector> vector{};
      if (first + i < pixels && width > 0) vector = load<kVector>(from);
      store(to + i * kStride, vector);
      from += stride;
    }
  } else {
#pragma unroll 1
    for (int i = 0; i < kPixels; i += kPixelsAtOnce) {
      const int inside = first + i < pixels ? width : 0;
#pragma unroll 1
      for (int k = 0; k < kVector; ++k) to[i * kStride + k] = k < inside ? from[k] : narrow<T>(0);
      from += stride;
    }
  }
}

template <class T, bool kTermsInside, int kStrideA, int kStrideB, int kCount>
__device__ __forceinline__ void multiply_on_tensor_cores(float (&total)[2][kCount], const T* a, const T* b, int terms,
                                                         int columns) {
  const int lane = threadIdx.x % 32, row = lane % 8, second = lane / 8 % 2 * 8, third = lane / 16 * 8;
  const T* const a_row = a + (row + second) * kStrideA + third;
  const T* const b_row = kTermsInside ? b + (row + third) * kStrideB + second : b + (row + second) * kStrideB + third;
#pragma unroll 1
  for (int term = 0; term < terms; term += 16) {
    uint32_t a_pairs[4];
    load_matrices<false>(a_pairs, a_row + term);
#pragma unroll
    for (int c = 0; c < kCount; c += 4) {  // 16 columns
      if (4 * c >= columns) continue;
      uint32_t b_pairs[4];
      load_matrices<!kTermsInside>(b_pairs,
                                   kTermsInside ? b_row + 4 * c * kStrideB + term : b_row + term * kStrideB + 4 * c);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = c + 2 * half;
        float sums[4] = {total[0][at], total[0][at + 1], total[1][at], total[1][at + 1]};
        const uint32_t b_half[2] = {b_pairs[2 * half], b_pairs[2 * half + 1]};
        mma_m16n8k16<T>(sums, a_pairs, b_half);
        total[0][at] = sums[0], total[0][at + 1] = sums[1], total[1][at] = sums[2], total[1][at + 1] = sums[3];
      }
    }
  }
}

// total[row][column] += sum over terms of a[row][term] b, where b is [column][term] (kTermsInside) or [term][column].
// Rows, terms and columns beyond those given are zero, and may be left out.
template <class T, bool kTermsInside, int kStrideA, int kStrideB, int kThreadRows, int kCount>
__device__ __forceinline__ void multiply(acc_type<T> (&total)[kThreadRows][kCount], const T* a, const T* b, int rows,
                                         int terms, int columns) {
  using acc_t = acc_type<T>;
  if (int(threadIdx.x / 32 * 16) >= rows) return;
  if constexpr (Tile<T>::kTensorCores) {
    if (has_mma_m16n8k16()) {
      const T* const warp_a = a + threadIdx.x / 32 * 16 * kStrideA;
      return multiply_on_tensor_cores<T, kTermsInside, kStrideA, kStrideB>(total, warp_a, b, terms, columns);
    }
  }
  constexpr int kStep = sizeof(T) == 8 ? 2 : 4;  // terms in a load: 16 bytes, half of that for 16-bit types
#pragma unroll 1
  for (int term = 0; term < terms; term += kStep) {
    Vector<T, kStep> a_terms[kThreadRows];
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) a_terms[r] = load<kStep>(a + Tile<T>::row_of(r) * kStrideA + term);
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      const int column = Tile<T>::column_of(c);
      acc_t b_terms[kStep];
      if constexpr (kTermsInside) {
        const auto vector = load<kStep>(b + column * kStrideB + term);
#pragma unroll
        for (int k = 0; k < kStep; ++k) b_terms[k] = vector.get(k);
      } else {
#pragma unroll
        for (int k = 0; k < kStep; ++k) b_terms[k] = widen(b[(term + k) * kStrideB + column]);
      }
#pragma unroll
      for (int k = 0; k < kStep; ++k)
#pragma unroll
        for (int r = 0; r < kThreadRows; ++r) total[r][c] += a_terms[r].get(k) * b_terms[k];
    }
  }
}

// products[i][j] = sum_c a[pixel place.row + i][c] b[pixel column + j][c]. Overwrites the tiles of rows and columns;
// ends with a barrier.
template <class T>
__device__ __forceinline__ void multiply_pixels(typename Tile<T>::Products& products, typename Tile<T>::Shared& shared,
                                                const T* a, const T* b, const Place& place, int64_t column,
                                                int64_t channels) {
  using Tile = criss_cross::Tile<T>;
#pragma unroll
  for (int r = 0; r < Tile::kThreadRows; ++r)
#pragma unroll
    for (int c = 0; c < Tile::kThreadColumns; ++c) products[r][c] = 0;
#pragma unroll 1
  for (int64_t channel = 0; channel < channels; channel += Tile::kTerms) {
    load_tile<T, Tile::kRows, Tile::kTerms, Tile::kRowStride>(shared.rows, a, place, place.row, channels, channel);
    load_tile<T, Tile::kColumns, Tile::kTerms, Tile::kColumnStride>(shared.columns, b, place, column, channels,
                                                                    channel);
    __syncthreads();
    multiply<T, true, Tile::kRowStride, Tile::kColumnStride>(
        products, shared.rows, shared.columns, place.left(place.row, Tile::kRows),
        int(min(channels - channel, int64_t(Tile::kTerms))), place.left(column, Tile::kColumns));
    __syncthreads();
  }
}

// result += the weights in shared.rows times the tile in shared.factor, of which `channels` are left; begins and ends
// with a barrier.
template <class T>
__device__ __forceinline__ void apply_weights(typename Tile<T>::Result& result, const typename Tile<T>::Shared& shared,
                                              const Place& place, int64_t column, int64_t channels) {
  using Tile = criss_cross::Tile<T>;
  __syncthreads();
  multiply<T, false, Tile::kRowStride, Tile::kFactorStride>(
      result, shared.rows, shared.factor, place.left(place.row, Tile::kRows), place.left(column, Tile::kColumns),
      int(min(channels, int64_t(Tile::kChannels))));
  __syncthreads();
}

// visit(r, c, index in [N P][channels], whether whole) for the runs of kRun elements of a result that begin in the map.
template <class T, class Visit>
__device__ __forceinline__ void for_each_run(const Place& place, int64_t channels, int64_t channel, Visit visit) {
  using Tile = criss_cross::Tile<T>;
  const int rows = place.left(place.row, Tile::kRows), width = int(min(channels - channel, int64_t(Tile::kChannels)));
#pragma unroll
  for (int r = 0; r < Tile::kThreadRows; ++r) {
    if (Tile::row_of(r) >= rows) continue;
    const int64_t start = place.pixel(place.row + Tile::row_of(r)) * channels + channel;
#pragma unroll
    for (int c = 0; c < Tile::kThreadChannels; c += Tile::kRun) {
      const int column = Tile::column_of(c);
      if (column < width) visit(r, c, start + column, column + Tile::kRun <= width);
    }
  }
}

// Starts a result: what the passes before left, or zeros where this is the first.
template <class T>
__device__ __forceinline__ void load_result(typename Tile<T>::Result& result, const acc_type<T>* before,
                                            const Place& place, int64_t channels, int64_t channel) {
  using Tile = criss_cross::Tile<T>;
#pragma unroll
  for (int r = 0; r < Tile::kThreadRows; ++r)
#pragma unroll
    for (int c = 0; c < Tile::kThreadChannels; ++c) result[r][c] = 0;
  if (!before) return;
  const bool aligned = channels % Tile::kRun == 0;
  for_each_run<T>(place, channels, channel, [&](int r, int c, int64_t at, bool whole) {
    if (aligned) {
      const auto run = load<Tile::kRun>(before + at);
#pragma unroll
      for (int k = 0; k < Tile::kRun; ++k) result[r][c + k] = run.get(k);
    } else {
      result[r][c] = before[at];
      if (Tile::kRun == 2 && whole) result[r][c + Tile::kRun - 1] = before[at + 1];
    }
  });
}

// Stores a result in `to`, whose element type is T or that of sums.
template <class T, class Element>
__device__ __forceinline__ void store_result(Element* to, const typename Tile<T>::Result& result, const Place& place,
                                             int64_t channels, int64_t channel) {
  using Tile = criss_cross::Tile<T>;
  const bool aligned = channels % Tile::kRun == 0;
  for_each_run<T>(place, channels, channel, [&](int r, int c, int64_t at, bool whole) {
    if (aligned) {
      acc_type<T> values[Tile::kRun];
#pragma unroll
      for (int k = 0; k < Tile::kRun; ++k) values[k] = result[r][c + k];
      Vector<Element, Tile::kRun> run;
      run.set(values);
      store(to + at, run);
    } else {
      to[at] = narrow<Element>(result[r][c]);
      if (Tile::kRun == 2 && whole) to[at + 1] = narrow<Element>(result[r][c + Tile::kRun - 1]);
    }
  });
}

}  // namespace attnkernels::criss_cross
