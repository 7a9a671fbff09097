// Launchers of the forward kernels, and the device's limits.
#include "squeeze_excite/squeeze_excite_forward.cuh"
#include "squeeze_excite/squeeze_excite_launch.h"

namespace attnkernels::squeeze_excite {
namespace {

template <class T, bool kGates>
Result run_layer(const ForwardArguments<T>& part, LaunchConfig config) {
  const LayerGrid grid = layer_grid(layer_of<kGates>(part), part.sum_splits);
  config.grid = grid_of(grid.blocks, grid.sample_groups);
  config.shared_bytes = 0;
  return result("squeeze_excite_layer",
                grid.together
                    ? launch(config, squeeze_excite_layer<T, kGates, kLayerSamples<T>>, part, grid.group_warps)
                    : launch(config, squeeze_excite_layer<T, kGates, 1>, part, grid.group_warps));
}

template <class T, bool kChannelsLast, bool kResidual>
Result run_forward(const Shape& shape, const Plan& plan, const ForwardTensors& tensors, void* stream) {
  using acc_t = acc_type<T>;
  acc_t* const activated = static_cast<acc_t*>(tensors.scratch);
  const ForwardArguments<T> a{
      {shape, shape.output_activation, plan, tensors.x, tensors.residual, tensors.y},
      static_cast<acc_t*>(tensors.saved),
      activated + shape.samples * shape.hidden,
      activated,
      {static_cast<const T*>(tensors.reduce_weight), static_cast<const T*>(tensors.reduce_bias),
       static_cast<const T*>(tensors.expand_weight), static_cast<const T*>(tensors.expand_bias)},
      shape,
      plan.layer_in_map,
      plan.sums.splits};
  return for_each_part(shape.samples, plan, [&](int64_t first, int64_t samples) -> Result {
    ForwardArguments<T> part = a;
    part.maps = a.maps.part(first, samples);
    part.shape.samples = samples;
    part.saved += first * shape.saved_columns();
    part.partial += first * plan.partial_sums(shape);
    part.activated += first * shape.hidden;
    cudaError_t error =
        launch(pass_config(plan.sums, samples, stream, false), squeeze_excite_pool<T, kChannelsLast>, part, plan.sums);
    if (error != cudaSuccess) return result("squeeze_excite_pool", error);
    LaunchConfig config = pass_config(plan.map, samples, stream, plan.dependent);
    if (shape.hidden)
      if (const Result done = run_layer<T, false>(part, config); done.error) return done;
    if (!plan.layer_in_map)
      if (const Result done = run_layer<T, true>(part, config); done.error) return done;
    error = launch(config, squeeze_excite_scale<T, kChannelsLast, kResidual>, part, plan.map);
    return result("squeeze_excite_scale", error);
  });
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

}  // namespace attnkernels::squeeze_excite
