// The arguments of the efficient_channel_attention kernels; shared by every C++ backend, no torch.
#pragma once
#include "common/gate.h"

namespace attnkernels::efficient_channel_attention {

// Bit i of `needs` stands for input i; attnkernels/ops/efficient_channel_attention/schema.py has the same values.
enum Needs : int { kNeedsX = 0b001, kNeedsWeight = 0b010, kNeedsResidual = 0b100 };

// x, y and residual are dense in one layout.
struct Shape : MapShape {
  int64_t taps;   // k, odd: a gate depends on the means of k / 2 channels on either side
  bool circular;  // the channels beyond the first and the last are those from the other end, and not zeros
  Gate gate;
  OutputActivation output_activation;

  // means [C], gates [C]
  constexpr int64_t saved_columns() const { return 2 * channels; }
};

}  // namespace attnkernels::efficient_channel_attention
