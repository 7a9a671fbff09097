// The CUDA backend of efficient_channel_attention in torch: checks, allocation, stream. Built with ATTNKERNELS_EMULATED
// it takes CPU tensors and runs the same kernels on the host.
#include <limits>
#include <tuple>

#include "common/cuda_binding.h"
#include "efficient_channel_attention/efficient_channel_attention_binding.h"
#include "efficient_channel_attention/efficient_channel_attention_launch.h"

namespace attnkernels::efficient_channel_attention {
namespace {

Plan plan_of(DataType type, const Shape& shape, bool backward) {
  Limits found;
  check_launch(kOp, limits(found));
  return choose(type, shape, found, backward);
}

std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& weight, const Optional& residual, int64_t circular,
                                   int64_t gate, int64_t output_activation) {
  check_device("efficient_channel_attention: x", x);
  const DataType type = data_type("efficient_channel_attention: x", x);
  const CheckedCall call(x, weight, circular, gate, output_activation);
  const Shape& shape = call.shape;
  if (residual) check_map(kOp, "residual", *residual, x);
  const DeviceGuard guard(x.get_device_index());
  const Tensor dense_x = attnkernels::as_layout(x, shape.channels_last);
  LayoutCopies copies;
  const Optional added = copies.as_layout(residual, shape.channels_last);
  copies.run(kOp, x);
  const ScalarType sum = accumulation_dtype(x.scalar_type());
  Tensor y = allocate(x.sizes(), x.scalar_type(), x, shape.channels_last);
  Tensor saved = allocate({shape.samples, shape.saved_columns()}, sum, x);
  if (!shape.samples || !shape.channels || !shape.pixels) {
    torch::stable::fill_(saved, std::numeric_limits<double>::quiet_NaN());  // the mean over no pixel, and what follows
    return {y, saved};
  }
  const Plan plan = plan_of(type, shape, false);
  const Tensor scratch = allocate({forward_scratch(shape, plan)}, sum, x);
  check_launch(kOp, forward(type, shape, plan,
                            {dense_x.const_data_ptr(), call.weight.const_data_ptr(), input(added), y.mutable_data_ptr(),
                             saved.mutable_data_ptr(), scratch.mutable_data_ptr()},
                            current_stream(x)));
  return {y, saved};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_y, const Tensor& x, const Optional& y,
                                            const Tensor& weight, const Tensor& saved, int64_t circular, int64_t gate,
                                            int64_t output_activation, int64_t needs) {
  check_device("efficient_channel_attention: x", x);
  const DataType type = data_type("efficient_channel_attention: x", x);
  const CheckedCall call(x, weight, circular, gate, output_activation);
  const Shape& shape = call.shape;
  check_backward(shape, grad_y, x, y, saved, needs);
  const DeviceGuard guard(x.get_device_index());
  const Tensor dense_x = attnkernels::as_layout(x, shape.channels_last);
  const Tensor dense_saved = attnkernels::contiguous(saved);
  LayoutCopies copies;
  const Tensor grad = copies.as_layout(grad_y, shape.channels_last);
  const Optional clipped_y = output_activation ? copies.as_layout(y, shape.channels_last) : std::nullopt;
  copies.run(kOp, x);
  const auto map = [&](int64_t wanted) {
    return wanted ? Optional(allocate(x.sizes(), x.scalar_type(), x, shape.channels_last)) : std::nullopt;
  };
  Optional grad_x = map(needs & kNeedsX), grad_residual = map(needs & kNeedsResidual);
  Optional grad_weight = needs & kNeedsWeight ? Optional(allocate(weight.sizes(), x.scalar_type(), x)) : std::nullopt;
  if (shape.channels) {
    const Plan plan = plan_of(type, shape, true);
    const Tensor scratch = allocate({backward_scratch(shape, plan)}, accumulation_dtype(x.scalar_type()), x);
    check_launch(kOp, backward(type, shape, plan,
                               {grad.const_data_ptr(), dense_x.const_data_ptr(), input(clipped_y),
                                call.weight.const_data_ptr(), dense_saved.const_data_ptr(), output(grad_x),
                                output(grad_residual), output(grad_weight), scratch.mutable_data_ptr()},
                               current_stream(x)));
  } else if (grad_weight) {
    torch::stable::zero_(*grad_weight);
  }
  const auto or_empty = [&](const Optional& tensor) { return tensor ? *tensor : allocate({0}, x.scalar_type(), x); };
  return {or_empty(grad_x), or_empty(grad_weight), or_empty(grad_residual)};
}

ATTNKERNELS_CUDA_LIBRARY_IMPL(m) {
  m.impl("efficient_channel_attention", TORCH_BOX(&forward));
  m.impl("efficient_channel_attention_backward", TORCH_BOX(&backward));
}

}  // namespace
}  // namespace attnkernels::efficient_channel_attention
