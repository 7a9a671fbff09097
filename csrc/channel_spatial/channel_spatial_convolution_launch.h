// The CUDA launchers of the convolution of cbam's statistics, on pointers; no CUDA and no torch header.
#pragma once
#include <algorithm>

#include "channel_spatial/channel_spatial_convolution.h"
#include "common/cuda_launch.h"

namespace attnkernels::channel_spatial {

inline constexpr int64_t kTileRows = 16, kTileColumns = 32;  // pixels of a block
// Sums of the weight's gradient that one launch leaves for the next to add up.
inline constexpr int64_t kMostChunks = 512;

inline int64_t convolution_tiles(const Convolution& shape) {
  return (shape.height + kTileRows - 1) / kTileRows * ((shape.width + kTileColumns - 1) / kTileColumns);
}
// Chunks of the tiles of all samples, each with its part of the weight's gradient.
inline int64_t convolution_chunks(const Convolution& shape) {
  return std::min(shape.samples * convolution_tiles(shape), kMostChunks);
}

// The weight, the bias (or null) and the weight's gradient are of type DataType, all others of the accumulation type
// (double for double, float for the others). gate: the result is the sigmoid. No launch without a pixel.
Result convolve(DataType type, const Convolution& shape, const void* statistics, const void* weight, const void* bias,
                bool gate, void* result, void* stream);

struct ConvolutionBackward {
  const void *grad, *gate;  // gate: what the forward gave, where `grad` is of it; or null
  const void *statistics, *weight;
  void *grad_statistics, *grad_weight;  // null: not needed
  void* parts;                          // scratch for the weight's gradient, [convolution_chunks(), 2 k k]
};

// Without a pixel the weight's gradient is not written.
Result convolve_backward(DataType type, const Convolution& shape, const ConvolutionBackward& tensors, void* stream);

}  // namespace attnkernels::channel_spatial
