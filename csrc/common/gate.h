// What every backend of the ops that scale a map by gates shares: y = output_activation(x gate + residual). No torch.
#pragma once
#include <cstdint>

namespace attnkernels {

// attnkernels/ops/_gate.py has the same values.
enum class Gate : int { kSigmoid = 0, kHardSigmoid = 1 };
enum class OutputActivation : int { kNone = 0, kRelu = 1 };

// A feature map, dense as [N, C, H W] or, channels_last, [N, H W, C].
struct MapShape {
  int64_t samples, channels, pixels;
  bool channels_last;
};

}  // namespace attnkernels
