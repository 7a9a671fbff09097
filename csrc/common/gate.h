// What ops share that scale maps by gates: y = output_activation(x gate + residual). For every C++ backend, no torch.
#pragma once
#include <cstdint>

namespace attnkernels {

// attnkernels/ops/_gate.py has the same values.
enum class Gate : int { kSigmoid = 0, kHardSigmoid = 1 };
enum class OutputActivation : int { kNone = 0, kRelu = 1 };

// Feature maps in one layout: [N, C, HW] or, channels_last, [N, HW, C]. A row is adjacent in memory: a plane [HW], of
// which a sample has C, or a pixel [C], of which it has HW.
struct MapShape {
  int64_t samples, channels, pixels;  // N, C, H * W
  bool channels_last;

  constexpr int64_t rows() const { return channels_last ? pixels : channels; }
  constexpr int64_t row_length() const { return channels_last ? channels : pixels; }
};

}  // namespace attnkernels
