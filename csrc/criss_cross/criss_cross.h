// The arguments of the criss_cross kernels and the integers of their schemas; shared by every C++ backend, no torch.
#pragma once
#include <cstdint>

namespace attnkernels::criss_cross {

// attnkernels/ops/criss_cross/schema.py has the same values.
// Bit i of `needs` stands for input i of the forward.
enum Needs : int { kNeedsQuery = 1, kNeedsKey = 2, kNeedsValue = 4 };
enum AggregateNeeds : int { kNeedsAffinity = 1, kNeedsAggregated = 2 };

// Feature maps are dense in one layout: [N, C, D, H, W] or, channels_last, [N, D, H, W, C]. Maps of two dimensions have
// D = 1; the affinity functions take only those, their affinity being such a map with height + width - 1 channels.
struct Shape {
  int64_t samples, query_channels, value_channels, depth, height, width;
  bool channels_last;

  int64_t pixels() const { return depth * height * width; }
  int64_t affinity_channels() const { return height + width - 1; }
};

// The lines of pixels along one axis of a map. A pixel attends to its line along every axis; it counts itself on its
// row (kWidth) and skips itself elsewhere. Passes run in the order kDepth, kHeight, kWidth: the first writes, later
// ones add, so that a result never needs atomics. An axis of length 1 other than kWidth has no keys, hence no pass.
enum class Axis { kDepth, kHeight, kWidth };

struct Lines {
  int64_t count;      // lines per sample
  int64_t length;     // pixels on a line
  int64_t step;       // from a pixel to the next on the line, in pixels
  bool skips_itself;  // whether a pixel is left out of its own keys
};

inline Lines lines_along(const Shape& shape, Axis axis) {
  const int64_t pixels = shape.pixels();
  switch (axis) {
    case Axis::kDepth:
      return {shape.height * shape.width, shape.depth, shape.height * shape.width, true};
    case Axis::kHeight:
      return {shape.depth * shape.width, shape.height, shape.width, true};
    default:
      return {pixels / shape.width, shape.width, 1, false};
  }
}

// The first pixel of a line, within its sample.
constexpr int64_t line_start(const Lines& lines, int64_t line) {
  return line / lines.step * lines.step * lines.length + line % lines.step;
}

// Sums are held in the accumulators' type from the first pass to the last: `partial` members are workspaces of the
// shape and layout of the result, and the result itself where its type is the accumulators'.

template <class T, class Accumulator>
struct AttentionForward {
  Shape shape;
  const T* query;            // [N, Cq, D, H, W]
  const T* key;              // [N, Cq, D, H, W]
  const T* value;            // [N, C, D, H, W]
  T* out;                    // [N, C, D, H, W]
  Accumulator* partial_out;  // the average over the keys so far
  Accumulator* log_sum_exp;  // [N, D, H, W]; between the passes: the largest energy so far
  Accumulator* sum;          // [N, D, H, W] workspace: sum of exp(energy - largest energy so far)
};

// Gradients that are not wanted are null.
template <class T, class Accumulator>
struct AttentionBackward {
  Shape shape;
  const T* grad_out;               // [N, C, D, H, W]
  const T* query;                  // [N, Cq, D, H, W]
  const T* key;                    // [N, Cq, D, H, W]
  const T* value;                  // [N, C, D, H, W]
  const T* out;                    // [N, C, D, H, W]
  const Accumulator* log_sum_exp;  // [N, D, H, W]
  Accumulator* delta;              // [N, D, H, W] workspace: sum_c grad_out out
  T *grad_query, *grad_key, *grad_value;
  Accumulator *partial_grad_query, *partial_grad_key, *partial_grad_value;
};

template <class T>
struct Affinity {
  Shape shape;
  const T* query;  // [N, Cq, H, W]
  const T* key;    // [N, Cq, H, W]
  T* affinity;     // [N, H + W - 1, H, W]
};

template <class T, class Accumulator>
struct AffinityBackward {
  Shape shape;
  const T* grad_affinity;  // [N, H + W - 1, H, W]
  const T* query;          // [N, Cq, H, W]
  const T* key;            // [N, Cq, H, W]
  T *grad_query, *grad_key;
  Accumulator *partial_grad_query, *partial_grad_key;
};

template <class T, class Accumulator>
struct Aggregate {
  Shape shape;
  const T* affinity;  // [N, H + W - 1, H, W]
  const T* value;     // [N, C, H, W]
  T* out;             // [N, C, H, W]
  Accumulator* partial_out;
};

template <class T, class Accumulator>
struct AggregateBackward {
  Shape shape;
  const T* grad_out;  // [N, C, H, W]
  const T* affinity;  // [N, H + W - 1, H, W]
  const T* value;     // [N, C, H, W]
  T *grad_affinity, *grad_value;
  Accumulator* partial_grad_value;
};

}  // namespace attnkernels::criss_cross
