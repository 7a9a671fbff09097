// The CUDA backend of squeeze_excite in torch: checks, allocation, stream. Built with ATTNKERNELS_EMULATED it takes CPU
// tensors and runs the same kernels on the host.
#include <limits>
#include <string>
#include <tuple>

#include "common/cuda_binding.h"
#include "squeeze_excite/squeeze_excite_binding.h"
#include "squeeze_excite/squeeze_excite_launch.h"

namespace attnkernels::squeeze_excite {
namespace {

void check(const Result& result) { check_launch("squeeze_excite", result); }

Limits device_limits() {
  Limits found;
  check(limits(found));
  return found;
}

std::tuple<Tensor, Tensor> squeeze_excite(const Tensor& x, const Optional& reduce_weight, const Optional& reduce_bias,
                                          const Tensor& expand_weight, const Optional& expand_bias,
                                          const Optional& residual, int64_t activation, int64_t gate,
                                          int64_t output_activation) {
  check_device("squeeze_excite: x", x);
  const DataType type = data_type("squeeze_excite: x", x);
  const CheckedCall call(x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate,
                         output_activation);
  if (residual) check_map("squeeze_excite", "residual", *residual, x);
  const DeviceGuard guard(x.get_device_index());
  const Tensor dense_x = attnkernels::as_layout(x, call.channels_last);
  LayoutCopies copies;
  const Optional added = copies.as_layout(residual, call.channels_last);
  copies.run("squeeze_excite", x);
  const ScalarType sum = accumulation_dtype(x.scalar_type());
  Tensor y = allocate(x.sizes(), x.scalar_type(), x, call.channels_last);
  Tensor saved = allocate({call.shape.samples, call.shape.saved_columns()}, sum, x);
  if (!call.shape.samples || !call.shape.channels || !call.shape.pixels) {
    torch::stable::fill_(saved, std::numeric_limits<double>::quiet_NaN());  // the mean over no pixel, and what follows
    return {y, saved};
  }
  const Plan plan = choose_forward(type, call.shape, device_limits());
  const Tensor scratch = allocate({forward_scratch(call.shape, plan)}, sum, x);
  check(forward(type, call.shape, plan,
                {dense_x.const_data_ptr(), input(call.reduce_weight), input(call.reduce_bias),
                 call.expand_weight.const_data_ptr(), input(call.expand_bias), input(added), y.mutable_data_ptr(),
                 saved.mutable_data_ptr(), scratch.mutable_data_ptr()},
                current_stream(x)));
  return {y, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> squeeze_excite_backward(
    const Tensor& grad_y, const Tensor& x, const Optional& y, const Optional& reduce_weight,
    const Optional& reduce_bias, const Tensor& expand_weight, const Optional& expand_bias, const Tensor& saved,
    int64_t activation, int64_t gate, int64_t output_activation, int64_t needs) {
  check_device("squeeze_excite: x", x);
  const DataType type = data_type("squeeze_excite: x", x);
  const CheckedCall call(x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate,
                         output_activation);
  check_map("squeeze_excite", "grad_y", grad_y, x);
  check_kept("squeeze_excite", saved, call.shape.saved_columns(), y, call.shape.output_activation, x);
  const ScalarType sum = accumulation_dtype(x.scalar_type());
  const Tensor dense_saved = attnkernels::contiguous(saved);
  const DeviceGuard guard(x.get_device_index());
  const Tensor dense_x = attnkernels::as_layout(x, call.channels_last);
  LayoutCopies copies;
  const Tensor grad = copies.as_layout(grad_y, call.channels_last);
  const Optional clipped_y = output_activation ? copies.as_layout(y, call.channels_last) : std::nullopt;
  copies.run("squeeze_excite", x);

  const auto map = [&](int need) {
    return needs & need ? Optional(allocate(x.sizes(), x.scalar_type(), x, call.channels_last)) : std::nullopt;
  };
  const auto parameter = [&](const Optional& like) {
    return needs & kNeedsWeights && like ? Optional(allocate(like->sizes(), x.scalar_type(), x)) : std::nullopt;
  };
  Optional grad_x = map(kNeedsX), grad_residual = map(kNeedsResidual);
  Optional grads[] = {parameter(reduce_weight), parameter(reduce_bias), parameter(expand_weight),
                      parameter(expand_bias)};
  if (call.shape.channels) {
    const Plan plan = choose_backward(type, call.shape, device_limits());
    const Tensor scratch = allocate({backward_scratch(call.shape, plan)}, sum, x);
    check(backward(
        type, call.shape, plan,
        {grad.const_data_ptr(), dense_x.const_data_ptr(), input(clipped_y), input(call.reduce_weight),
         call.expand_weight.const_data_ptr(), dense_saved.const_data_ptr(), output(grad_x), output(grad_residual),
         output(grads[0]), output(grads[1]), output(grads[2]), output(grads[3]), scratch.mutable_data_ptr()},
        current_stream(x)));
  } else {
    for (Optional& parameter_grad : grads)
      if (parameter_grad) torch::stable::zero_(*parameter_grad);
  }
  const auto or_empty = [&](const Optional& tensor) { return tensor ? *tensor : allocate({0}, x.scalar_type(), x); };
  return {or_empty(grad_x),   or_empty(grad_residual), or_empty(grads[0]),
          or_empty(grads[1]), or_empty(grads[2]),      or_empty(grads[3])};
}

ATTNKERNELS_CUDA_LIBRARY_IMPL(m) {
  m.impl("squeeze_excite", TORCH_BOX(&squeeze_excite));
  m.impl("squeeze_excite_backward", TORCH_BOX(&squeeze_excite_backward));
}

}  // namespace
}  // namespace attnkernels::squeeze_excite
