// The arguments of the convolution of two numbers per pixel to one; shared by every C++ backend, no torch.
#pragma once
#include <cstdint>

namespace attnkernels::channel_spatial {

// attnkernels/ops/channel_spatial/operators.py has the same values.
enum NeedsOfConvolution : int { kNeedsStatistics = 0b01, kNeedsTaps = 0b10 };

inline constexpr int64_t kMostTaps = 15;  // attnkernels/ops/channel_spatial/checks.py has the same

// statistics [N, 2, H, W], weight [2, k, k], result [N, H, W]; zeros lie around the statistics.
struct Convolution {
  int64_t samples, height, width;
  int64_t taps;  // k, odd

  constexpr int64_t pixels() const { return height * width; }
  constexpr int64_t weights() const { return 2 * taps * taps; }
};

}  // namespace attnkernels::channel_spatial
