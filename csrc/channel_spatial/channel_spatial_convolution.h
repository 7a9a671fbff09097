// The arguments of the convolution of two numbers per pixel to one; shared by every C++ backend, no torch.
#pragma once
#include <cstdint>

namespace attnkernels::channel_spatial {

// attnkernels/ops/channel_spatial/operators.py has the same values.
enum NeedsOfConvolution : int { kNeedsStatistics = 0b01, kNeedsTaps = 0b10 };

inline constexpr int64_t kMostTaps = 15;  // attnkernels/ops/channel_spatial/checks.py has the same

// statistics [N, 2, H, W], weight [1, 2, k, k], result [N, H, W]; zeros lie around the statistics.
struct Convolution {
  int64_t samples, height, width;
  int64_t taps;     // k, odd
  bool mean_first;  // the weight's planes are those of the mean and the maximum, the statistics always the other way
  bool interleaved = false;  // the weight is channels_last: a number of each plane in turn

  constexpr int64_t pixels() const { return height * width; }
  constexpr int64_t weights() const { return 2 * taps * taps; }
  // Where the gradients of the weights of a plane of the statistics begin, and where a weight is.
  constexpr int64_t weights_of(int64_t plane) const { return (mean_first ? 1 - plane : plane) * taps * taps; }
  constexpr int64_t weight_at(int64_t plane, int64_t tap) const {
    return interleaved ? 2 * tap + (mean_first ? 1 - plane : plane) : weights_of(plane) + tap;
  }
};

}  // namespace attnkernels::channel_spatial
