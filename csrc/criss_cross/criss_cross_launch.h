// The CUDA launchers of criss_cross, on pointers; no CUDA and no torch header.
//
// Maps are channels_last, `shape.channels_last` being ignored, and void stands for the type of DataType; accumulators
// are double for double and float for the others. Partial sums are held in the result itself for float and double, and
// their pointers ignored. All launches are on a stream (a cudaStream_t); results without elements launch nothing.
#pragma once
#include "common/cuda_launch.h"
#include "criss_cross/criss_cross.h"

namespace attnkernels::criss_cross {

// The passes over a map: see Axis.
inline int count_passes(const Shape& shape) { return 1 + (shape.depth > 1) + (shape.height > 1); }

// Whether a result of 16-bit type needs a workspace for its partial sums.
inline bool needs_partial(DataType type, const Shape& shape) {
  return count_passes(shape) > 1 && (type == DataType::kHalf || type == DataType::kBFloat16);
}

// Accumulators in the workspace `sum` of the forward: two statistics [N, P] from a pass to the next, which reads them
// while the following are written.
inline int64_t forward_statistics(const Shape& shape) {
  return (count_passes(shape) - 1) * 2 * shape.samples * shape.pixels();
}

// How a pass is computed: by tiles of a line's pixels, as everything can be, or by whole lines on tensor cores.
struct ForwardPlan {
  int line_channels;  // value channels of a block that has a whole line; 0: tiles
  bool dependent;     // whether passes over lines start before the pass before has ended
};
struct BackwardPlan {
  bool by_lines, dependent;
};

// The plans for the current device.
ForwardPlan choose_forward(DataType type, const AttentionForward<void, void>& arguments);
BackwardPlan choose_backward(DataType type, const AttentionBackward<void, void>& arguments);
// Whether whole lines can be had there.
bool fits_lines(DataType type, const AttentionForward<void, void>& arguments, int line_channels);
bool fits_lines(DataType type, const AttentionBackward<void, void>& arguments);

Result attention(DataType type, const AttentionForward<void, void>& arguments, const ForwardPlan& plan, void* stream);
inline Result attention(DataType type, const AttentionForward<void, void>& arguments, void* stream) {
  return attention(type, arguments, choose_forward(type, arguments), stream);
}
Result attention_backward(DataType type, const AttentionBackward<void, void>& arguments, const BackwardPlan& plan,
                          void* stream);
inline Result attention_backward(DataType type, const AttentionBackward<void, void>& arguments, void* stream) {
  return attention_backward(type, arguments, choose_backward(type, arguments), stream);
}
Result affinity(DataType type, const Affinity<void>& arguments, void* stream);
Result affinity_backward(DataType type, const AffinityBackward<void, void>& arguments, void* stream);
Result aggregate(DataType type, const Aggregate<void, void>& arguments, void* stream);
Result aggregate_backward(DataType type, const AggregateBackward<void, void>& arguments, void* stream);

}  // namespace attnkernels::criss_cross
