// The CUDA launchers of selective_kernel, on pointers; no CUDA and no torch header.
#pragma once
#include "common/cuda_launch.h"
#include "selective_kernel/selective_kernel.h"
#include "selective_kernel/selective_kernel_tiles.h"

namespace attnkernels::selective_kernel {

// Tensors of type DataType; "sum" marks those of the accumulation type (double for double, float for the others).
struct PoolTensors {
  Branches<const void> branches;
  void* pooled;   // [N, C]
  void* partial;  // sum [partial_sums(shape, tiles, 1)]
};

struct SelectTensors {
  Branches<const void> branches;
  const void* logits;  // [N, M, C]
  void* weights;       // sum [N, M, C]
  Rows<void> y;
};

struct GradLogitsTensors {
  Rows<const void> grad_y;
  Branches<const void> branches;
  const void* weights;  // sum [N, M, C]
  void* grad_logits;    // [N, M, C]
  void* partial;        // sum [partial_sums(shape, tiles, M)]
};

struct GradBranchesTensors {
  Rows<const void> grad_y;
  const void* weights;      // sum [N, M, C]
  const void* grad_pooled;  // [N, C], or null
  Branches<void> grads;     // data null: not needed
};

// How the two kernels that sum over pixels divide their operands; grad_y: null for pool.
Tiles choose_sums(DataType type, const Shape& shape, const Branches<const void>& branches,
                  const Rows<const void>* grad_y, const Tuning& tuning = {});

// Partial sums between the two kernels of such an operator: [N, splits, columns, C].
inline int64_t partial_sums(const Shape& shape, const Tiles& tiles, int64_t columns) {
  return tiles.splits > 1 ? shape.samples * tiles.splits * columns * shape.channels : 0;
}

// Launch on a stream (a cudaStream_t); shapes with no sample or no channel launch nothing.
Result pool(DataType type, const Shape& shape, const Tiles& tiles, const PoolTensors& tensors, void* stream);
Result select(DataType type, const Shape& shape, const SelectTensors& tensors, void* stream, const Tuning& tuning = {});
Result grad_logits(DataType type, const Shape& shape, const Tiles& tiles, const GradLogitsTensors& tensors,
                   void* stream);
Result grad_branches(DataType type, const Shape& shape, const GradBranchesTensors& tensors, void* stream,
                     const Tuning& tuning = {});

}  // namespace attnkernels::selective_kernel
