// The CUDA launcher of copies into another layout, on pointers; no CUDA and no torch header.
#pragma once
#include "common/cuda_launch.h"

namespace attnkernels::layout {

// to[sample][column][row] = from[sample][row][column]: a map [N, C, P] as [N, P, C], or the other way round. `to` is
// dense, of `from` the elements of a row are adjacent; both may start at any element. They do not overlap.
struct Transpose {
  const void* from;
  void* to;
  int64_t samples, rows, columns;
  int64_t sample_stride, row_stride;  // of `from`, in elements
};

// Several copies of elements of 2, 4 or 8 bytes, in one launch for up to eight; those without elements launch nothing.
Result transpose(int64_t element_bytes, const Transpose* copies, int count, void* stream);

}  // namespace attnkernels::layout
