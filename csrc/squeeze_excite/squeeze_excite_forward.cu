// Launchers of the forward kernels, and the device's limits.
#include "squeeze_excite/squeeze_excite_dispatch.cuh"
#include "squeeze_excite/squeeze_excite_forward.cuh"

namespace attnkernels::squeeze_excite {
namespace {

template <class T, bool kGates>
Result run_layer(const ForwardArguments<T>& part, LaunchConfig config) {
  const Shape& shape = part.shape;
  const int64_t rows = kGates ? shape.channels : shape.hidden;
  const int64_t inputs = kGates ? shape.gate_inputs() : shape.channels;
  // Warps whose lanes have all inputs of a row, a vector each, or else all warps.
  int group_warps = 1;
  while (group_warps < kThreads / 32 && group_warps * 32 * kVectorWidth<T> < inputs) group_warps *= 2;
  const int64_t blocks = ceil_div(rows, kThreads / 32 / group_warps * kLayerRows);
  const bool together = samples_share_weights(blocks, shape.samples, part.sum_splits);
  config.grid = grid_of(blocks, ceil_div(shape.samples, together ? kLayerSamples<T> : 1));
  return result("squeeze_excite_layer",
                together ? launch(config, squeeze_excite_layer<T, kGates, kLayerSamples<T>>, part, group_warps)
                         : launch(config, squeeze_excite_layer<T, kGates, 1>, part, group_warps));
}

template <class T, bool kChannelsLast, bool kResidual>
Result run_forward(const Shape& shape, const Plan& plan, const ForwardTensors& tensors, cudaStream_t stream) {
  using acc_t = acc_type<T>;
  ForwardArguments<T> a{};
  a.x = static_cast<const T*>(tensors.x);
  a.residual = static_cast<const T*>(tensors.residual);
  a.y = static_cast<T*>(tensors.y);
  a.saved = static_cast<acc_t*>(tensors.saved);
  a.parameters = {static_cast<const T*>(tensors.reduce_weight), static_cast<const T*>(tensors.reduce_bias),
                  static_cast<const T*>(tensors.expand_weight), static_cast<const T*>(tensors.expand_bias)};
  a.shape = shape;
  a.layer_in_map = plan.layer_in_map;
  a.sum_splits = plan.sums.splits;
  a.output_reuse = plan.stream_output ? Reuse::kOnce : Reuse::kLikely;
  a.pixel_divisor = PlaneWalk::divisor(shape.pixels);
  a.vectorised = equally_aligned(a.x, a.residual, static_cast<const T*>(a.y));
  if (kChannelsLast) a.vectorised &= misalignment(a.x) == 0 && shape.channels % kVectorWidth<T> == 0;
  a.activated = static_cast<acc_t*>(tensors.scratch);
  a.partial = a.activated + shape.samples * shape.hidden;
  return for_each_part(shape.samples, plan, [&](int64_t first, int64_t samples) -> Result {
    ForwardArguments<T> part = a;
    part.shape.samples = samples;
    const int64_t offset = first * shape.channels * shape.pixels;
    part.x += offset;
    part.y += offset;
    if (kResidual) part.residual += offset;
    part.saved += first * shape.saved_columns();
    part.partial += first * partial_sums(shape, plan);
    part.activated += first * shape.hidden;
    LaunchConfig config;
    config.stream = stream;
    config.block = dim3(kThreads);
    config.grid = grid_of(plan.sums.blocks(), samples);
    config.shared_bytes = plan.sums.shared_bytes;
    cudaError_t error = launch(config, squeeze_excite_pool<T, kChannelsLast>, part, plan.sums);
    if (error != cudaSuccess) return result("squeeze_excite_pool", error);
    config.shared_bytes = 0;
    config.dependent = plan.dependent;
    if (shape.hidden)
      if (const Result done = run_layer<T, false>(part, config); done.error) return done;
    if (!plan.layer_in_map)
      if (const Result done = run_layer<T, true>(part, config); done.error) return done;
    config.grid = grid_of(plan.map.blocks(), samples);
    config.shared_bytes = plan.map.shared_bytes;
    error = launch(config, squeeze_excite_scale<T, kChannelsLast, kResidual>, part, plan.map);
    return result("squeeze_excite_scale", error);
  });
}

}  // namespace

Result limits(Limits& found) {
  Device device;
  const cudaError_t error = current_device(device);
  found = {device.compute_capability, device.multiprocessors, device.l2_bytes, device.dependent_launches};
  return result("the limits of the device", error);
}

Result forward(DataType type, const Shape& shape, const Plan& plan, const ForwardTensors& tensors, void* stream) {
  if (!shape.samples || !shape.channels || !shape.pixels) return {};
  return dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    const auto native = static_cast<cudaStream_t>(stream);
    const auto run = [&](auto channels_last) {
      constexpr bool kChannelsLast = decltype(channels_last)::value;
      return tensors.residual ? run_forward<T, kChannelsLast, true>(shape, plan, tensors, native)
                              : run_forward<T, kChannelsLast, false>(shape, plan, tensors, native);
    };
    return shape.channels_last ? run(std::true_type()) : run(std::false_type());
  });
}

}  // namespace attnkernels::squeeze_excite
