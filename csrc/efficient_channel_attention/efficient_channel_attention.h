// The arguments of the efficient_channel_attention kernels; shared by every C++ backend, no torch.
#pragma once
#include "common/gate.h"

namespace attnkernels::efficient_channel_attention {

// Bit i of `needs` stands for input i; attnkernels/ops/efficient_channel_attention/schema.py has the same values.
enum Needs : int { kNeedsX = 0b001, kNeedsWeight = 0b010, kNeedsResidual = 0b100 };

inline constexpr int64_t kMostTaps = 255;  // attnkernels/ops/efficient_channel_attention/checks.py has the same

// x, y and residual are dense in one layout.
struct Shape : MapShape {
  int64_t taps;   // k, odd: a gate depends on the means of k / 2 channels on either side
  bool circular;  // the channels beyond the first and the last are those from the other end, and not zeros
  Gate gate;
  OutputActivation output_activation;

  // means [C], gates [C]
  constexpr int64_t saved_columns() const { return 2 * channels; }
  // The channel that stands at `index`, which may lie taps / 2 beyond the ends; -1 where there is none.
  constexpr int64_t channel_at(int64_t index) const {
    if (index >= 0 && index < channels) return index;
    return !circular ? -1 : index < 0 ? index + channels : index - channels;
  }
};

}  // namespace attnkernels::efficient_channel_attention
