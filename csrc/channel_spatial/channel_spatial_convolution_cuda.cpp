// The CUDA backend of the convolution of cbam's statistics in torch: checks, allocation, stream. Built with
// ATTNKERNELS_EMULATED it takes CPU tensors and runs the same kernels on the host.
#include <tuple>

#include "channel_spatial/channel_spatial_convolution_binding.h"
#include "channel_spatial/channel_spatial_convolution_launch.h"
#include "common/cuda_binding.h"

namespace attnkernels::channel_spatial {
namespace {

Tensor forward(const Tensor& statistics, const Tensor& weight, const Optional& bias) {
  const char* op = "channel_spatial_convolution";
  check_device("channel_spatial_convolution: statistics", statistics);
  const CheckedConvolutionForward call(statistics, weight, bias);
  const DeviceGuard guard(statistics.get_device_index());
  const ScalarType dtype = statistics.scalar_type();
  Tensor logits = allocate({call.samples, call.height, call.width}, dtype, statistics);
  check_launch(
      op, convolve(dtype == ScalarType::Double, call, call.statistics.const_data_ptr(), call.weight.const_data_ptr(),
                   input(call.bias), logits.mutable_data_ptr(), current_stream(statistics)));
  return logits;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& statistics, const Tensor& weight, int64_t needs) {
  const char* op = "channel_spatial_convolution_backward";
  check_device("channel_spatial_convolution_backward: statistics", statistics);
  const CheckedConvolutionBackward call(grad, statistics, weight, needs);
  const DeviceGuard guard(statistics.get_device_index());
  const ScalarType dtype = statistics.scalar_type();
  const bool by_statistics = needs & kNeedsStatistics, by_weight = needs & kNeedsTaps;
  const auto allocated = [&](bool wanted, const Tensor& like) {
    return wanted ? allocate(like.sizes(), dtype, statistics) : allocate({0}, dtype, statistics);
  };
  Tensor grad_statistics = allocated(by_statistics, statistics), grad_weight = allocated(by_weight, weight);
  Tensor parts = allocate({by_weight ? convolution_chunks(call) * call.weights() : 0}, dtype, statistics);
  check_launch(op, convolve_backward(dtype == ScalarType::Double, call, call.grad.const_data_ptr(),
                                     call.statistics.const_data_ptr(), call.weight.const_data_ptr(),
                                     by_statistics ? grad_statistics.mutable_data_ptr() : nullptr,
                                     by_weight ? grad_weight.mutable_data_ptr() : nullptr, parts.mutable_data_ptr(),
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
