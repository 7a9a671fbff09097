// The arguments of the selective_kernel kernels; shared by every C++ backend, no torch.
#pragma once
#include "common/gate.h"

namespace attnkernels::selective_kernel {

constexpr int kMaxBranches = 8;  // the pointers of all branches travel in one argument struct

// A feature map as rows (see MapShape). The strides are free, in elements: a branch may be a view into a wider tensor
// ([N, M, C, H, W] stacked, or the channels of one convolution's output) and is read in place.
template <class T>
struct Rows {
  T* data;
  int64_t sample_stride, row_stride;

  T* row(int64_t sample, int64_t index) const { return data + sample * sample_stride + index * row_stride; }
};

template <class T>
struct Branches {
  Rows<T> branch[kMaxBranches];
};

// Every branch, y and their gradients have this shape and this layout. logits and weights are dense [N, M, C], pooled
// is dense [N, C].
struct Shape : MapShape {
  int branches;  // M
};

}  // namespace attnkernels::selective_kernel
