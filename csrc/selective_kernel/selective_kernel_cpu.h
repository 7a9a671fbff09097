// What the CPU binding hands to the kernels of selective_kernel_simd.h. A is the accumulation type.
#pragma once
#include "common/simd.h"
#include "selective_kernel/selective_kernel.h"

namespace attnkernels::selective_kernel {

template <class T>
struct Pool {
  Shape shape;
  Branches<const T> branches;
};

template <class T>
struct Select {
  Shape shape;
  bool stream;  // y is large: written past the caches
  Branches<const T> branches;
  const Accumulator<T>* weights;  // [N, M, C]
  T* y;                           // dense in the layout of shape
};

template <class T>
struct GradLogits {
  Shape shape;
  Rows<const T> grad_y;
  Branches<const T> branches;
};

template <class T>
struct GradBranches {
  Shape shape;
  bool stream;
  Rows<const T> grad_y;
  const Accumulator<T>* weights;      // [N, M, C]
  const Accumulator<T>* pooled_term;  // [N, C] ds / (H W)
  // Of a sample of the stacked channels_last result, [H, W, M, C] in memory, or else of one branch, dense in the layout
  // of shape. Null: not wanted.
  T* grad_branches[kMaxBranches];
  int64_t sample_stride;
  bool interleaved;
};

// The kernels of one level, on the rows [first, last) of sample n.
template <class T>
struct Kernels {
  using A = Accumulator<T>;
  void (*pool)(const Pool<T>&, int64_t n, int64_t first, int64_t last, A* sums);  // sums [C] of these rows
  void (*softmax)(const Shape&, const T* logits, A* weights, int64_t n);
  void (*select)(const Select<T>&, int64_t n, int64_t first, int64_t last);
  void (*grad_weights)(const GradLogits<T>&, int64_t n, int64_t first, int64_t last, A* sums);  // sums [M, C]
  void (*grad_logits)(const Shape&, const A* weights, const A* grad_weights, T* grad_logits, int64_t n);
  void (*grad_branches)(const GradBranches<T>&, int64_t n, int64_t first, int64_t last);
  void (*scale)(T* to, const A* from, A factor, int64_t count);     // to = factor * from
  void (*scale_up)(A* to, const T* from, A factor, int64_t count);  // the same, into the accumulation type
};

}  // namespace attnkernels::selective_kernel
