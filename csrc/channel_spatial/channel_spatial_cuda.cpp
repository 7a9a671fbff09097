// The CUDA backend of the channel_spatial operators in torch: checks, allocation, stream. Built with ATTNKERNELS_EMULATED
// it takes CPU tensors and runs the same kernels on the host.
#include <tuple>

#include "channel_spatial/channel_spatial_binding.h"
#include "channel_spatial/channel_spatial_launch.h"
#include "common/cuda_binding.h"

namespace attnkernels::channel_spatial {
namespace {

// The maps of a call, dense in x's layout, and its device.
struct Maps {
  explicit Maps(const Checked& checked, const Optional& given_grad_y = std::nullopt)
      : checked(checked),
        type(data_type(checked.op, checked.x)),
        guard(checked.x.get_device_index()),
        x(attnkernels::as_layout(checked.x, checked.channels_last)) {
    check_device(checked.op, checked.x);
    LayoutCopies copies;
    grad_y = copies.as_layout(given_grad_y, checked.channels_last);
    if (checked.shape.samples) copies.run(checked.op, x);
  }

  Tensors tensors() const { return {.grad_y = input(grad_y), .x = x.const_data_ptr()}; }
  Tensor like_x() const { return allocate(x.sizes(), checked.dtype, x, checked.channels_last); }
  Tensor numbers(torch::headeronly::IntHeaderOnlyArrayRef sizes, bool wanted = true) const {
    return wanted ? allocate(sizes, checked.numbers_dtype, x) : allocate({0}, checked.numbers_dtype, x);
  }
  Tensor per_channel(bool wanted = true) const {
    return numbers({checked.shape.samples, checked.shape.channels}, wanted);
  }
  Tensor per_pixel(bool wanted = true) const {
    return numbers({checked.shape.samples, checked.shape.height, checked.shape.width}, wanted);
  }

  void run(Call call) const {
    const Shape& shape = checked.shape;
    if (!shape.samples) return;
    gate::Limits found;
    check_launch(checked.op, limits(found));
    const matrix::Plan plan = choose(type, shape, call, found);
    Optional scratch;
    if (const int64_t count = scratch_numbers(shape, call, plan)) scratch = numbers({count});
    call.tensors.scratch = output(scratch);
    check_launch(checked.op, channel_spatial::run(type, shape, call, plan, current_stream(x)));
  }

  const Checked& checked;
  DataType type;
  DeviceGuard guard;
  Tensor x;
  Optional grad_y;
};

std::tuple<Tensor, Tensor, Tensor> pool(const Tensor& x, const Optional& spatial_weight, const Optional& spatial_bias,
                                        int64_t pools) {
  const CheckedPool checked(x, spatial_weight, spatial_bias, pools);
  const Maps maps(checked);
  const Shape& shape = checked.shape;
  const bool project = checked.spatial_weight.has_value();
  Tensor pooled = maps.numbers({shape.samples, checked.columns(), shape.channels});
  Tensor marks = maps.per_channel(checked.maxima()), logits = maps.per_pixel(project);
  Call call{.op = Operator::kPool,
            .tensors = maps.tensors(),
            .pools = checked.pools,
            .share = checked.pools == Pools::kMeansAndSharedMaxima};
  if (checked.columns()) call.tensors.channels_found = pooled.mutable_data_ptr();
  call.tensors.channel_marks = marks.mutable_data_ptr();
  if (checked.maxima() || !project) {
    if (checked.columns()) maps.run(call);
    call.tensors.channels_found = nullptr;
  }
  if (project) {  // with means the same pass, after maxima one of its own, for which no network has asked
    call.op = Operator::kProject;
    call.tensors.spatial_weight = input(checked.spatial_weight);
    call.tensors.spatial_bias = input(checked.spatial_bias);
    call.tensors.pixels_found = logits.mutable_data_ptr();
    maps.run(call);
  }
  return {pooled, marks, logits};
}

std::tuple<Tensor, Tensor> statistics(const Tensor& x, const Optional& channel_gate, int64_t share) {
  const CheckedStatistics checked(x, channel_gate, share);
  const Maps maps(checked);
  const Shape& shape = checked.shape;
  Tensor found = maps.numbers({shape.samples, 2, shape.height, shape.width}), marks = maps.per_pixel();
  Call call{.op = Operator::kStatistics, .tensors = maps.tensors(), .share = bool(share)};
  call.tensors.channel_gate = input(checked.channel_gate);
  call.tensors.pixels_found = found.mutable_data_ptr();
  call.tensors.pixel_marks = marks.mutable_data_ptr();
  maps.run(call);
  return {found, marks};
}

Tensor scale(const Tensor& x, const Optional& channel_gate, const Optional& spatial_gate, int64_t merge, int64_t skip) {
  const CheckedScale checked(x, channel_gate, spatial_gate, merge, skip);
  const Maps maps(checked);
  Tensor y = maps.like_x();
  Call call{.op = Operator::kScale, .tensors = maps.tensors(), .merge = checked.merge, .skip = bool(skip)};
  call.tensors.channel_gate = input(checked.channel_gate);
  call.tensors.spatial_gate = input(checked.spatial_gate);
  call.tensors.map = y.mutable_data_ptr();
  maps.run(call);
  return y;
}

std::tuple<Tensor, Tensor> grad_gates(const Tensor& grad_y, const Tensor& x, const Optional& channel_gate,
                                      const Optional& spatial_gate, int64_t merge, int64_t needs) {
  const CheckedGradGates checked(grad_y, x, channel_gate, spatial_gate, merge, needs);
  const Maps maps(checked, grad_y);
  Tensor of_channel = maps.per_channel(needs & kNeedsChannel), of_pixel = maps.per_pixel(needs & kNeedsSpatial);
  Call call{.op = Operator::kGradGates, .tensors = maps.tensors(), .merge = checked.merge};
  call.tensors.channel_gate = input(checked.channel_gate);
  call.tensors.spatial_gate = input(checked.spatial_gate);
  if (needs & kNeedsChannel) call.tensors.channels_found = of_channel.mutable_data_ptr();
  if (needs & kNeedsSpatial) call.tensors.pixels_found = of_pixel.mutable_data_ptr();
  if (needs) maps.run(call);
  return {of_channel, of_pixel};
}

Tensor grad_channel_gate(const Tensor& grad_y, const Tensor& x, const Tensor& channel_gate, const Tensor& spatial_gate,
                         const Tensor& grad_statistics, const Tensor& statistics, const Tensor& marks, int64_t share) {
  const CheckedGradChannelGate checked(grad_y, x, channel_gate, spatial_gate, grad_statistics, statistics, marks,
                                       share);
  const Maps maps(checked, grad_y);
  Tensor of_channel = maps.per_channel();
  Call call{.op = Operator::kGradChannelGate, .tensors = maps.tensors(), .share = bool(share)};
  call.tensors.channel_gate = checked.channel_gate.const_data_ptr();
  call.tensors.spatial_gate = checked.spatial_gate.const_data_ptr();
  call.tensors.grad_statistics = checked.grad_statistics.const_data_ptr();
  call.tensors.statistics = checked.statistics.const_data_ptr();
  call.tensors.marks = checked.marks.const_data_ptr();
  call.tensors.channels_found = of_channel.mutable_data_ptr();
  maps.run(call);
  return of_channel;
}

Tensor grad_x(const Tensor& grad_y, const Tensor& x, const Optional& channel_gate, const Optional& spatial_gate,
              const Optional& grad_statistics, const Optional& statistics, const Optional& marks,
              const Optional& grad_pooled, const Optional& pooled, const Optional& pool_marks, int64_t skip,
              int64_t share) {
  const CheckedGradX checked(grad_y, x, channel_gate, spatial_gate, grad_statistics, statistics, marks, grad_pooled,
                             pooled, pool_marks, skip, share);
  const Maps maps(checked, grad_y);
  Tensor grad = maps.like_x();
  Call call{.op = Operator::kGradX,
            .tensors = maps.tensors(),
            .pools = checked.maxima() ? Pools::kMeansAndMaxima : Pools::kMeans,
            .skip = bool(skip),
            .share = bool(share)};
  call.tensors.channel_gate = input(checked.channel_gate);
  call.tensors.spatial_gate = input(checked.spatial_gate);
  call.tensors.grad_statistics = input(checked.grad_statistics);
  call.tensors.statistics = input(checked.statistics);
  call.tensors.marks = input(checked.marks);
  call.tensors.grad_pooled = input(checked.grad_pooled);
  call.tensors.pooled = input(checked.pooled);
  call.tensors.pool_marks = input(checked.pool_marks);
  call.tensors.map = grad.mutable_data_ptr();
  maps.run(call);
  return grad;
}

std::tuple<Tensor, Tensor> grad_concurrent(const Tensor& grad_y, const Tensor& x, const Optional& channel_gate,
                                           const Tensor& spatial_gate, const Optional& grad_means,
                                           const Tensor& grad_logits, const Tensor& spatial_weight, int64_t merge,
                                           int64_t needs) {
  const CheckedGradConcurrent checked(grad_y, x, channel_gate, spatial_gate, grad_means, grad_logits, spatial_weight,
                                      merge, needs);
  const Maps maps(checked, grad_y);
  Tensor grad = needs & kNeedsX ? maps.like_x() : allocate({0}, checked.dtype, x);
  Tensor grad_weight = allocate({needs & kNeedsWeight ? checked.shape.channels : 0}, checked.dtype, x);
  Call call{.op = Operator::kGradConcurrent, .tensors = maps.tensors(), .merge = checked.merge};
  call.tensors.channel_gate = input(checked.channel_gate);
  call.tensors.spatial_gate = checked.spatial_gate.const_data_ptr();
  call.tensors.grad_means = input(checked.grad_means);
  call.tensors.grad_logits = checked.grad_logits.const_data_ptr();
  call.tensors.spatial_weight = checked.spatial_weight.const_data_ptr();
  if (needs & kNeedsX) call.tensors.map = grad.mutable_data_ptr();
  if (needs & kNeedsWeight) call.tensors.channels_found = grad_weight.mutable_data_ptr();
  if (needs) maps.run(call);
  if (!checked.shape.samples) torch::stable::zero_(grad_weight);
  return {grad, grad_weight};
}

ATTNKERNELS_CUDA_LIBRARY_IMPL(m) {
  m.impl("channel_spatial_pool", TORCH_BOX(&pool));
  m.impl("channel_spatial_statistics", TORCH_BOX(&statistics));
  m.impl("channel_spatial_scale", TORCH_BOX(&scale));
  m.impl("channel_spatial_grad_gates", TORCH_BOX(&grad_gates));
  m.impl("channel_spatial_grad_channel_gate", TORCH_BOX(&grad_channel_gate));
  m.impl("channel_spatial_grad_x", TORCH_BOX(&grad_x));
  m.impl("channel_spatial_grad_concurrent", TORCH_BOX(&grad_concurrent));
}

}  // namespace
}  // namespace attnkernels::channel_spatial
