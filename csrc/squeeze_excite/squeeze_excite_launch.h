// The CUDA launchers of squeeze_excite, on pointers; no CUDA and no torch header.
#pragma once
#include <cstddef>

#include "common/cuda_launch.h"
#include "squeeze_excite/squeeze_excite.h"
#include "squeeze_excite/squeeze_excite_plan.h"

namespace attnkernels::squeeze_excite {

// Tensors of type DataType; "sum" marks those of the accumulation type (double for double, float for the others).
struct ForwardTensors {
  const void *x, *reduce_weight, *reduce_bias, *expand_weight, *expand_bias, *residual;  // null: not given
  void* y;
  void* saved;    // sum [N, 2 C + rd]
  void* scratch;  // sum [forward_scratch()]
};

struct BackwardTensors {
  const void *grad_y, *x, *y, *reduce_weight, *expand_weight, *saved;  // y: null without output activation
  void *grad_x, *grad_residual;                                        // null: not needed
  void *grad_reduce_weight, *grad_reduce_bias, *grad_expand_weight, *grad_expand_bias;  // null: not needed
  void* scratch;                                                                        // sum [backward_scratch()]
};

// The limits of the current device.
Result limits(Limits& found);

inline Plan choose_forward(DataType type, const Shape& shape, const Limits& limits, const Tuning& tuning = {}) {
  return make_plan(shape, element_size(type), limits, tuning, false);
}
inline Plan choose_backward(DataType type, const Shape& shape, const Limits& limits, const Tuning& tuning = {}) {
  return make_plan(shape, element_size(type), limits, tuning, true);
}

// Numbers of scratch that a plan needs, in the accumulation type: partial sums, then what the layers give.
inline int64_t forward_scratch(const Shape& shape, const Plan& plan) {
  return shape.samples * (plan.partial_sums(shape) + shape.hidden);
}
inline int64_t backward_scratch(const Shape& shape, const Plan& plan) {
  const int64_t means = plan.layer_in_map ? 0 : shape.channels;
  return shape.samples * (plan.partial_sums(shape) + shape.channels + shape.hidden + means);
}

// Launch on a stream (a cudaStream_t); shapes with no sample, channel or pixel launch nothing.
Result forward(DataType type, const Shape& shape, const Plan& plan, const ForwardTensors& tensors, void* stream);
// Weight gradients are sums over samples in their order.
Result backward(DataType type, const Shape& shape, const Plan& plan, const BackwardTensors& tensors, void* stream);

}  // namespace attnkernels::squeeze_excite
