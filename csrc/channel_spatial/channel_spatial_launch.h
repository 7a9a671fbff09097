// The CUDA launcher of the channel_spatial operators, on pointers, and its plan; no CUDA and no torch header.
#pragma once
#include "channel_spatial/channel_spatial.h"
#include "common/matrix_plan.h"

namespace attnkernels::channel_spatial {

// Passes over the maps. kProject: the spatial gate, and means where they are wanted; maxima are of kPool alone.
enum class Operator { kPool, kProject, kStatistics, kScale, kGradGates, kGradChannelGate, kGradX, kGradConcurrent };

// The tensors of a call by their names in attnkernels/ops/channel_spatial/operators.py; null: not there, or not needed.
// Maps, spatial_weight, spatial_bias and grad_weight are of type DataType, all others of the accumulation type (double
// for double, float for the others).
struct Tensors {
  const void *grad_y = nullptr, *x = nullptr;
  const void *spatial_weight = nullptr, *spatial_bias = nullptr, *channel_gate = nullptr, *spatial_gate = nullptr;
  const void *grad_statistics = nullptr, *statistics = nullptr, *marks = nullptr;
  const void *grad_pooled = nullptr, *pooled = nullptr, *pool_marks = nullptr;
  const void *grad_means = nullptr, *grad_spatial_gate = nullptr;
  // Results, each of several operators: y, grad_x; pooled, grad_channel_gate, grad_weight; statistics, the spatial gate or
  // its gradient; the marks of either, where they are wanted.
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

// Blocks of a pass for which a multiprocessor has registers; its kernel is compiled for that. Four of 64 registers hide
// more of the memory's latency than three of 80 (32x256x56x56: pool 24.2 : 31.5 us, statistics 29.4 : 30.5, grad_gates
// 41.7 : 48.8, grad_concurrent 58.5 : 68.2, all on an H100), where the compiler does not spill for them.
constexpr int resident_blocks(Operator op, int64_t element_bytes, bool channels_last, bool counts) {
  switch (op) {
    case Operator::kGradGates:
    case Operator::kScale:
      return 4;
    case Operator::kPool:
      return counts && channels_last ? 3 : 4;
    case Operator::kStatistics:
      return counts && !channels_last ? 3 : 4;
    case Operator::kGradChannelGate:
      return channels_last ? 4 : 3;
    case Operator::kGradConcurrent:
      return element_bytes > 2 || channels_last ? 3 : 4;
    default:
      return 3;
  }
}

inline matrix::Plan choose(DataType type, const Shape& shape, const Call& call, const gate::Limits& limits,
                           const matrix::Tuning& tuning = {}) {
  const Tensors& t = call.tensors;
  const int with_maxima = t.found_marks ? 3 : 2;
  const matrix::Pass pass{.maps = call.op >= Operator::kScale ? 2 : 1,
                          .by_channel = !t.by_channel                               ? 0
                                        : call.op == Operator::kPool && call.maxima ? with_maxima
                                                                                    : 1,
                          .by_pixel = !t.by_pixel                        ? 0
                                      : call.op == Operator::kStatistics ? with_maxima
                                                                         : 1,
                          .over_samples = call.op == Operator::kGradConcurrent,
                          .many_pixel_numbers = call.op == Operator::kGradChannelGate,
                          .resident = resident_blocks(call.op, element_bytes(type), shape.channels_last, call.share)};
  // Against the order of the pass that usually comes before.
  const bool backwards = call.op == Operator::kStatistics || call.op == Operator::kGradChannelGate ||
                         call.op == Operator::kGradConcurrent ||
                         (call.op == Operator::kScale && call.merge != Merge::kProduct);
  return matrix::choose(type, shape, pass, {t.grad_y, t.x, t.map}, backwards, limits, tuning);
}

// Launches on a stream (a cudaStream_t); without samples, nothing. scratch: accumulation type [plan.scratch()].
Result run(DataType type, const Call& call, const matrix::Plan& plan, void* scratch, void* stream);

}  // namespace attnkernels::channel_spatial
