// What the torch bindings of every backend of selective_kernel share: how a tensor becomes Rows, and the results' layouts.
#pragma once
#include <type_traits>
#include <utility>
#include <vector>

#include "common/binding.h"
#include "selective_kernel/selective_kernel.h"

namespace attnkernels::selective_kernel {

using torch::headeronly::MemoryFormat;

inline bool has_dense_planes(const Tensor& x) {
  return (x.size(3) == 1 || x.stride(3) == 1) && (x.size(2) == 1 || x.stride(2) == x.size(3));
}

inline bool has_dense_pixels(const Tensor& x) {
  return (x.size(1) == 1 || x.stride(1) == 1) &&
         (x.size(2) == 1 || x.size(3) == 1 || x.stride(2) == x.size(3) * x.stride(3));
}

// attnkernels/ops/_layout.py has the same rule.
inline bool walks_pixels(const Tensor& x) { return !has_dense_planes(x) && has_dense_pixels(x); }

inline bool has_rows(const Tensor& x, bool channels_last) {
  return channels_last ? has_dense_pixels(x) : has_dense_planes(x);
}

// x itself where its rows are dense in that layout, a copy otherwise.
inline Tensor with_rows(const Tensor& x, bool channels_last) {
  if (has_rows(x, channels_last)) return x;
  return torch::stable::contiguous(x, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// The rows of a tensor that with_rows has seen, or that has just been allocated.
template <class T>
Rows<T> rows_of(const Tensor& x, bool channels_last) {
  const int64_t pixel_stride = x.size(3) > 1 ? x.stride(3) : x.stride(2);
  T* data;
  if constexpr (std::is_const_v<T>)
    data = static_cast<T*>(x.const_data_ptr());
  else
    data = static_cast<T*>(x.mutable_data_ptr());
  return {data, x.stride(0), channels_last ? pixel_stride : x.stride(1)};
}

// What every operator is given: M branches of one shape, dtype and device, their rows dense in one layout.
struct CheckedBranches {
  std::vector<Tensor> branches;
  Shape shape;

  template <class T>
  Branches<const T> rows() const {
    Branches<const T> result{};
    for (int m = 0; m < shape.branches; ++m) result.branch[m] = rows_of<const T>(branches[m], shape.channels_last);
    return result;
  }
};

inline Shape shape_of(const Tensor& x, int64_t branches, bool channels_last) {
  return {{x.size(0), x.size(1), x.size(2) * x.size(3), channels_last}, int(branches)};
}

inline void check_alike(const char* op, const Tensor& x, const Tensor& like) {
  STD_TORCH_CHECK(x.scalar_type() == like.scalar_type() && x.device() == like.device(), op,
                  ": expected one dtype and one device");
  STD_TORCH_CHECK(x.dim() == like.dim(), op, ": expected branches of one shape");
  for (int64_t axis = 0; axis < x.dim(); ++axis)
    STD_TORCH_CHECK(x.size(axis) == like.size(axis), op, ": expected branches of one shape");
}

inline CheckedBranches check_branches(const char* op, std::vector<Tensor> branches) {
  STD_TORCH_CHECK(!branches.empty() && branches.size() <= size_t(kMaxBranches), op, ": expected 1 to ", kMaxBranches,
                  " branches, got ", branches.size());
  const Tensor first = branches[0];
  STD_TORCH_CHECK(first.dim() == 4, op, ": expected branches [N, C, H, W], got ", first.dim(), " dimensions");
  const bool channels_last = walks_pixels(first);
  for (Tensor& branch : branches) {
    check_alike(op, branch, first);
    branch = with_rows(branch, channels_last);
  }
  const Shape shape = shape_of(first, int64_t(branches.size()), channels_last);
  return {std::move(branches), shape};
}

// weights or logits
inline Tensor check_weights(const char* op, const Tensor& weights, const Shape& shape, ScalarType dtype,
                            const Tensor& like) {
  STD_TORCH_CHECK(weights.scalar_type() == dtype && weights.device() == like.device(), op,
                  ": logits or weights have the wrong dtype or device");
  STD_TORCH_CHECK(weights.dim() == 3 && weights.size(0) == shape.samples && weights.size(1) == shape.branches &&
                      weights.size(2) == shape.channels,
                  op, ": expected logits or weights [", shape.samples, ", ", shape.branches, ", ", shape.channels, "]");
  return attnkernels::contiguous(weights);
}

inline Shape check_grad_branches(const char* op, const Tensor& grad_y, const Tensor& weights,
                                 const std::optional<Tensor>& grad_pooled, bool channels_last) {
  STD_TORCH_CHECK(grad_y.dim() == 4 && weights.dim() == 3 && weights.size(1) >= 1 && weights.size(1) <= kMaxBranches,
                  op, ": expected grad_y [N, C, H, W] and weights [N, M, C]");
  const Shape shape = shape_of(grad_y, weights.size(1), channels_last);
  check_weights(op, weights, shape, accumulation_dtype(grad_y.scalar_type()), grad_y);
  STD_TORCH_CHECK(
      !grad_pooled ||
          (grad_pooled->dim() == 2 && grad_pooled->size(0) == shape.samples && grad_pooled->size(1) == shape.channels &&
           grad_pooled->scalar_type() == grad_y.scalar_type() && grad_pooled->device() == grad_y.device()),
      op, ": expected grad_pooled [N, C] in the dtype of grad_y");
  return shape;
}

// The gradients of all branches: one tensor [N, M, C, H, W], or M tensors of which those not in `needs` are [0].
inline std::vector<Tensor> allocate_grad_branches(const Tensor& grad_y, const Shape& shape, bool stacked,
                                                  int64_t needs) {
  const int64_t height = grad_y.size(2), width = grad_y.size(3);
  std::vector<Tensor> result;
  if (stacked) {
    const int64_t contiguous_shape[] = {shape.samples, shape.branches, shape.channels, height, width};
    const int64_t pixels_shape[] = {shape.samples, height, width, shape.branches, shape.channels};
    result.push_back(allocate(shape.channels_last ? pixels_shape : contiguous_shape, grad_y.scalar_type(), grad_y));
    return result;
  }
  for (int m = 0; m < shape.branches; ++m) {
    if (needs >> m & 1)
      result.push_back(allocate(grad_y.sizes(), grad_y.scalar_type(), grad_y, shape.channels_last));
    else
      result.push_back(allocate({0}, grad_y.scalar_type(), grad_y));
  }
  return result;
}

// What goes back to the caller: [N, H, W, M, C] seen as [N, M, C, H, W].
inline std::vector<Tensor> as_branch_order(std::vector<Tensor> grads, const Shape& shape, bool stacked) {
  if (!stacked || !shape.channels_last) return grads;
  Tensor permuted = torch::stable::transpose(grads[0], 1, 3);  // N M W H C
  permuted = torch::stable::transpose(permuted, 2, 4);         // N M C H W
  grads[0] = permuted;
  return grads;
}

}  // namespace attnkernels::selective_kernel
