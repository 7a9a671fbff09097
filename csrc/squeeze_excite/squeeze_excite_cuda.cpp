// The CUDA backend of squeeze_excite in torch: checks, allocation, stream. Built with ATTNKERNELS_EMULATED it takes CPU
// tensors and runs the same kernels on the host.
#include <limits>
#include <string>
#include <tuple>

#include "common/cuda_binding.h"
#include "squeeze_excite/squeeze_excite_launch.h"

namespace attnkernels::squeeze_excite {
namespace {

using Optional = std::optional<Tensor>;

// What memory safety asks for; the Python function has the full checks and messages.
void check_tensor(const char* name, const Tensor& tensor, const Tensor& x, int64_t numel) {
  STD_TORCH_CHECK(tensor.device() == x.device() && tensor.scalar_type() == x.scalar_type() && tensor.numel() == numel,
                  "squeeze_excite: ", name, ": expected ", numel, " elements of x's dtype on x's device, got ",
                  tensor.numel());
}
void check_map(const char* name, const Tensor& tensor, const Tensor& x) {
  check_tensor(name, tensor, x, x.numel());
  STD_TORCH_CHECK(same_shape(tensor, x), "squeeze_excite: ", name, ": expected the shape of x");
}

struct Call {
  Tensor x;
  bool channels_last;
  Optional reduce_weight, reduce_bias, expand_bias;
  Tensor expand_weight;
  DataType type;
  Shape shape;
};

Call checked_call(const Tensor& x, const Optional& reduce_weight, const Optional& reduce_bias,
                  const Tensor& expand_weight, const Optional& expand_bias, int64_t activation, int64_t gate,
                  int64_t output_activation) {
  check_device("squeeze_excite: x", x);
  STD_TORCH_CHECK(x.dim() == 4, "squeeze_excite: x: expected a tensor [N, C, H, W], got ", x.dim(), " dimensions");
  const int64_t channels = x.size(1), hidden = reduce_weight ? reduce_weight->size(0) : 0;
  if (reduce_weight) check_tensor("reduce_weight", *reduce_weight, x, hidden * channels);
  if (reduce_bias) check_tensor("reduce_bias", *reduce_bias, x, hidden);
  check_tensor("expand_weight", expand_weight, x, channels * (reduce_weight ? hidden : channels));
  if (expand_bias) check_tensor("expand_bias", *expand_bias, x, channels);
  STD_TORCH_CHECK((activation | 1) == 1 && (gate | 1) == 1 && (output_activation | 1) == 1,
                  "squeeze_excite: activation, gate, output_activation: expected 0 or 1");
  const bool channels_last = is_channels_last(x);
  return {attnkernels::as_layout(x, channels_last),
          channels_last,
          attnkernels::contiguous(reduce_weight),
          attnkernels::contiguous(reduce_bias),
          attnkernels::contiguous(expand_bias),
          attnkernels::contiguous(expand_weight),
          data_type("squeeze_excite: x", x),
          {x.size(0), channels, hidden, x.size(2) * x.size(3), channels_last, Activation(activation), Gate(gate),
           OutputActivation(output_activation), reduce_weight && !hidden}};
}

const void* input(const Optional& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }
void* output(const Optional& tensor) { return tensor ? tensor->mutable_data_ptr() : nullptr; }

Tensor as_layout(LayoutCopies& copies, const Tensor& tensor, bool channels_last) {
  return has_layout(tensor, channels_last) ? tensor : copies.copy(tensor, channels_last);
}
Optional as_layout(LayoutCopies& copies, const Optional& tensor, bool channels_last) {
  return tensor ? Optional(as_layout(copies, *tensor, channels_last)) : std::nullopt;
}

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
  const Call call =
      checked_call(x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate, output_activation);
  if (residual) check_map("residual", *residual, x);
  const DeviceGuard guard(x.get_device_index());
  LayoutCopies copies;
  const Optional added = as_layout(copies, residual, call.channels_last);
  copies.run("squeeze_excite", x);
  const ScalarType sum = accumulation_dtype(x.scalar_type());
  Tensor y = allocate(x.sizes(), x.scalar_type(), x, call.channels_last);
  Tensor saved = allocate({call.shape.samples, call.shape.saved_columns()}, sum, x);
  if (!call.shape.samples || !call.shape.channels || !call.shape.pixels) {
    torch::stable::fill_(saved, std::numeric_limits<double>::quiet_NaN());  // the mean over no pixel, and what follows
    return {y, saved};
  }
  const Plan plan = choose_forward(call.type, call.shape, device_limits());
  const Tensor scratch = allocate({forward_scratch(call.shape, plan)}, sum, x);
  check(forward(call.type, call.shape, plan,
                {call.x.const_data_ptr(), input(call.reduce_weight), input(call.reduce_bias),
                 call.expand_weight.const_data_ptr(), input(call.expand_bias), input(added), y.mutable_data_ptr(),
                 saved.mutable_data_ptr(), scratch.mutable_data_ptr()},
                current_stream(x)));
  return {y, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> squeeze_excite_backward(
    const Tensor& grad_y, const Tensor& x, const Optional& y, const Optional& reduce_weight,
    const Optional& reduce_bias, const Tensor& expand_weight, const Optional& expand_bias, const Tensor& saved,
    int64_t activation, int64_t gate, int64_t output_activation, int64_t needs) {
  const Call call =
      checked_call(x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate, output_activation);
  check_map("grad_y", grad_y, x);
  if (y) check_map("y", *y, x);
  STD_TORCH_CHECK(y || !output_activation, "squeeze_excite: y: expected a tensor, as there is an output activation");
  const ScalarType sum = accumulation_dtype(x.scalar_type());
  STD_TORCH_CHECK(saved.device() == x.device() && saved.scalar_type() == sum && saved.is_contiguous() &&
                      saved.numel() == call.shape.samples * call.shape.saved_columns(),
                  "squeeze_excite: saved: expected what the forward gave");
  const DeviceGuard guard(x.get_device_index());
  LayoutCopies copies;
  const Tensor grad = as_layout(copies, grad_y, call.channels_last);
  const Optional clipped_y = output_activation ? as_layout(copies, y, call.channels_last) : std::nullopt;
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
    const Plan plan = choose_backward(call.type, call.shape, device_limits());
    const Tensor scratch = allocate({backward_scratch(call.shape, plan)}, sum, x);
    check(backward(call.type, call.shape, plan,
                   {grad.const_data_ptr(), call.x.const_data_ptr(), input(clipped_y), input(call.reduce_weight),
                    call.expand_weight.const_data_ptr(), saved.const_data_ptr(), output(grad_x), output(grad_residual),
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
