// The CUDA launchers of the convolution of cbam's statistics, on pointers; no CUDA and no torch header.
#pragma once
#include <algorithm>

#include "channel_spatial/channel_spatial_convolution.h"
#include "common/cuda_launch.h"

namespace attnkernels::channel_spatial {

inline constexpr int64_t kTileRows = 8, kTileColumns = 32;  // pixels of a block, one a thread
// Sums of the weight's gradient that one block adds up, one a thread. More would not be faster: a chunk is then a few
// tiles of a map of 512 x 512 pixels.
inline constexpr int64_t kMostChunks = 256;

inline int64_t convolution_tiles(const Convolution& shape) {
  return (shape.height + kTileRows - 1) / kTileRows * ((shape.width + kTileColumns - 1) / kTileColumns);
}
// Chunks of the tiles of all samples, each with its part of the weight's gradient.
inline int64_t convolution_chunks(const Convolution& shape) {
  return std::min(shape.samples * convolution_tiles(shape), kMostChunks);
}

// All of one type, float or double; bias: or null. No launch without a pixel.
Result convolve(bool is_double, const Convolution& shape, const void* statistics, const void* weight, const void* bias,
                void* logits, void* stream);

// Null: not wanted. parts: scratch for the weight's gradient, [convolution_chunks(), 2 k k]. Without a pixel the weight's
// gradient is not written.
Result convolve_backward(bool is_double, const Convolution& shape, const void* grad, const void* statistics,
                         const void* weight, void* grad_statistics, void* grad_weight, void* parts, void* stream);

}  // namespace attnkernels::channel_spatial
