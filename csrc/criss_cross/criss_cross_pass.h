// How the CPU kernels walk over the lines of an axis, and the memory that they work in; the same at every level.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/simd.h"
#include "criss_cross/criss_cross.h"

namespace attnkernels::criss_cross {

// Elements between the rows of a matrix in scratch memory: whole cache lines, so that vectors may run past the last
// column, and an odd number of them, so that a column of the matrix spreads over all sets of the L1 cache.
template <class T>
constexpr int64_t padded(int64_t columns) {
  constexpr int64_t line = 64 / sizeof(T);
  return ((columns + line - 1) / line | 1) * line;
}

// One pass over the lines of an axis, in all samples.
struct Pass {
  Lines lines;
  bool first, last;  // the first writes, the others add to what is there; the last converts the sums
  int64_t count;     // lines

  Pass(const Shape& shape, Axis axis, bool is_first)
      : lines(lines_along(shape, axis)),
        first(is_first),
        last(axis == Axis::kWidth),
        count(shape.samples * lines.count) {}

  // The first pixel of a line, counted over all samples; the others follow at lines.step.
  int64_t start(int64_t line) const {
    return line / lines.count * lines.count * lines.length + line_start(lines, line % lines.count);
  }

  // Channels of a map that are in scratch memory at a time: 256 KiB, so that the three maps of a backward pass stay in
  // an L2 cache of 1 MiB; at least two cache lines, whole ones.
  int64_t slab(int64_t channels, int64_t element_size) const {
    const int64_t fits = (256 << 10) / (lines.length * element_size);
    return std::min(channels, std::max<int64_t>(fits / 16 * 16, 32));
  }
};

// Calls body(pass) for the passes over a map in their order.
template <class Body>
void for_each_pass(const Shape& shape, const Body& body) {
  bool first = true;
  for (Axis axis : {Axis::kDepth, Axis::kHeight, Axis::kWidth}) {
    if (axis != Axis::kWidth && lines_along(shape, axis).length == 1) continue;
    body(Pass(shape, axis, first));
    first = false;
  }
}

// Lays matrices out in a block of memory; with no block, only counts.
template <class T>
struct Layout {
  T* block;
  int64_t used = 0;

  T* take(int64_t rows, int64_t row) {
    T* start = block ? block + used : nullptr;
    used += rows * row;
    return start;
  }
};

// A matrix [length][columns] of what the pixels of a line have.
template <class T>
struct LineMatrix {
  T* data;
  int64_t row;

  LineMatrix(Layout<T>& layout, const Pass& pass, int64_t columns) : row(padded<T>(columns)) {
    data = layout.take(pass.lines.length, row);
  }
};

// What a thread works in, for any of the kernels; a kernel without a query or without a value has 0 channels there.
template <class T>
struct Scratch {
  Layout<T> layout;
  int64_t slab;                    // channels of value held at a time
  int64_t square;                  // row of a matrix [length][length]
  LineMatrix<T> query, key;        // [pixel][Cq]
  LineMatrix<T> probability;       // [key][query], in the affinity kernels [query][key]
  LineMatrix<T> value, result;     // [pixel][slab], result also [pixel][Cq]
  LineMatrix<T> grad_out;          // [pixel][slab], backward only
  LineMatrix<T> grad_probability;  // as probability, backward only
  T* transposed;                   // [Cq or slab][pixel]
  T* old_scale;                    // [pixel], forward: what the sum so far is multiplied by
  T *statistic, *other_statistic;  // [pixel]
  T* ones;                         // [pixel]
  BFloat16Pair *left, *right;      // the factors of a product of bfloat16; null where products are of T

  Scratch(T* block, const Shape& shape, const Pass& pass, bool backward, bool of_pairs)
      : layout{block},
        slab(pass.slab(shape.value_channels, sizeof(T))),
        square(padded<T>(pass.lines.length)),
        query(layout, pass, shape.query_channels),
        key(layout, pass, shape.query_channels),
        probability(layout, pass, pass.lines.length),
        value(layout, pass, slab),
        result(layout, pass, std::max(backward ? shape.query_channels : 0, slab)),
        grad_out(layout, pass, backward ? slab : 0),
        grad_probability(layout, pass, backward ? pass.lines.length : 0),
        transposed(layout.take(std::max(shape.query_channels, slab), square)),
        old_scale(layout.take(1, square)),
        statistic(layout.take(1, square)),
        other_statistic(layout.take(1, square)),
        ones(layout.take(1, square)),
        left(nullptr),
        right(nullptr) {
    if (of_pairs) {
      const int64_t length = pass.lines.length, pixels = (length + 1) / 2;  // pairs of pixels, of channels
      const int64_t widest = std::max(shape.query_channels, slab), channels = (widest + 1) / 2;
      left = take_pairs(length, std::max(padded<T>(channels), square));
      right = take_pairs(std::max(channels, pixels), std::max(padded<T>(widest), square));
    }
    if (block) std::fill_n(ones, square, T(1));
  }

 private:
  BFloat16Pair* take_pairs(int64_t rows, int64_t row) {
    static_assert(sizeof(BFloat16Pair) <= sizeof(T));
    return reinterpret_cast<BFloat16Pair*>(layout.take(rows, row));
  }
};

}  // namespace attnkernels::criss_cross
