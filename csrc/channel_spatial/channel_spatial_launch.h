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
  const void *spatial_weight = nullptr, *spatial_bias = nullptr;
  const void *channel_gate = nullptr, *spatial_gate = nullptr;
  const void *grad_statistics = nullptr, *statistics = nullptr, *marks = nullptr;
  const void *grad_pooled = nullptr, *pooled = nullptr, *pool_marks = nullptr;
  const void *grad_means = nullptr, *grad_logits = nullptr;
  // Results.
  void* map = nullptr;                                       // y, grad_x
  void *channels_found = nullptr, *channel_marks = nullptr;  // pooled; grad_channel_gate; grad_weight
  void *pixels_found = nullptr, *pixel_marks = nullptr;      // statistics; logits; grad_spatial_gate
  void* scratch = nullptr;                                   // accumulation type [scratch_numbers()]
};

struct Call {
  Operator op;
  Tensors tensors;
  Pools pools = Pools::kNoPools;  // with maxima, also of GRAD_X: grad_pooled is [N, 2, C]
  Merge merge = Merge::kProduct;  // what is left of it where there is one gate alone: CheckedScale and so on
  bool skip = false, share = false;

  bool maxima() const { return pools >= Pools::kMeansAndMaxima; }
  // Numbers that a sum over pixels, by channel, and over channels, by pixel, consists of; 0: there is none.
  int by_channel() const { return !tensors.channels_found ? 0 : op == Operator::kPool && maxima() ? 3 : 1; }
  int by_pixel() const { return !tensors.pixels_found ? 0 : op == Operator::kStatistics ? 3 : 1; }
};

// Numbers that measurements will decide: these are from reasoning. Blocks of a pass on each multiprocessor: sums as many
// as run at once; maps more, so that blocks that come later fill the gaps.
struct Tuning {
  int64_t sum_blocks = 4, map_blocks = 8;
  int64_t streamed_part = 2;  // maps that take more than 1 / so much of the cache are stored as if not read again
};

// The limits of the current device.
Result limits(gate::Limits& found);

inline matrix::Plan choose(DataType type, const Shape& shape, const Call& call, const gate::Limits& limits,
                           const Tuning& tuning = {}) {
  matrix::Plan plan{.samples = shape.samples, .rows = shape.rows(), .columns = shape.row_length()};
  const int64_t bytes = element_bytes(type);
  const auto aligned = [&](int64_t width) {
    bool all = plan.columns % width == 0;
    for (const void* map : {call.tensors.grad_y, call.tensors.x, static_cast<const void*>(call.tensors.map)})
      all = all && reinterpret_cast<uintptr_t>(map) % (width * bytes) == 0;
    return all;
  };
  // The widths that kernels are compiled for. Half vectors are for planes of 14 x 14.
  if (bytes < 8 && aligned(16 / bytes)) {
    plan.width = int(16 / bytes);
  } else if (bytes == 2 && !shape.channels_last && aligned(4)) {
    plan.width = 4;
  }
  const bool sums = call.by_channel() || call.by_pixel();
  const matrix::Kind kind{call.op >= Operator::kGradGates ? 2 : 1,
                          bool(shape.channels_last ? call.by_pixel() : call.by_channel()),
                          bool(shape.channels_last ? call.by_channel() : call.by_pixel())};
  plan = matrix::choose(plan, kind, plan.width * bytes,
                        limits.multiprocessors * (sums ? tuning.sum_blocks : tuning.map_blocks));
  plan.dependent = limits.dependent_launches;
  // Against the order of the pass that usually comes before.
  plan.backwards = call.op == Operator::kStatistics || call.op == Operator::kGradChannelGate ||
                   call.op == Operator::kGradConcurrent ||
                   (call.op == Operator::kScale && call.merge != Merge::kProduct);
  plan.stream_output = 2 * bytes * shape.samples * shape.channels * shape.pixels >
                       limits.l2_bytes / std::max<int64_t>(1, tuning.streamed_part);
  return plan;
}

// Blocks that share what is added up for a channel or a pixel; the gradient of a weight is summed over samples, too.
inline int64_t channel_splits(const Shape& shape, const matrix::Plan& plan) {
  return shape.channels_last ? plan.row_tiles : plan.column_tiles;
}
inline int64_t pixel_splits(const Shape& shape, const matrix::Plan& plan) {
  return shape.channels_last ? plan.column_tiles : plan.row_tiles;
}
inline int64_t channel_scratch(const Shape& shape, const Call& call, const matrix::Plan& plan) {
  const int64_t splits = channel_splits(shape, plan);
  if (splits == 1 && call.op != Operator::kGradConcurrent) return 0;
  return call.by_channel() * shape.samples * splits * shape.channels;
}
// Numbers of scratch that a plan needs.
inline int64_t scratch_numbers(const Shape& shape, const Call& call, const matrix::Plan& plan) {
  const int64_t splits = pixel_splits(shape, plan);
  return channel_scratch(shape, call, plan) +
         (splits > 1 ? call.by_pixel() * shape.samples * splits * shape.pixels : 0);
}

// Launches on a stream (a cudaStream_t); without samples, nothing.
Result run(DataType type, const Shape& shape, const Call& call, const matrix::Plan& plan, void* stream);

}  // namespace attnkernels::channel_spatial
