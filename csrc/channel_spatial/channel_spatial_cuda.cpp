// The CUDA backend of the channel_spatial operators in torch: checks, allocation, stream. Built with ATTNKERNELS_EMULATED
// it takes CPU tensors and runs the same kernels on the host.
#include <tuple>

#include "channel_spatial/channel_spatial_binding.h"
#include "channel_spatial/channel_spatial_launch.h"
#include "common/cuda_binding.h"

namespace attnkernels::channel_spatial {
namespace {

// Null where a result was not needed, and is empty.
void* result(const Tensor& tensor) { return tensor.numel() ? tensor.mutable_data_ptr() : nullptr; }

// The maps of a call, dense in x's layout, on its device, and what is allocated beside them.
struct Maps {
  explicit Maps(const Checked& checked, const Optional& given_grad_y = std::nullopt)
      : checked(checked),
        shape(checked.shape),
        type(data_type(checked.op, checked.x)),
        guard(checked.x.get_device_index()),
        x(attnkernels::as_layout(checked.x, checked.channels_last)) {
    LayoutCopies copies;
    grad_y = copies.as_layout(given_grad_y, checked.channels_last);
    copies.run(checked.op, x);
  }

  Tensor like_x(bool wanted = true) const {
    return wanted ? allocate(x.sizes(), checked.dtype, x, checked.channels_last) : allocate({0}, checked.dtype, x);
  }
  Tensor numbers(torch::headeronly::IntHeaderOnlyArrayRef sizes) const {
    return allocate(sizes, checked.numbers_dtype, x);
  }
  Tensor per_channel(bool wanted = true) const {
    return wanted ? numbers({shape.samples, shape.channels}) : numbers({0});
  }
  Tensor per_pixel(bool wanted = true) const {
    return wanted ? numbers({shape.samples, shape.height, shape.width}) : numbers({0});
  }

  // The call of a pass, without its maps.
  void run(Call call) const {
    if (!shape.samples) return;
    call.tensors.x = x.const_data_ptr();
    call.tensors.grad_y = input(grad_y);
    gate::Limits found;
    check_launch(checked.op, limits(found));
    const matrix::Plan plan = choose(type, shape, call, found);
    Optional scratch;
    if (plan.scratch()) scratch = numbers({plan.scratch()});
    check_launch(checked.op, channel_spatial::run(type, call, plan, output(scratch), current_stream(x)));
  }

  const Checked& checked;
  const Shape& shape;
  DataType type;
  DeviceGuard guard;
  Tensor x;
  Optional grad_y;
};

std::tuple<Tensor, Tensor, Tensor> pool(const Tensor& x, const Optional& spatial_weight, const Optional& spatial_bias,
                                        int64_t pools) {
  check_device("channel_spatial_pool: x", x);
  const CheckedPool checked(x, spatial_weight, spatial_bias, pools);
  const Maps maps(checked);
  const bool maxima = checked.maxima(), project = checked.spatial_weight.has_value();
  Tensor pooled = maps.numbers({maps.shape.samples, checked.columns(), maps.shape.channels});
  Tensor marks = maps.per_channel(checked.marked()), spatial_gate = maps.per_pixel(project);
  const bool share = checked.pools == Pools::kMeansAndSharedMaxima;
  if (maxima || (!project && checked.columns()))
    maps.run({Operator::kPool, {.by_channel = result(pooled), .found_marks = result(marks)}, maxima, {}, {}, share});
  // Means come along; after maxima the map is read once more, for no network asks for both.
  if (project)
    maps.run({Operator::kProject,
              {.spatial_weight = input(checked.spatial_weight),
               .spatial_bias = input(checked.spatial_bias),
               .by_channel = maxima ? nullptr : result(pooled),
               .by_pixel = result(spatial_gate)}});
  return {pooled, marks, spatial_gate};
}

std::tuple<Tensor, Tensor> statistics(const Tensor& x, const Optional& channel_gate, int64_t ties) {
  check_device("channel_spatial_statistics: x", x);
  const CheckedStatistics checked(x, channel_gate, ties);
  const Maps maps(checked);
  Tensor found = maps.numbers({maps.shape.samples, 2, maps.shape.height, maps.shape.width});
  Tensor marks = maps.per_pixel(checked.marked());
  maps.run({.op = Operator::kStatistics,
            .tensors = {.channel_gate = input(checked.channel_gate),
                        .by_pixel = result(found),
                        .found_marks = result(marks)},
            .share = checked.ties == Ties::kShare});
  return {found, marks};
}

Tensor scale(const Tensor& x, const Optional& channel_gate, const Optional& spatial_gate, int64_t merge, int64_t skip) {
  check_device("channel_spatial_scale: x", x);
  const CheckedScale checked(x, channel_gate, spatial_gate, merge, skip);
  const Maps maps(checked);
  Tensor y = maps.like_x();
  maps.run({.op = Operator::kScale,
            .tensors = {.channel_gate = input(checked.channel_gate),
                        .spatial_gate = input(checked.spatial_gate),
                        .map = result(y)},
            .merge = checked.merge,
            .skip = bool(skip)});
  return y;
}

std::tuple<Tensor, Tensor> grad_gates(const Tensor& grad_y, const Tensor& x, const Optional& channel_gate,
                                      const Optional& spatial_gate, int64_t merge, int64_t needs) {
  check_device("channel_spatial_grad_gates: x", x);
  const CheckedGradGates checked(grad_y, x, channel_gate, spatial_gate, merge, needs);
  const Maps maps(checked, grad_y);
  Tensor of_channel = maps.per_channel(needs & kNeedsChannel), of_pixel = maps.per_pixel(needs & kNeedsSpatial);
  if (needs)
    maps.run({.op = Operator::kGradGates,
              .tensors = {.channel_gate = input(checked.channel_gate),
                          .spatial_gate = input(checked.spatial_gate),
                          .by_channel = result(of_channel),
                          .by_pixel = result(of_pixel)},
              .merge = checked.merge});
  return {of_channel, of_pixel};
}

Tensor grad_channel_gate(const Tensor& grad_y, const Tensor& x, const Tensor& channel_gate, const Tensor& spatial_gate,
                         const Tensor& grad_statistics, const Tensor& statistics, const Tensor& marks, int64_t share) {
  check_device("channel_spatial_grad_channel_gate: x", x);
  const CheckedGradChannelGate checked(grad_y, x, channel_gate, spatial_gate, grad_statistics, statistics, marks,
                                       share);
  const Maps maps(checked, grad_y);
  Tensor of_channel = maps.per_channel();
  maps.run({.op = Operator::kGradChannelGate,
            .tensors = {.channel_gate = input(checked.channel_gate),
                        .spatial_gate = input(checked.spatial_gate),
                        .grad_statistics = input(checked.grad_statistics),
                        .statistics = input(checked.statistics),
                        .marks = input(checked.marks),
                        .by_channel = result(of_channel)},
            .share = bool(share)});
  return of_channel;
}

Tensor grad_x(const Tensor& grad_y, const Tensor& x, const Optional& channel_gate, const Optional& spatial_gate,
              const Optional& grad_statistics, const Optional& statistics, const Optional& marks,
              const Optional& grad_pooled, const Optional& pooled, const Optional& pool_marks, int64_t skip,
              int64_t share) {
  check_device("channel_spatial_grad_x: x", x);
  const CheckedGradX checked(grad_y, x, channel_gate, spatial_gate, grad_statistics, statistics, marks, grad_pooled,
                             pooled, pool_marks, skip, share);
  const Maps maps(checked, grad_y);
  Tensor grad = maps.like_x();
  maps.run({.op = Operator::kGradX,
            .tensors = {.channel_gate = input(checked.channel_gate),
                        .spatial_gate = input(checked.spatial_gate),
                        .grad_statistics = input(checked.grad_statistics),
                        .statistics = input(checked.statistics),
                        .marks = input(checked.marks),
                        .grad_pooled = input(checked.grad_pooled),
                        .pooled = input(checked.pooled),
                        .pool_marks = input(checked.pool_marks),
                        .map = result(grad)},
            .maxima = checked.maxima(),
            .skip = bool(skip),
            .share = bool(share)});
  return grad;
}

std::tuple<Tensor, Tensor> grad_concurrent(const Tensor& grad_y, const Tensor& x, const Optional& channel_gate,
                                           const Tensor& spatial_gate, const Optional& grad_means,
                                           const Tensor& grad_spatial_gate, const Tensor& spatial_weight, int64_t merge,
                                           int64_t needs) {
  check_device("channel_spatial_grad_concurrent: x", x);
  const CheckedGradConcurrent checked(grad_y, x, channel_gate, spatial_gate, grad_means, grad_spatial_gate,
                                      spatial_weight, merge, needs);
  const Maps maps(checked, grad_y);
  Tensor grad = maps.like_x(needs & kNeedsX);
  Tensor grad_weight = allocate({needs & kNeedsWeight ? maps.shape.channels : 0}, checked.dtype, x);
  if (!maps.shape.samples) torch::stable::zero_(grad_weight);
  if (needs)
    maps.run({.op = Operator::kGradConcurrent,
              .tensors = {.spatial_weight = input(checked.spatial_weight),
                          .channel_gate = input(checked.channel_gate),
                          .spatial_gate = input(checked.spatial_gate),
                          .grad_means = input(checked.grad_means),
                          .grad_spatial_gate = input(checked.grad_spatial_gate),
                          .map = result(grad),
                          .by_channel = result(grad_weight)},
              .merge = checked.merge});
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
