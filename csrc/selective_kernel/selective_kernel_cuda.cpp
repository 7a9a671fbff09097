// The CUDA backend of selective_kernel in torch: checks, allocation, stream. Built with ATTNKERNELS_EMULATED it takes CPU
// tensors and runs the same kernels on the host.
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "common/cuda_binding.h"
#include "selective_kernel/selective_kernel_binding.h"
#include "selective_kernel/selective_kernel_launch.h"

namespace attnkernels::selective_kernel {
namespace {

// As with_rows, by a kernel of ours.
Tensor copied_rows(const char* op, const Tensor& x, bool channels_last) {
  if (has_rows(x, channels_last)) return x;
  LayoutCopies copies;
  const Tensor copy = copies.copy(x, channels_last);
  copies.run(op, x);
  return copy;
}

// Room for the partial sums of splits. An empty tensor takes as long to allocate as any, so there is none.
std::optional<Tensor> allocate_partial(const Shape& shape, const Tiles& tiles, int64_t columns, const Tensor& like) {
  const int64_t sums = partial_sums(shape, tiles, columns);
  if (!sums) return std::nullopt;
  return allocate({sums}, accumulation_dtype(like.scalar_type()), like);
}

void* data_of(const std::optional<Tensor>& x) { return x ? x->mutable_data_ptr() : nullptr; }

Tensor pooled_sum(std::vector<Tensor> given) {
  const char* op = "pooled_sum";
  const CheckedBranches checked = check_branches(op, std::move(given));
  const Shape& shape = checked.shape;
  const Tensor& x = checked.branches[0];
  check_device(op, x);
  const DataType type = data_type(op, x);
  const DeviceGuard guard(x.get_device_index());
  const Branches<const void> branches = checked.rows<void>();
  Tensor pooled = allocate({shape.samples, shape.channels}, x.scalar_type(), x);
  const Tiles tiles = choose_sums(type, shape, branches, nullptr);
  const std::optional<Tensor> partial = allocate_partial(shape, tiles, 1, x);
  check_launch(op,
               pool(type, shape, tiles, {branches, pooled.mutable_data_ptr(), data_of(partial)}, current_stream(x)));
  return pooled;
}

std::tuple<Tensor, Tensor> select_branches(std::vector<Tensor> given, Tensor logits) {
  const char* op = "select_branches";
  const CheckedBranches checked = check_branches(op, std::move(given));
  const Shape& shape = checked.shape;
  const Tensor& x = checked.branches[0];
  check_device(op, x);
  const DataType type = data_type(op, x);
  const DeviceGuard guard(x.get_device_index());
  logits = check_weights(op, logits, shape, x.scalar_type(), x);
  Tensor y = allocate(x.sizes(), x.scalar_type(), x, shape.channels_last);
  Tensor weights = allocate({shape.samples, shape.branches, shape.channels}, accumulation_dtype(x.scalar_type()), x);
  check_launch(op, select(type, shape,
                          {checked.rows<void>(), logits.const_data_ptr(), weights.mutable_data_ptr(),
                           rows_of<void>(y, shape.channels_last)},
                          current_stream(x)));
  return {std::move(y), std::move(weights)};
}

Tensor select_branches_grad_logits(Tensor grad_y, std::vector<Tensor> given, Tensor weights) {
  const char* op = "select_branches_grad_logits";
  const CheckedBranches checked = check_branches(op, std::move(given));
  const Shape& shape = checked.shape;
  const Tensor& x = checked.branches[0];
  check_device(op, x);
  const DataType type = data_type(op, x);
  const DeviceGuard guard(x.get_device_index());
  check_alike(op, grad_y, x);
  grad_y = copied_rows(op, grad_y, shape.channels_last);
  weights = check_weights(op, weights, shape, accumulation_dtype(x.scalar_type()), x);
  const Branches<const void> branches = checked.rows<void>();
  const auto grad_rows = rows_of<const void>(grad_y, shape.channels_last);
  Tensor grad_logits = allocate({shape.samples, shape.branches, shape.channels}, x.scalar_type(), x);
  const Tiles tiles = choose_sums(type, shape, branches, &grad_rows);
  const std::optional<Tensor> partial = allocate_partial(shape, tiles, shape.branches, x);
  check_launch(op, selective_kernel::grad_logits(type, shape, tiles,
                                                 {grad_rows, branches, weights.const_data_ptr(),
                                                  grad_logits.mutable_data_ptr(), data_of(partial)},
                                                 current_stream(x)));
  return grad_logits;
}

std::vector<Tensor> select_branches_grad_branches(Tensor grad_y, Tensor weights, std::optional<Tensor> grad_pooled,
                                                  bool stacked, bool channels_last, int64_t needs) {
  const char* op = "select_branches_grad_branches";
  check_device(op, grad_y);
  const DataType type = data_type(op, grad_y);
  const DeviceGuard guard(grad_y.get_device_index());
  const Shape shape = check_grad_branches(op, grad_y, weights, grad_pooled, channels_last);
  grad_y = copied_rows(op, grad_y, channels_last);
  weights = attnkernels::contiguous(weights);
  grad_pooled = attnkernels::contiguous(grad_pooled);
  std::vector<Tensor> grads = allocate_grad_branches(grad_y, shape, stacked, needs);
  Branches<void> rows{};
  for (int m = 0; m < shape.branches; ++m) {
    if (stacked) {
      // [N, M, C, P] or [N, P, M, C]
      const int64_t plane = shape.channels * shape.pixels;
      const int64_t offset = m * (channels_last ? shape.channels : plane) * element_bytes(type);
      rows.branch[m] = {static_cast<char*>(grads[0].mutable_data_ptr()) + offset, shape.branches * plane,
                        channels_last ? shape.branches * shape.channels : shape.pixels};
    } else if (needs >> m & 1) {
      rows.branch[m] = rows_of<void>(grads[m], channels_last);
    }
  }
  check_launch(op, grad_branches(type, shape,
                                 {rows_of<const void>(grad_y, channels_last), weights.const_data_ptr(),
                                  grad_pooled ? grad_pooled->const_data_ptr() : nullptr, rows},
                                 current_stream(grad_y)));
  return as_branch_order(std::move(grads), shape, stacked);
}

ATTNKERNELS_CUDA_LIBRARY_IMPL(m) {
  m.impl("pooled_sum", TORCH_BOX(&pooled_sum));
  m.impl("select_branches", TORCH_BOX(&select_branches));
  m.impl("select_branches_grad_logits", TORCH_BOX(&select_branches_grad_logits));
  m.impl("select_branches_grad_branches", TORCH_BOX(&select_branches_grad_branches));
}

}  // namespace
}  // namespace attnkernels::selective_kernel
