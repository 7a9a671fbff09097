// The arguments of the channel gate's fully connected layers; shared by every C++ backend, no torch.
#pragma once
#include <cstdint>

namespace attnkernels::channel_spatial {

// Bit i of `needs` stands for result i; attnkernels/ops/channel_spatial/operators.py has the same order.
enum NeedsOfLayers : int {
  kNeedsPooled = 0b00001,
  kNeedsReduceWeight = 0b00010,
  kNeedsReduceBias = 0b00100,
  kNeedsExpandWeight = 0b01000,
  kNeedsExpandBias = 0b10000,
};

// pooled [N, K, C], reduce_weight [rd, C], expand_weight [C, gate_inputs()], gates [N, C]. Numbers of pools and channels
// are at least 1.
struct Layers {
  int64_t samples, pools, channels;  // N, K, C
  int64_t hidden;                    // rd; 0: a single layer

  constexpr int64_t gate_inputs() const { return hidden ? hidden : channels; }
};

}  // namespace attnkernels::channel_spatial
