// The CUDA launchers of the channel gate's fully connected layers, on pointers; no CUDA and no torch header.
#pragma once
#include "channel_spatial/channel_spatial_layers.h"
#include "common/cuda_launch.h"

namespace attnkernels::channel_spatial {

// Weights, biases and their gradients are of type DataType, all others of the accumulation type (double for double,
// float for the others).
struct LayersForward {
  const void *pooled, *reduce_weight, *reduce_bias, *expand_weight, *expand_bias;  // reduce_weight, biases: or null
  void *gate, *hidden;
};

struct LayersBackward {
  const void *grad_gate, *pooled, *gate, *hidden, *reduce_weight, *expand_weight;
  // Null: not needed.
  void *grad_pooled, *grad_reduce_weight, *grad_reduce_bias, *grad_expand_weight, *grad_expand_bias;
  void* scratch;  // [layers_scratch()] of the accumulation type
};

// Numbers that the backward of two layers holds: the gradient of what the first gives.
inline int64_t layers_scratch(const Layers& shape) { return shape.samples * shape.pools * shape.hidden; }

// Launches on a stream (a cudaStream_t); without samples nothing but what fills the gradients of the weights with zeros.
Result layers(DataType type, const Layers& shape, const LayersForward& tensors, void* stream);
Result layers_backward(DataType type, const Layers& shape, const LayersBackward& tensors, void* stream);

}  // namespace attnkernels::channel_spatial
