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
  a.fused_hidden = plan.fused_hidden;
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
    return result("squeeze_excite_single_pass", launch(config, squeeze_excite_single_pass<T, kChannelsLast>, a,
                                                       plan.channels, plan.sums.short_planes));
  }
  Sum* const partial = static_cast<Sum*>(tensors.scratch);
  Sum* const activated = partial + (plan.sums.splits > 1 ? shape.samples * plan.sums.splits * shape.channels : 0);
  // What is written stays in the cache only where a wave of it and of x fits: it must not push out x.
  a.output_reuse = plan.wave < shape.samples ? Reuse::kOnce : Reuse::kLikely;
  for (int64_t first = 0; first < shape.samples; first += plan.wave) {
    ForwardArguments<T> wave = a;
    wave.shape.samples = std::min(plan.wave, shape.samples - first);
    const int64_t offset = first * shape.channels * shape.pixels;
    wave.x += offset;
    wave.y += offset;
    if (wave.residual) wave.residual += offset;
    wave.saved += first * shape.saved_columns();
    wave.partial = partial + first * plan.sums.splits * shape.channels;
    wave.activated = activated + first * shape.hidden;
    config.block = dim3(plan.sums.threads);
    config.grid = grid_of(plan.sums.blocks(), wave.shape.samples);
    config.shared_bytes = plan.sums.shared_bytes;
    cudaError_t error = launch(config, squeeze_excite_pool<T, kChannelsLast>, wave, plan.sums);
    if (error != cudaSuccess) return result("squeeze_excite_pool", error);
    if (shape.hidden && !plan.fused_hidden) {
      const int64_t staged = staged_length<Sum>(shape.channels);
      const int each = int(staged ? std::min<int64_t>(kHiddenSamples, wave.shape.samples) : 1);
      config.block = dim3(kThreads);
      config.grid = grid_of(ceil_div(shape.hidden, kThreads / 32), ceil_div(wave.shape.samples, each));
      config.shared_bytes = each * staged * sizeof(Sum);
      error = launch(config, squeeze_excite_hidden<T>, wave, each);
      if (error != cudaSuccess) return result("squeeze_excite_hidden", error);
    }
    config.block = dim3(plan.map.threads);
    config.grid = grid_of(plan.map.blocks(), wave.shape.samples);
    config.shared_bytes = plan.map.shared_bytes;
    error = launch(config, squeeze_excite_scale<T, kChannelsLast>, wave, plan.map);
    if (error != cudaSuccess) return result("squeeze_excite_scale", error);
  }
  return {};
}

}  // namespace

Result limits(Limits& found) {
  int device = 0, major = 0, minor = 0, multiprocessors = 0, l2_bytes = 0, block_bytes = 0, shared_bytes = 0;
  int clock_khz = 0, bus_bits = 0;
  cudaError_t error = cudaGetDevice(&device);
#ifndef ATTNKERNELS_EMULATED  // where tests change the device
  thread_local int known_device = -1;
  thread_local Limits known;
  if (error == cudaSuccess && device == known_device) {
    found = known;
    return {};
  }
#endif
  const auto ask = [&](int& value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, device);
  };
  ask(major, cudaDevAttrComputeCapabilityMajor);
  ask(minor, cudaDevAttrComputeCapabilityMinor);
  ask(multiprocessors, cudaDevAttrMultiProcessorCount);
  ask(l2_bytes, cudaDevAttrL2CacheSize);
  ask(block_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  ask(shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  ask(clock_khz, cudaDevAttrMemoryClockRate);
  ask(bus_bits, cudaDevAttrGlobalMemoryBusWidth);
  // Two transfers a clock: bits / 8 * 2 * kHz / 1000 bytes in a microsecond.
  found = {10 * major + minor, multiprocessors, l2_bytes,
           block_bytes,        shared_bytes,    int64_t(bus_bits) * clock_khz / 4000};
#ifndef ATTNKERNELS_EMULATED
  if (error == cudaSuccess) {
    known = found;
    known_device = device;
  }
#endif
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
