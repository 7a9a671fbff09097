// The CUDA backend of the convolution of cbam's statistics in torch: checks, allocation, stream. Built with
// ATTNKERNELS_EMULATED it takes CPU tensors and runs the same kernels on the host.
#include <tuple>

#include "channel_spatial/channel_spatial_convolution_binding.h"
#include "channel_spatial/channel_spatial_convolution_launch.h"
#include "common/cuda_binding.h"

namespace attnkernels::channel_spatial {
namespace {

Tensor forward(const Tensor& statistics, const Tensor& weight, const Optional& bias, int64_t mean_first, int64_t gate) {
  check_device("channel_spatial_convolution: statistics", statistics);
  const CheckedConvolutionForward call(statistics, weight, bias, mean_first, gate);
  const DeviceGuard guard(statistics.get_device_index());
  Tensor result = allocate({call.samples, call.height, call.width}, call.numbers_dtype, statistics);
  check_launch(call.op, convolve(data_type(call.op, weight), call, call.statistics.const_data_ptr(),
                                 call.weight.const_data_ptr(), input(call.bias), gate, result.mutable_data_ptr(),
                                 current_stream(statistics)));
  return result;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& statistics, const Tensor& weight,
                                    const Optional& gate, int64_t mean_first, int64_t needs) {
  check_device("channel_spatial_convolution_backward: statistics", statistics);
  const CheckedConvolutionBackward call(grad, statistics, weight, gate, mean_first, needs);
  const DeviceGuard guard(statistics.get_device_index());
  const bool by_statistics = needs & kNeedsStatistics, by_weight = needs & kNeedsTaps;
  const auto allocated = [&](bool wanted, const Tensor& like) {
    return wanted ? allocate(like.sizes(), like.scalar_type(), statistics)
                  : allocate({0}, like.scalar_type(), statistics);
  };
  Tensor grad_statistics = allocated(by_statistics, statistics), grad_weight = allocated(by_weight, weight);
  Tensor parts = allocate({by_weight ? convolution_chunks(call) * call.weights() : 0}, call.numbers_dtype, statistics);
  check_launch(call.op, convolve_backward(
                            data_type(call.op, weight), call,
                            {call.grad.const_data_ptr(), input(call.gate), call.statistics.const_data_ptr(),
                             call.weight.const_data_ptr(), by_statistics ? grad_statistics.mutable_data_ptr() : nullptr,
                             by_weight ? grad_weight.mutable_data_ptr() : nullptr, parts.mutable_data_ptr()},
                            current_stream(statistics)));
  if (by_weight && !parts.numel()) torch::stable::zero_(grad_weight);
  return {grad_statistics, grad_weight};
}

ATTNKERNELS_CUDA_LIBRARY_IMPL(m) {
  m.impl("channel_spatial_convolution", TORCH_BOX(&forward));
  m.impl("channel_spatial_convolution_backward", TORCH_BOX(&backward));
}

}  // namespace
}  // namespace attnkernels::channel_spatial
