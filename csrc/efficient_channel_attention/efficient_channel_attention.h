// The arguments of the efficient_channel_attention kernels; shared by every C++ backend, no torch.
#pragma once
#include "common/gate.h"

namespace attnkernels::efficient_channel_attention {

// Bit i of `needs` stands for input i. attnkernels/ops/efficient_channel_attention/schema.py has the same.
enum Needs : int { kNeedsX = 1, kNeedsWeight = 2, kNeedsResidual = 4 };

inline constexpr int kMostTaps = 255;  // attnkernels/ops/efficient_channel_attention/checks.py has the same

struct Shape : MapShape {
  int taps;       // k, odd
  bool circular;  // the channels beyond the ends are those from the other end; taps / 2 <= channels
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
