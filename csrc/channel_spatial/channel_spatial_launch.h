// The CUDA launcher of the channel_spatial operators, on pointers, and its plan; no CUDA and no torch header.
#pragma once
#include "channel_spatial/channel_spatial.h"
#include "common/matrix_plan.h"

namespace attnkernels::channel_spatial {

// Passes over the maps. kProject: logits, and means where they are wanted; maxima are of kPool alone.
enum class Operator { kPool, kProject, kStatistics, kScale, kGradGates, kGradChannelGate, kGradX, kGradConcurrent };

// The tensors of a call by their names in attnkernels/ops/channel_spatial/operators.py; null: not there, or not needed.
// Maps, spatial_weight, spatial_bias and grad_weight are of type DataType, all others of the accumulation type (double
// for double, float for the others).
struct Tensors {
  const void *grad_y = nullptr, *x = nullptr;
  const void *spatial_weight = nullptr, *spatial_bias = nullptr, *channel_gate = nullptr, *spatial_gate = nullptr;
  const void *grad_statistics = nullptr, *statistics = nullptr, *marks = nullptr;
  const void *grad_pooled = nullptr, *pooled = nullptr, *pool_marks = nullptr;
  const void *grad_means = nullptr, *grad_logits = nullptr;
  // Results, each of several operators: y, grad_x; pooled, grad_channel_gate, grad_weight; statistics, logits,
  // grad_spatial_gate; the marks of either.
  void *map = nullptr, *by_channel = nullptr, *by_pixel = nullptr, *found_marks = nullptr;
};

struct Call {
  Operator op;
  Tensors tensors;
  bool maxima = false;            // pooled and grad_pooled are [N, 2, C]
  Merge merge = Merge::kProduct;  // as CheckedScale and others leave it where there is one gate alone
  bool skip = false, share = false;
};

// The limits of the current device.
Result limits(gate::Limits& found);

inline matrix::Plan choose(DataType type, const Shape& shape, const Call& call, const gate::Limits& limits,
                           const matrix::Tuning& tuning = {}) {
  const Tensors& t = call.tensors;
  const matrix::Pass pass{.maps = call.op >= Operator::kScale ? 2 : 1,
                          .by_channel = !t.by_channel                               ? 0
                                        : call.op == Operator::kPool && call.maxima ? 3
                                                                                    : 1,
                          .by_pixel = !t.by_pixel                        ? 0
                                      : call.op == Operator::kStatistics ? 3
                                                                         : 1,
                          .over_samples = call.op == Operator::kGradConcurrent};
  // Against the order of the pass that usually comes before.
  const bool backwards = call.op == Operator::kStatistics || call.op == Operator::kGradChannelGate ||
                         call.op == Operator::kGradConcurrent ||
                         (call.op == Operator::kScale && call.merge != Merge::kProduct);
  return matrix::choose(type, shape, pass, {t.grad_y, t.x, t.map}, backwards, limits, tuning);
}

// Launches on a stream (a cudaStream_t); without samples, nothing. scratch: accumulation type [plan.scratch()].
Result run(DataType type, const Call& call, const matrix::Plan& plan, void* scratch, void* stream);

}  // namespace attnkernels::channel_spatial
