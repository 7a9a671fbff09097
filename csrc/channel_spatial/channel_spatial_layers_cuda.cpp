// The CUDA backend of the channel gate's layers in torch: checks, allocation, stream. Built with ATTNKERNELS_EMULATED it
// takes CPU tensors and runs the same kernels on the host.
#include <tuple>

#include "channel_spatial/channel_spatial_layers_binding.h"
#include "channel_spatial/channel_spatial_layers_launch.h"
#include "common/cuda_binding.h"

namespace attnkernels::channel_spatial {
namespace {

std::tuple<Tensor, Tensor> forward(const Tensor& pooled, const Optional& reduce_weight, const Optional& reduce_bias,
                                   const Tensor& expand_weight, const Optional& expand_bias) {
  check_device("channel_spatial_layers: pooled", pooled);
  const CheckedLayersForward call(pooled, reduce_weight, reduce_bias, expand_weight, expand_bias);
  const DeviceGuard guard(pooled.get_device_index());
  Tensor gate = allocate({call.samples, call.channels}, call.numbers_dtype, pooled);
  Tensor hidden = call.hidden ? allocate({call.samples, call.pools, call.hidden}, call.numbers_dtype, pooled)
                              : allocate({0}, call.numbers_dtype, pooled);
  check_launch(call.op, layers(data_type(call.op, expand_weight), call,
                               {call.pooled.const_data_ptr(), input(call.reduce_weight), input(call.reduce_bias),
                                call.expand_weight.const_data_ptr(), input(call.expand_bias), gate.mutable_data_ptr(),
                                hidden.mutable_data_ptr()},
                               current_stream(pooled)));
  return {gate, hidden};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_gate, const Tensor& pooled,
                                                            const Tensor& gate, const Tensor& hidden,
                                                            const Optional& reduce_weight, const Tensor& expand_weight,
                                                            int64_t needs) {
  check_device("channel_spatial_layers_backward: pooled", pooled);
  const CheckedLayersBackward call(grad_gate, pooled, gate, hidden, reduce_weight, expand_weight, needs);
  const DeviceGuard guard(pooled.get_device_index());
  const auto result = [&](int need, bool there, ScalarType dtype, torch::headeronly::IntHeaderOnlyArrayRef sizes) {
    return needs & need && there ? allocate(sizes, dtype, pooled) : allocate({0}, dtype, pooled);
  };
  const bool reduces = call.hidden > 0;
  const Tensor& like = reduces ? *call.reduce_weight : call.expand_weight;
  Tensor grads[] = {result(kNeedsPooled, true, call.numbers_dtype, pooled.sizes()),
                    result(kNeedsReduceWeight, reduces, call.dtype, like.sizes()),
                    result(kNeedsReduceBias, reduces, call.dtype, {call.hidden}),
                    result(kNeedsExpandWeight, true, call.dtype, expand_weight.sizes()),
                    result(kNeedsExpandBias, true, call.dtype, {call.channels})};
  const auto wanted = [&](int i) { return grads[i].numel() ? grads[i].mutable_data_ptr() : nullptr; };
  const Tensor scratch = allocate({layers_scratch(call)}, call.numbers_dtype, pooled);
  check_launch(call.op, layers_backward(data_type(call.op, expand_weight), call,
                                        {call.grad_gate.const_data_ptr(), call.pooled.const_data_ptr(),
                                         call.gate.const_data_ptr(), call.hidden_values.const_data_ptr(),
                                         input(call.reduce_weight), call.expand_weight.const_data_ptr(), wanted(0),
                                         wanted(1), wanted(2), wanted(3), wanted(4), scratch.mutable_data_ptr()},
                                        current_stream(pooled)));
  return {grads[0], grads[1], grads[2], grads[3], grads[4]};
}

ATTNKERNELS_CUDA_LIBRARY_IMPL(m) {
  m.impl("channel_spatial_layers", TORCH_BOX(&forward));
  m.impl("channel_spatial_layers_backward", TORCH_BOX(&backward));
}

}  // namespace
}  // namespace attnkernels::channel_spatial
