// Which kernels run a call, and how: pure functions of sizes and device limits, no CUDA.
//
// Two passes over x: sums, then the map (common/gate_plan.h). Between them come the two layers, small products that take
// as long as their latencies: the first in a kernel of its own, the last in the blocks of the second pass where each
// needs few weights.
#pragma once
#include "common/gate_plan.h"
#include "squeeze_excite/squeeze_excite.h"

namespace attnkernels::squeeze_excite {

using namespace gate;

struct Tuning : gate::Tuning {
  // The last layer's weights that a block of the second pass may hold; with more, the layer has a kernel of its own
  // (8x512x28x28 channels_last, 4 KB: 10.8 : 11.5; 32x1024x14x14, 12 KB: 19.2 : 17.7; 32x2048x7x7, 16 KB: 28.3 : 18.3).
  int64_t staged_bytes = 6 * 1024;
  int64_t layer_in_map = -1;  // 0, 1: whether it may, whatever their size
  // Overlapped launches lose in the backward of so many samples where both layers have kernels of their own
  // (32x2048x7x7 31.0 : 28.0, 32x480x14x14 26.5 : 23.5; but 1x960x7x7 11.4 : 13.5).
  int64_t plain_grad_samples = 16;
};

struct Plan : gate::Plan {
  bool layer_in_map = false;  // the blocks of the second pass compute the last layer for their channels
};

inline Plan make_plan(const Shape& shape, ElementSize size, const Limits& limits, const Tuning& tuning, bool backward) {
  // Splits' sums are added up by a layer's own kernel, if it reads means at all.
  const int64_t most_splits = shape.gate_inputs() ? tuning.most_splits : 1;
  const bool has_clip = shape.output_activation != OutputActivation::kNone;
  Plan plan{gate::make_plan(shape, size, limits, tuning, backward, has_clip, most_splits)};
  // In the backward, whole vectors of columns at both ends.
  const int64_t columns = plan.map.channels + (backward ? 2 * size.vector() : 0);
  const int64_t weight_bytes = round_up(columns * shape.hidden, size.vector()) * size.element;
  plan.layer_in_map = shape.hidden && weight_bytes <= tuning.staged_bytes;
  if (tuning.layer_in_map >= 0) plan.layer_in_map = shape.hidden && tuning.layer_in_map;
  if (backward && !plan.layer_in_map && std::min(shape.samples, kMostSamples) >= tuning.plain_grad_samples)
    plan.dependent = false;
  // Gates and biases, or scales and shifts, and the layer's inputs.
  plan.map.shared_bytes = size_t(2 * padded(plan.map.channels) * size.sum);
  if (plan.layer_in_map) plan.map.shared_bytes += size_t(padded(shape.hidden) * size.sum + weight_bytes);
  return plan;
}

}  // namespace attnkernels::squeeze_excite
