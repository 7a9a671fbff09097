// Launchers of the forward kernels, and the device's limits.
#include "squeeze_excite/squeeze_excite_dispatch.cuh"
#include "squeeze_excite/squeeze_excite_single_pass.cuh"

namespace attnkernels::squeeze_excite {
namespace {

template <class T, bool kChannelsLast>
Result run_forward(const Shape& shape, const Plan& plan, const ForwardTensors& tensors, cudaStream_t stream) {
  using Sum = accumulate_t<T>;
  ForwardArguments<T> a{};
  a.x = static_cast<const T*>(tensors.x);
  a.residual = static_cast<const T*>(tensors.residual);
  a.y = static_cast<T*>(tensors.y);
  a.saved = static_cast<Sum*>(tensors.saved);
  a.parameters = {static_cast<const T*>(tensors.reduce_weight), static_cast<const T*>(tensors.reduce_bias),
                  static_cast<const T*>(tensors.expand_weight), static_cast<const T*>(tensors.expand_bias)};
  a.shape = shape;
  a.own_gates = plan.own_gates;
  a.sum_splits = plan.sums.splits;
  a.vectorised = equally_aligned(a.x, a.residual, static_cast<const T*>(a.y));
  if (kChannelsLast) a.vectorised &= misalignment(a.x) == 0 && shape.channels % kVectorWidth<T> == 0;
  LaunchConfig config;
  config.stream = stream;
  if (plan.cluster) {
    config.grid = dim3(unsigned(shape.samples * plan.cluster));
    config.block = dim3(plan.threads);
    config.cluster = dim3(plan.cluster);
    config.shared_bytes = plan.shared_bytes;
    return result("squeeze_excite_single_pass",
                  launch(config, squeeze_excite_single_pass<T, kChannelsLast>, a, plan.channels, plan.sums.staged));
  }
  a.partial = static_cast<Sum*>(tensors.scratch);
  a.activated = a.partial + shape.samples * plan.sums.splits * shape.channels;
  a.output_reuse = plan.streams ? Reuse::kOnce : Reuse::kLikely;
  const int64_t sample_groups = ceil_div(shape.samples, kLayerSamples);
  config.block = dim3(plan.sums.threads);
  config.grid = grid_of(plan.sums.blocks() * shape.samples);
  config.shared_bytes = plan.sums.shared_bytes;
  cudaError_t error = launch(config, squeeze_excite_pool<T, kChannelsLast>, a, plan.sums);
  if (error != cudaSuccess) return result("squeeze_excite_pool", error);
  config.block = dim3(kLayerThreads);
  config.shared_bytes = 0;
  if (shape.hidden) {
    config.grid = grid_of(layer_row_blocks<T>(shape.hidden, shape.channels) * sample_groups);
    error = launch(config, squeeze_excite_layer<T, false>, a);
    if (error != cudaSuccess) return result("squeeze_excite_layer", error);
  }
  if (plan.own_gates) {
    config.grid =
        grid_of(layer_row_blocks<T>(shape.channels, shape.hidden ? shape.hidden : shape.channels) * sample_groups);
    error = launch(config, squeeze_excite_layer<T, true>, a);
    if (error != cudaSuccess) return result("squeeze_excite_layer", error);
  }
  config.block = dim3(plan.map.threads);
  config.grid = grid_of(plan.map.blocks() * shape.samples);
  config.shared_bytes = plan.map.shared_bytes;
  error = launch(config, squeeze_excite_scale<T, kChannelsLast>, a, plan.map);
  if (error != cudaSuccess) return result("squeeze_excite_scale", error);
  return {};
}

}  // namespace

Result limits(Limits& found) {
  int device = 0, major = 0, minor = 0, multiprocessors = 0, l2_bytes = 0, shared_bytes = 0;
  cudaError_t error = cudaGetDevice(&device);
  const auto ask = [&](int& value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, device);
  };
  ask(major, cudaDevAttrComputeCapabilityMajor);
  ask(minor, cudaDevAttrComputeCapabilityMinor);
  ask(multiprocessors, cudaDevAttrMultiProcessorCount);
  ask(l2_bytes, cudaDevAttrL2CacheSize);
  ask(shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  found = {10 * major + minor, multiprocessors, l2_bytes, shared_bytes};
  return result("the limits of the device", error);
}

Plan choose_forward(DataType type, const Shape& shape, const Limits& limits) {
  return plan_forward(shape, element_size(type), limits, [&](const Plan& plan) {
    return dispatch(type, [&](auto zero) {
      using T = decltype(zero);
      return shape.channels_last ? active_clusters(plan, squeeze_excite_single_pass<T, true>)
                                 : active_clusters(plan, squeeze_excite_single_pass<T, false>);
    });
  });
}

Result forward(DataType type, const Shape& shape, const Plan& plan, const ForwardTensors& tensors, void* stream) {
  if (!shape.samples || !shape.channels || !shape.pixels) return {};
  return dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    const auto native = static_cast<cudaStream_t>(stream);
    return shape.channels_last ? run_forward<T, true>(shape, plan, tensors, native)
                               : run_forward<T, false>(shape, plan, tensors, native);
  });
}

}  // namespace attnkernels::squeeze_excite
