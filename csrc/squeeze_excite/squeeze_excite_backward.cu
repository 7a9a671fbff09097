// Launchers of the backward kernels.
#include "squeeze_excite/squeeze_excite_dispatch.cuh"
#include "squeeze_excite/squeeze_excite_single_pass.cuh"

namespace attnkernels::squeeze_excite {
namespace {

// The gradients of the parameters, from dv and du.
template <class T>
Result run_weights(const BackwardArguments<T>& a, const BackwardTensors& tensors, cudaStream_t stream) {
  const Shape& shape = a.shape;
  const WeightGradArguments<T> weights{a.grad_logits,
                                       a.grad_hidden,
                                       a.saved,
                                       static_cast<T*>(tensors.grad_reduce_weight),
                                       static_cast<T*>(tensors.grad_reduce_bias),
                                       static_cast<T*>(tensors.grad_expand_weight),
                                       static_cast<T*>(tensors.grad_expand_bias),
                                       shape};
  const int64_t width = shape.hidden ? shape.hidden : shape.channels;
  const int64_t threads = std::max(ceil_div(shape.channels, kOuterRows) * width + shape.channels,
                                   ceil_div(width, kOuterRows) * shape.channels + width);
  LaunchConfig config;
  config.stream = stream;
  config.block = dim3(kThreads);
  config.grid = dim3(unsigned(std::min<int64_t>(ceil_div(threads, kThreads), 1 << 20)), shape.hidden ? 2 : 1);
  return result("squeeze_excite_backward_weights", launch(config, squeeze_excite_backward_weights<T>, weights));
}

template <class T, bool kChannelsLast>
Result run_single_pass(const BackwardArguments<T>& a, const Plan& plan, cudaStream_t stream) {
  LaunchConfig config;
  config.stream = stream;
  config.grid = dim3(unsigned(a.shape.samples * plan.cluster));
  config.block = dim3(plan.threads);
  config.cluster = dim3(plan.cluster);
  config.shared_bytes = plan.shared_bytes;
  return result(
      "squeeze_excite_backward_single_pass",
      launch(config, squeeze_excite_backward_single_pass<T, kChannelsLast>, a, plan.channels, plan.sums.staged));
}

// dv, du and, where grad_x needs them, the gradients of the means.
template <class T, bool kChannelsLast>
Result run_sums(const BackwardArguments<T>& a, const Plan& plan, cudaStream_t stream) {
  const Shape& shape = a.shape;
  const int64_t sample_groups = ceil_div(shape.samples, kLayerSamples);
  LaunchConfig config;
  config.stream = stream;
  config.block = dim3(plan.sums.threads);
  config.grid = grid_of(plan.sums.blocks() * shape.samples);
  config.shared_bytes = plan.sums.shared_bytes;
  cudaError_t error = launch(config, squeeze_excite_backward_sums<T, kChannelsLast>, a, plan.sums);
  if (error != cudaSuccess) return result("squeeze_excite_backward_sums", error);
  config.block = dim3(kLayerGradThreads);
  config.shared_bytes = 0;
  config.grid =
      grid_of(layer_column_blocks<T>(shape.channels, shape.hidden ? shape.hidden : shape.channels) * sample_groups);
  error = launch(config, squeeze_excite_backward_hidden<T>, a);
  if (error != cudaSuccess || !shape.hidden || !a.grad_x) return result("squeeze_excite_backward_hidden", error);
  config.grid = grid_of(layer_column_blocks<T>(shape.hidden, shape.channels) * sample_groups);
  return result("squeeze_excite_backward_means", launch(config, squeeze_excite_backward_means<T>, a));
}

template <class T, bool kChannelsLast>
Result run_map(const BackwardArguments<T>& a, const Plan& plan, cudaStream_t stream) {
  LaunchConfig config;
  config.stream = stream;
  config.block = dim3(plan.map.threads);
  config.grid = grid_of(plan.map.blocks() * a.shape.samples);
  return result("squeeze_excite_backward_map",
                launch(config, squeeze_excite_backward_map<T, kChannelsLast>, a, plan.map));
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
  a.grad_means = a.grad_hidden + shape.samples * shape.hidden;
  a.partial = a.grad_means + shape.samples * shape.channels;
  const bool columns_aligned = !kChannelsLast || shape.channels % kVectorWidth<T> == 0;
  const T* const outputs[] = {a.grad_x, a.grad_residual};
  const T* const output = outputs[0] ? outputs[0] : outputs[1];
  a.sums_vectorised = columns_aligned && equally_aligned(a.x, a.grad_y, a.y) && !(kChannelsLast && misalignment(a.x));
  a.map_vectorised = columns_aligned && output && equally_aligned(output, a.grad_y, a.y, outputs[0], outputs[1]) &&
                     !(kChannelsLast && misalignment(output));
  if (plan.cluster) a.map_vectorised = a.sums_vectorised = a.map_vectorised && a.sums_vectorised;
  a.output_reuse = plan.streams ? Reuse::kOnce : Reuse::kLikely;

  const bool weights_needed =
      tensors.grad_expand_weight || tensors.grad_expand_bias || tensors.grad_reduce_weight || tensors.grad_reduce_bias;
  Result done;
  if (shape.samples && plan.cluster) {
    done = run_single_pass<T, kChannelsLast>(a, plan, stream);
  } else if (shape.samples) {
    if (a.grad_x || weights_needed) done = run_sums<T, kChannelsLast>(a, plan, stream);
    if (!done.error && output && shape.pixels) done = run_map<T, kChannelsLast>(a, plan, stream);
  }
  return done.error || !weights_needed ? done : run_weights(a, tensors, stream);
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
