// The CUDA launchers of efficient_channel_attention, on pointers, and their plans; no CUDA and no torch header.
#pragma once
#include "common/gate_plan.h"
#include "efficient_channel_attention/efficient_channel_attention.h"

namespace attnkernels::efficient_channel_attention {

using namespace gate;

// Tensors of type DataType; "sum" marks those of the accumulation type (double for double, float for the others).
struct ForwardTensors {
  const void *x, *weight, *residual;  // residual: or null
  void* y;
  void* saved;    // sum [N, 2 C]
  void* scratch;  // sum [forward_scratch()]
};

struct BackwardTensors {
  const void *grad_y, *x, *y, *weight, *saved;  // y: null without output activation
  void *grad_x, *grad_residual, *grad_weight;   // null: not needed
  void* scratch;                                // sum [backward_scratch()]
};

// How the gradient of the weight is divided among blocks: each takes some samples, of which `across` threads take one.
// (32x2048x7x7 on an H100: a block for each tap, one channel after the other, took four times as long as the maps.)
inline constexpr int kWeightChannels = 8;  // that a thread has under way
inline constexpr int64_t kMostWeightBlocks = 512;

struct WeightBlocks {
  int across;
  int64_t samples, blocks;

  explicit WeightBlocks(const Shape& shape) : across(32) {
    while (across < kThreads && across * kWeightChannels < shape.channels) across *= 2;
    const int64_t at_once = kThreads / across;
    samples = at_once * std::max<int64_t>(1, ceil_div(shape.samples, at_once * kMostWeightBlocks));
    blocks = std::max<int64_t>(1, ceil_div(shape.samples, samples));
  }
  int64_t scratch(const Shape& shape) const { return blocks > 1 ? blocks * shape.taps : 0; }
};

// The limits of the current device.
Result limits(Limits& found);

inline Plan choose(DataType type, const Shape& shape, const Limits& limits, bool backward, const Tuning& tuning = {}) {
  const ElementSize size = element_size(type);
  const bool has_clip = shape.output_activation != OutputActivation::kNone;
  Plan plan = make_plan(shape, size, limits, tuning, backward, has_clip, tuning.most_splits);
  // Gates, or scales and shifts; what the convolution reads; its weight.
  plan.map.shared_bytes = size_t(size.sum * ((backward ? 2 : 1) * padded(plan.map.channels) +
                                             padded(plan.map.channels + shape.taps - 1) + shape.taps));
  return plan;
}

// Numbers of scratch that a plan needs, in the accumulation type.
inline int64_t forward_scratch(const Shape& shape, const Plan& plan) {
  return shape.samples * plan.partial_sums(shape);
}
inline int64_t backward_scratch(const Shape& shape, const Plan& plan) {
  return shape.samples * (plan.partial_sums(shape) + shape.channels) + WeightBlocks(shape).scratch(shape);
}

// Launch on a stream (a cudaStream_t); shapes with no sample, channel or pixel launch no forward.
Result forward(DataType type, const Shape& shape, const Plan& plan, const ForwardTensors& tensors, void* stream);
Result backward(DataType type, const Shape& shape, const Plan& plan, const BackwardTensors& tensors, void* stream);

}  // namespace attnkernels::efficient_channel_attention
