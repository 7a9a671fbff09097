// Launchers of the CUDA kernels of efficient_channel_attention.
#include "efficient_channel_attention/efficient_channel_attention.cuh"
#include "efficient_channel_attention/efficient_channel_attention_launch.h"

namespace attnkernels::efficient_channel_attention {
namespace {

template <class T, bool kChannelsLast, bool kResidual>
Result run_forward(const Shape& shape, const Plan& plan, const ForwardTensors& tensors, void* stream) {
  using acc_t = acc_type<T>;
  const ForwardArguments<T> a{{shape, shape.output_activation, plan, tensors.x, tensors.residual, tensors.y},
                              static_cast<const T*>(tensors.weight),
                              static_cast<acc_t*>(tensors.saved),
                              static_cast<acc_t*>(tensors.scratch),
                              shape,
                              plan.sums.splits};
  return for_each_part(shape.samples, plan, [&](int64_t first, int64_t samples) -> Result {
    ForwardArguments<T> part = a;
    part.maps = a.maps.part(first, samples);
    part.shape.samples = samples;
    part.saved += first * shape.saved_columns();
    part.partial += first * plan.partial_sums(shape);
    cudaError_t error = launch(pass_config(plan.sums, samples, stream, false),
                               efficient_channel_attention_pool<T, kChannelsLast>, part, plan.sums);
    if (error != cudaSuccess) return result("efficient_channel_attention_pool", error);
    error = launch(pass_config(plan.map, samples, stream, plan.dependent),
                   efficient_channel_attention_scale<T, kChannelsLast, kResidual>, part, plan.map);
    return result("efficient_channel_attention_scale", error);
  });
}

template <class T, bool kChannelsLast>
Result run_backward(const Shape& shape, const Plan& plan, const BackwardTensors& tensors, void* stream) {
  using acc_t = acc_type<T>;
  acc_t* const grad_logits = static_cast<acc_t*>(tensors.scratch);
  const BackwardArguments<T> a{
      {shape, plan, tensors.grad_y, tensors.x, tensors.y, tensors.grad_x, tensors.grad_residual},
      static_cast<const T*>(tensors.weight),
      static_cast<const acc_t*>(tensors.saved),
      grad_logits + shape.samples * shape.channels,
      grad_logits,
      shape,
      plan.sums.splits};
  const size_t cell_bytes = kThreads / 32 * shape.taps * sizeof(acc_t);
  WeightGrad<T> weight_grad{a, static_cast<T*>(tensors.grad_weight),
                            a.partial + shape.samples * plan.partial_sums(shape), WeightBlocks(shape)};
  const bool has_map = (tensors.grad_x || tensors.grad_residual) && shape.pixels;
  const Result done = for_each_part(shape.samples, plan, [&](int64_t first, int64_t samples) -> Result {
    BackwardArguments<T> part = a;
    part.maps = a.maps.part(first, samples);
    part.shape.samples = samples;
    part.saved += first * shape.saved_columns();
    part.partial += first * plan.partial_sums(shape);
    part.grad_logits += first * shape.channels;
    const bool needs_sums = tensors.grad_x || tensors.grad_weight;
    if (needs_sums) {
      const cudaError_t error = launch(pass_config(plan.sums, samples, stream, false),
                                       efficient_channel_attention_backward_sums<T, kChannelsLast>, part, plan.sums);
      if (error != cudaSuccess) return result("efficient_channel_attention_backward_sums", error);
    }
    if (!has_map) return {};
    LaunchConfig config = pass_config(plan.map, samples, stream, plan.dependent && needs_sums);
    const int64_t rows = ceil_div(weight_grad.blocks(), plan.map.blocks());
    if (rows && first + samples == shape.samples && rows + samples <= kMostSamples) {  // all that it needs is there
      weight_grad.grid_rows = unsigned(rows);
      config.grid.y += unsigned(rows);
      config.shared_bytes = std::max(config.shared_bytes, cell_bytes);
    }
    const auto kernel = tensors.y ? efficient_channel_attention_backward_map<T, kChannelsLast, true>
                                  : efficient_channel_attention_backward_map<T, kChannelsLast, false>;
    return result("efficient_channel_attention_backward_map", launch(config, kernel, part, plan.map, weight_grad));
  });
  if (done.error || !weight_grad.blocks()) return done;
  LaunchConfig config;
  config.stream = static_cast<cudaStream_t>(stream);
  if (!weight_grad.grid_rows) {
    config.block = dim3(kThreads);
    config.grid = dim3(unsigned(weight_grad.blocks()));
    config.shared_bytes = cell_bytes;
    const cudaError_t error = launch(config, efficient_channel_attention_backward_weight<T>, weight_grad);
    if (error != cudaSuccess) return result("efficient_channel_attention_backward_weight", error);
  }
  if (weight_grad.blocks() == 1) return {};
  config.block = dim3(32);
  config.grid = dim3(unsigned(shape.taps));
  config.shared_bytes = 0;
  config.dependent = plan.dependent;
  return result("efficient_channel_attention_weight_sum",
                launch(config, efficient_channel_attention_weight_sum<T>, weight_grad));
}

}  // namespace

Result limits(Limits& found) { return device_limits(found); }

Result forward(DataType type, const Shape& shape, const Plan& plan, const ForwardTensors& tensors, void* stream) {
  if (!shape.samples || !shape.channels || !shape.pixels) return {};
  return dispatch_map(type, shape.channels_last, [&](auto zero, auto channels_last) {
    using T = decltype(zero);
    constexpr bool kChannelsLast = decltype(channels_last)::value;
    return tensors.residual ? run_forward<T, kChannelsLast, true>(shape, plan, tensors, stream)
                            : run_forward<T, kChannelsLast, false>(shape, plan, tensors, stream);
  });
}

Result backward(DataType type, const Shape& shape, const Plan& plan, const BackwardTensors& tensors, void* stream) {
  if (!shape.channels) return {};
  return dispatch_map(type, shape.channels_last, [&](auto zero, auto channels_last) {
    return run_backward<decltype(zero), decltype(channels_last)::value>(shape, plan, tensors, stream);
  });
}

}  // namespace attnkernels::efficient_channel_attention
