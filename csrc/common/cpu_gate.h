// How the CPU bindings run ops that scale maps by gates: the division among threads and the order of the passes. The
// passes over the maps are in simd_gate.h. A is the accumulation type.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/cpu_work.h"
#include "common/gate.h"

namespace attnkernels {

// attnkernels/ops/squeeze_excite/schema.py has the same values.
enum class InputActivation : int { kNone = 0, kRelu = 1, kSilu = 2, kHardSwish = 3 };

// What is done to x first, in place: activation(x scale[c] + shift[c]).
template <class A>
struct Prologue {
  const A *scale, *shift;  // null: the activation alone
  InputActivation activation;
  bool changes_x() const { return scale || activation != InputActivation::kNone; }
};

// All maps are dense in the layout of the shape.
template <class T>
struct GateForward {
  using A = Accumulator<T>;
  MapShape shape;
  OutputActivation output_activation;
  bool stream;           // y is large: written past the caches
  Prologue<A> prologue;  // where it changes x, y is x, and stream is false
  const T *x, *residual;
  T* y;
  A *means, *gates;  // [C] of the first sample; those of the next one are `columns` further on
  int64_t columns;
};

template <class T>
struct GateBackward {
  using A = Accumulator<T>;
  MapShape shape;
  bool stream;
  const T *grad_y, *x, *y;  // y: null without output activation
  const A* gates;           // as in the forward
  int64_t columns;
  T *grad_x, *grad_residual;   // null: not wanted
  A *grad_gates, *grad_means;  // [N, C]; the second over H W
};

// The passes of one level, on the rows [first, last) of sample n.
template <class T>
struct GatePasses {
  using A = Accumulator<T>;
  void (*pool)(const GateForward<T>&, int64_t n, int64_t first, int64_t last, A* sums);
  void (*scale)(const GateForward<T>&, int64_t n, int64_t first, int64_t last);
  void (*pool_gradients)(const GateBackward<T>&, int64_t n, int64_t first, int64_t last, A* sums);
  void (*scale_gradients)(const GateBackward<T>&, int64_t n, int64_t first, int64_t last);
};

namespace cpu {

// Of the level in force.
template <class T>
const GatePasses<T>& gate_passes();  // gate_cpu.cpp

// ---- threads; `parts` is how many of them share the samples [n0, n1)

// f(n, first, last, sums) for the rows of these samples: sums [columns] of a sample, those of the next one being
// `stride` further on, are to be those of all its rows.
template <class A, class F>
void sum_rows(const MapShape& shape, int64_t n0, int64_t n1, int64_t parts, A* sums, int64_t stride, int64_t columns,
              const F& f) {
  const int64_t rows = shape.rows();
  const bool whole_samples = parts == 1 || n1 - n0 >= parts;
  if (whole_samples || !shape.channels_last) {
    // A row that is a plane has sums of its own: threads may share a sample.
    return for_parts(parts, (n1 - n0) * rows, whole_samples ? rows : 1, [&](int64_t, int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t i = begin / rows, last = std::min(end, (i + 1) * rows);
        f(n0 + i, begin - i * rows, last - i * rows, sums + (n0 + i) * stride);
        begin = last;
      }
    });
  }
  std::vector<A> partial(parts * columns);
  for (int64_t n = n0; n < n1; ++n) {
    for_parts(parts, rows, 1,
              [&](int64_t part, int64_t first, int64_t last) { f(n, first, last, partial.data() + part * columns); });
    for (int64_t c = 0; c < columns; ++c) {
      A sum = 0;
      for (int64_t part = 0; part < parts; ++part) sum += partial[part * columns + c];
      sums[n * stride + c] = sum;
    }
  }
}

// f(n, first, last) for the rows of these samples, those of a sample in one call where one thread does them. The samples
// go backwards: a pass over data larger than the cache finds what the pass before it, which went forwards, read last.
template <class F>
void for_rows_backwards(const MapShape& shape, int64_t n0, int64_t n1, int64_t parts, const F& f) {
  const int64_t rows = shape.rows();
  for_parts(parts, (n1 - n0) * rows, 1, [&](int64_t, int64_t begin, int64_t end) {
    while (end > begin) {
      const int64_t i = (end - 1) / rows, first = std::max(begin, i * rows);
      f(n0 + i, first - i * rows, end - i * rows);
      end = first;
    }
  });
}

// Calls group(n0, n1, parts) for groups of samples that fit the cache, which go to the threads whole (the weights are
// read once per group); a few large samples are each shared by all threads, one after the other.
template <class Group>
void for_groups(int64_t samples, int64_t sample_bytes, int64_t weight_bytes, const Group& group) {
  const int64_t threads = threads_for(samples * sample_bytes);
  // Uneven shares are worse than a barrier per pass.
  if (threads > 1 && (samples < threads || (samples % threads && samples < 4 * threads))) {
    for (int64_t n = 0; n < samples; ++n) group(n, n + 1, threads);
    return;
  }
  // A tile of the layers takes 4 samples: where the weights are no small part of the traffic, reading them less often is
  // worth more than a group that stays in the L2.
  const int64_t fitting = cache_bytes() / std::max<int64_t>(sample_bytes, 1);
  const int64_t wanted = 4 * weight_bytes >= sample_bytes ? std::max<int64_t>(fitting, 8) : fitting;
  const int64_t size = std::max<int64_t>(1, std::min(wanted, (samples + threads - 1) / threads));
  const int64_t groups = (samples + size - 1) / size;
  for_parts(std::min(threads, groups), groups, 1, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t g = first; g < last; ++g) group(g * size, std::min(samples, (g + 1) * size), int64_t(1));
  });
}

// ---- the order of the passes

// The means, the op's own gates(n0, n1, parts) from them, the map.
template <class T, class Gates>
void run(const GateForward<T>& f, int64_t weight_bytes, const Gates& gates) {
  const GatePasses<T>& passes = gate_passes<T>();
  const int64_t channels = f.shape.channels, sample_bytes = channels * f.shape.pixels * int64_t(sizeof(T));
  for_groups(f.shape.samples, sample_bytes, weight_bytes, [&](int64_t n0, int64_t n1, int64_t parts) {
    sum_rows(f.shape, n0, n1, parts, f.means, f.columns, channels,
             [&](int64_t n, int64_t first, int64_t last, auto* sums) { passes.pool(f, n, first, last, sums); });
    for (int64_t n = n0; n < n1; ++n)
      for (int64_t c = 0; c < channels; ++c) f.means[n * f.columns + c] /= Accumulator<T>(f.shape.pixels);
    gates(n0, n1, parts);
    for_rows_backwards(f.shape, n0, n1, parts,
                       [&](int64_t n, int64_t first, int64_t last) { passes.scale(f, n, first, last); });
  });
}

// The gates' gradients and what the op makes of them, grad_means(n0, n1, parts), where anything but the residual's
// gradient is wanted; the map.
template <class T, class GradMeans>
void run(const GateBackward<T>& b, bool through_gates, int64_t weight_bytes, const GradMeans& grad_means) {
  const GatePasses<T>& passes = gate_passes<T>();
  const int64_t channels = b.shape.channels, map_bytes = channels * b.shape.pixels * int64_t(sizeof(T));
  // x passes through the cache between the two uses of grad_y and y.
  for_groups(b.shape.samples, map_bytes * (b.y ? 3 : 2), weight_bytes, [&](int64_t n0, int64_t n1, int64_t parts) {
    if (through_gates) {
      sum_rows(
          b.shape, n0, n1, parts, b.grad_gates, channels, channels,
          [&](int64_t n, int64_t first, int64_t last, auto* sums) { passes.pool_gradients(b, n, first, last, sums); });
      grad_means(n0, n1, parts);
    }
    if (b.grad_x || b.grad_residual)
      for_rows_backwards(b.shape, n0, n1, parts,
                         [&](int64_t n, int64_t first, int64_t last) { passes.scale_gradients(b, n, first, last); });
  });
}

}  // namespace cpu
}  // namespace attnkernels
