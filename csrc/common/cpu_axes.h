// How the CPU bindings reduce maps over their pixels and over their channels in one pass: the results and the division
// among threads. The loops are in simd_axes.h. A is the accumulation type.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/cpu_work.h"
#include "common/gate.h"

namespace attnkernels {

// What becomes of the terms along an axis: their sum; with it their maximum, and the place of the first element that is
// equal to it, or how many are. One number each, in this order.
enum class Reduction : int { kNothing = 0, kSum = 1, kFirstMaximum = 2, kSharedMaximum = 3, kMaximum = 4 };

inline constexpr int kMostFields = 3;
constexpr int fields_of(Reduction kind) {
  constexpr int kFields[] = {0, 1, 3, 3, 2};
  return kFields[int(kind)];
}

// The results along one axis of a sample: an array for each of the numbers.
template <class A>
struct Fields {
  A* at[kMostFields];
};

// The same for all samples: those of sample n start at n stride + offset of the data.
template <class A>
struct Reduced {
  struct Field {
    A* data;
    int64_t stride, offset = 0;
  };
  Reduction kind = Reduction::kNothing;
  Field field[kMostFields] = {};

  Fields<A> of(int64_t n) const {
    Fields<A> result = {};
    for (int i = 0; i < fields_of(kind); ++i) result.at[i] = field[i].data + n * field[i].stride + field[i].offset;
    return result;
  }
};

namespace cpu {

// run(n, first, last, channels, pixels) for the rows of all samples: `channels`, which are reduced over pixels, and
// `pixels`, reduced over channels, are to be those of these rows. Where threads share a sample, join(kind, into, from,
// count) adds up what each of them found across its rows, in the order of the rows.
template <class A, class Run, class Join>
void reduce_axes(const MapShape& shape, int64_t bytes, const Reduced<A>& channels, const Reduced<A>& pixels,
                 const Run& run, const Join& join) {
  const int64_t samples = shape.samples, rows = shape.rows(), columns = shape.row_length();
  const Reduction kind = (shape.channels_last ? channels : pixels).kind;
  int64_t parts = threads_for(bytes);
  const bool alone = kind == Reduction::kNothing;  // a row's results are its own
  if (alone || parts == 1 || samples % parts == 0 || samples >= 4 * parts)
    return for_parts(parts, samples * rows, alone ? 1 : rows, [&](int64_t, int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t n = begin / rows, last = std::min(end, (n + 1) * rows);
        run(n, begin - n * rows, last - n * rows, channels.of(n), pixels.of(n));
        begin = last;
      }
    });
  parts = std::min(parts, rows);
  const int fields = fields_of(kind);
  std::vector<A> found(parts * fields * columns);
  // From column `begin` on.
  const auto of_part = [&](int64_t part, int64_t begin) {
    Fields<A> result = {};
    for (int i = 0; i < fields; ++i) result.at[i] = found.data() + (part * fields + i) * columns + begin;
    return result;
  };
  for (int64_t n = 0; n < samples; ++n) {
    for_parts(parts, rows, 1, [&](int64_t part, int64_t first, int64_t last) {
      if (shape.channels_last)
        run(n, first, last, of_part(part, 0), pixels.of(n));
      else
        run(n, first, last, channels.of(n), of_part(part, 0));
    });
    const Fields<A> results = (shape.channels_last ? channels : pixels).of(n);
    for_parts(parts, columns, 64, [&](int64_t, int64_t begin, int64_t end) {
      const Fields<A> sum = of_part(0, begin);
      for (int64_t part = 1; part < parts; ++part) join(kind, sum, of_part(part, begin), end - begin);
      for (int i = 0; i < fields; ++i) std::copy(sum.at[i], sum.at[i] + (end - begin), results.at[i] + begin);
    });
  }
}

}  // namespace cpu
}  // namespace attnkernels
