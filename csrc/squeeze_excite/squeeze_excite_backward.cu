// Launchers of the backward kernels.
#include "squeeze_excite/squeeze_excite_dispatch.cuh"
#include "squeeze_excite/squeeze_excite_single_pass.cuh"

namespace attnkernels::squeeze_excite {
namespace {

template <class T, bool kChannelsLast>
Result run_passes(const BackwardArguments<T>& a, const Plan& plan, bool sums_needed, cudaStream_t stream) {
  using Sum = accumulate_t<T>;
  LaunchConfig config;
  config.stream = stream;
  const Shape& shape = a.shape;
  if (plan.cluster) {
    config.grid = dim3(unsigned(shape.samples * plan.cluster));
    config.block = dim3(plan.threads);
    config.cluster = dim3(plan.cluster);
    config.shared_bytes = plan.shared_bytes;
    return result("squeeze_excite_backward_single_pass",
                  launch(config, squeeze_excite_backward_single_pass<T, kChannelsLast>, a, plan.channels,
                         plan.sums.short_planes));
  }
  for (int64_t first = 0; first < shape.samples; first += plan.wave) {
    BackwardArguments<T> wave = a;
    wave.shape.samples = std::min(plan.wave, shape.samples - first);
    const int64_t offset = first * shape.channels * shape.pixels;
    wave.grad_y += offset;
    wave.x += offset;
    if (wave.y) wave.y += offset;
    if (wave.grad_x) wave.grad_x += offset;
    if (wave.grad_residual) wave.grad_residual += offset;
    wave.saved += first * shape.saved_columns();
    wave.partial += first * plan.sums.splits * shape.channels;
    wave.grad_logits += first * shape.channels;
    wave.grad_hidden += first * shape.hidden;
    if (sums_needed) {
      config.block = dim3(plan.sums.threads);
      config.grid = grid_of(plan.sums.blocks(), wave.shape.samples);
      config.shared_bytes = plan.sums.shared_bytes;
      cudaError_t error = launch(config, squeeze_excite_backward_sums<T, kChannelsLast>, wave, plan.sums);
      if (error != cudaSuccess) return result("squeeze_excite_backward_sums", error);
      config.block = dim3(kThreads);
      config.grid = grid_of(std::max<int64_t>(1, ceil_div(shape.hidden, kHiddenGradVectors * kVectorWidth<T>)),
                            wave.shape.samples);
      config.shared_bytes = staged_length<Sum>(shape.channels) * sizeof(Sum);
      error = launch(config, squeeze_excite_backward_hidden<T>, wave);
      if (error != cudaSuccess) return result("squeeze_excite_backward_hidden", error);
    }
    if ((wave.grad_x || wave.grad_residual) && shape.pixels) {
      config.block = dim3(plan.map.threads);
      config.grid = grid_of(plan.map.blocks(), wave.shape.samples);
      config.shared_bytes = plan.map.shared_bytes;
      const cudaError_t error = launch(config, squeeze_excite_backward_map<T, kChannelsLast>, wave, plan.map);
      if (error != cudaSuccess) return result("squeeze_excite_backward_map", error);
    }
  }
  return {};
}

template <class T, bool kChannelsLast>
Result run_backward(const Shape& shape, const Plan& plan, const BackwardTensors& tensors, cudaStream_t stream) {
  using Sum = accumulate_t<T>;
  BackwardArguments<T> a{};
  a.grad_y = static_cast<const T*>(tensors.grad_y);
  a.x = static_cast<const T*>(tensors.x);
  a.y = static_cast<const T*>(tensors.y);
  a.grad_x = static_cast<T*>(tensors.grad_x);
  a.grad_residual = static_cast<T*>(tensors.grad_residual);
  a.saved = static_cast<const Sum*>(tensors.saved);
  a.parameters = {static_cast<const T*>(tensors.reduce_weight), nullptr, static_cast<const T*>(tensors.expand_weight),
                  nullptr};
  a.shape = shape;
  a.sum_splits = plan.sums.splits;
  Sum* scratch = static_cast<Sum*>(tensors.scratch);
  a.grad_logits = scratch;
  a.grad_hidden = a.grad_logits + shape.samples * shape.channels;
  a.partial = a.grad_hidden + shape.samples * shape.hidden;
  const bool columns_aligned = !kChannelsLast || shape.channels % kVectorWidth<T> == 0;
  const T* const outputs[] = {a.grad_x, a.grad_residual};
  const T* const output = outputs[0] ? outputs[0] : outputs[1];
  a.sums_vectorised = columns_aligned && equally_aligned(a.x, a.grad_y, a.y) && !(kChannelsLast && misalignment(a.x));
  a.map_vectorised = columns_aligned && output && equally_aligned(output, a.grad_y, a.y, outputs[0], outputs[1]) &&
                     !(kChannelsLast && misalignment(output));
  if (plan.cluster) a.map_vectorised = a.sums_vectorised = a.map_vectorised && a.sums_vectorised;
  a.output_reuse = !plan.cluster && plan.wave < shape.samples ? Reuse::kOnce : Reuse::kLikely;

  const bool weights_needed =
      tensors.grad_expand_weight || tensors.grad_expand_bias || tensors.grad_reduce_weight || tensors.grad_reduce_bias;
  if (shape.samples && shape.channels) {
    const Result passes = run_passes<T, kChannelsLast>(a, plan, tensors.grad_x || weights_needed, stream);
    if (passes.error) return passes;
  }
  if (!weights_needed) return {};
  const WeightGradArguments<T> weights{a.grad_logits,
                                       a.grad_hidden,
                                       a.saved,
                                       static_cast<T*>(tensors.grad_reduce_weight),
                                       static_cast<T*>(tensors.grad_reduce_bias),
                                       static_cast<T*>(tensors.grad_expand_weight),
                                       static_cast<T*>(tensors.grad_expand_bias),
                                       shape};
  const int64_t outputs_each = shape.channels * std::max<int64_t>(1, shape.hidden ? shape.hidden : shape.channels) +
                               std::max(shape.channels, shape.hidden);
  LaunchConfig config;
  config.stream = stream;
  config.block = dim3(kThreads);
  config.grid = dim3(unsigned(std::min<int64_t>(ceil_div(outputs_each, kThreads), 1 << 20)), shape.hidden ? 2 : 1);
  return result("squeeze_excite_backward_weights", launch(config, squeeze_excite_backward_weights<T>, weights));
}

}  // namespace

Plan choose_backward(DataType type, const Shape& shape, const Limits& limits, int needs) {
  return plan_backward(shape, element_size(type), limits, needs, [&](const Plan& plan) {
    return dispatch(type, [&](auto zero) {
      using T = decltype(zero);
      return shape.channels_last ? active_clusters(plan, squeeze_excite_backward_single_pass<T, true>)
                                 : active_clusters(plan, squeeze_excite_backward_single_pass<T, false>);
    });
  });
}

Result backward(DataType type, const Shape& shape, const Plan& plan, const BackwardTensors& tensors, void* stream) {
  return dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    const auto native = static_cast<cudaStream_t>(stream);
    return shape.channels_last ? run_backward<T, true>(shape, plan, tensors, native)
                               : run_backward<T, false>(shape, plan, tensors, native);
  });
}

}  // namespace attnkernels::squeeze_excite
