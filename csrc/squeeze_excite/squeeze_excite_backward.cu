// Launchers of the backward kernels.
#include "squeeze_excite/squeeze_excite_backward.cuh"
#include "squeeze_excite/squeeze_excite_launch.h"

namespace attnkernels::squeeze_excite {
namespace {

template <class T, bool kMeans>
Result run_layer(const BackwardArguments<T>& part, LaunchConfig config) {
  const LayerGrid grid = transposed_layer_grid<kGradVectors<kMeans>>(grad_layer_of<kMeans>(part), part.sum_splits);
  config.grid = grid_of(grid.blocks, grid.sample_groups);
  config.shared_bytes = 0;
  return result("squeeze_excite_backward_layer",
                grid.together ? launch(config, squeeze_excite_backward_layer<T, kMeans, kGradSamples<T>>, part)
                              : launch(config, squeeze_excite_backward_layer<T, kMeans, 1>, part));
}

// Gradients of maps and, in the last launch, of the weights.
template <class T, bool kChannelsLast>
Result run_passes(const BackwardArguments<T>& a, const Plan& plan, WeightGrads<T>& weight_grads, void* stream) {
  const Shape& shape = a.shape;
  return for_each_part(shape.samples, plan, [&](int64_t first, int64_t samples) -> Result {
    BackwardArguments<T> part = a;
    part.maps = a.maps.part(first, samples);
    part.shape.samples = samples;
    part.saved += first * shape.saved_columns();
    part.partial += first * plan.partial_sums(shape);
    part.grad_logits += first * shape.channels;
    part.grad_hidden += first * shape.hidden;
    part.grad_means += first * shape.channels;
    const bool needs_sums = part.maps.grad_x || weight_grads.blocks();
    LaunchConfig config = pass_config(plan.map, samples, stream, plan.dependent && needs_sums);
    if (needs_sums) {
      const cudaError_t error = launch(pass_config(plan.sums, samples, stream, false),
                                       squeeze_excite_backward_sums<T, kChannelsLast>, part, plan.sums);
      if (error != cudaSuccess) return result("squeeze_excite_backward_sums", error);
      if (shape.hidden || plan.sums.splits > 1)
        if (const Result done = run_layer<T, false>(part, config); done.error) return done;
      if (part.maps.grad_x && !plan.layer_in_map)
        if (const Result done = run_layer<T, true>(part, config); done.error) return done;
    }
    if (!(part.maps.grad_x || part.maps.grad_residual) || !shape.pixels) return {};
    const int64_t rows = ceil_div(weight_grads.blocks(), plan.map.blocks());
    if (rows && first + samples == shape.samples && rows + samples <= kMostSamples) {  // all that they need is there
      weight_grads.grid_rows = unsigned(rows);
      config.grid.y += unsigned(rows);
      config.shared_bytes = std::max(config.shared_bytes, WeightGrads<T>::shared_bytes());
    }
    return result(
        "squeeze_excite_backward_map",
        part.maps.y
            ? launch(config, squeeze_excite_backward_map<T, kChannelsLast, true>, part, plan.map, weight_grads)
            : launch(config, squeeze_excite_backward_map<T, kChannelsLast, false>, part, plan.map, weight_grads));
  });
}

template <class T, bool kChannelsLast>
Result run_backward(const Shape& shape, const Plan& plan, const BackwardTensors& tensors, void* stream) {
  using acc_t = acc_type<T>;
  acc_t* const grad_logits = static_cast<acc_t*>(tensors.scratch);
  acc_t* const grad_hidden = grad_logits + shape.samples * shape.channels;
  acc_t* const grad_means = grad_hidden + shape.samples * shape.hidden;
  const BackwardArguments<T> a{
      {shape, plan, tensors.grad_y, tensors.x, tensors.y, tensors.grad_x, tensors.grad_residual},
      static_cast<const acc_t*>(tensors.saved),
      grad_means + (plan.layer_in_map ? 0 : shape.samples * shape.channels),
      grad_logits,
      grad_hidden,
      grad_means,
      {static_cast<const T*>(tensors.reduce_weight), nullptr, static_cast<const T*>(tensors.expand_weight), nullptr},
      shape,
      plan.layer_in_map,
      plan.sums.splits};

  WeightGrads<T> weight_grads{};
  weight_grads.samples = shape.samples;
  weight_grads.activation = shape.activation;
  weight_grads.activated_columns = shape.hidden > 0;
  const int64_t pitch = shape.saved_columns();
  if (tensors.grad_expand_weight || tensors.grad_expand_bias)
    weight_grads.sums[0] = {{shape.channels, shape.gate_inputs(), static_cast<T*>(tensors.grad_expand_weight),
                             static_cast<T*>(tensors.grad_expand_bias)},
                            a.grad_logits,
                            shape.channels,
                            a.saved + (shape.hidden ? shape.channels : 0),
                            pitch};
  if (shape.hidden && (tensors.grad_reduce_weight || tensors.grad_reduce_bias))
    weight_grads.sums[1] = {{shape.hidden, shape.channels, static_cast<T*>(tensors.grad_reduce_weight),
                             static_cast<T*>(tensors.grad_reduce_bias)},
                            a.grad_hidden,
                            shape.hidden,
                            a.saved,
                            pitch};
  if (shape.samples && shape.channels)
    if (const Result done = run_passes<T, kChannelsLast>(a, plan, weight_grads, stream); done.error) return done;
  if (!weight_grads.blocks() || weight_grads.grid_rows) return {};
  LaunchConfig config;
  config.stream = static_cast<cudaStream_t>(stream);
  config.block = dim3(kThreads);
  config.grid = dim3(unsigned(weight_grads.blocks()));
  config.shared_bytes = WeightGrads<T>::shared_bytes();
  return result("squeeze_excite_backward_weights", launch(config, squeeze_excite_backward_weights<T>, weight_grads));
}

}  // namespace

Result backward(DataType type, const Shape& shape, const Plan& plan, const BackwardTensors& tensors, void* stream) {
  return dispatch_map(type, shape.channels_last, [&](auto zero, auto channels_last) {
    return run_backward<decltype(zero), decltype(channels_last)::value>(shape, plan, tensors, stream);
  });
}

}  // namespace attnkernels::squeeze_excite
