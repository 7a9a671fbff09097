// Launchers of the backward kernels.
#include "squeeze_excite/squeeze_excite_backward.cuh"
#include "squeeze_excite/squeeze_excite_dispatch.cuh"

namespace attnkernels::squeeze_excite {
namespace {

template <class T, bool kMeans>
Result run_layer(const BackwardArguments<T>& part, LaunchConfig config) {
  const Shape& shape = part.shape;
  // At least one block of a sample: it may have to write dv.
  const int64_t blocks =
      std::max<int64_t>(1, ceil_div(kMeans ? shape.channels : shape.hidden, kGradVectors<kMeans> * kVectorWidth<T>));
  const bool together = samples_share_weights(blocks, shape.samples, part.sum_splits);
  config.grid = grid_of(blocks, ceil_div(shape.samples, together ? kGradSamples<T> : 1));
  return result("squeeze_excite_backward_layer",
                together ? launch(config, squeeze_excite_backward_layer<T, kMeans, kGradSamples<T>>, part)
                         : launch(config, squeeze_excite_backward_layer<T, kMeans, 1>, part));
}

// Gradients of maps and, in the last launch, of the weights.
template <class T, bool kChannelsLast>
Result run_passes(const BackwardArguments<T>& a, const Plan& plan, WeightGrads<T>& weight_grads, cudaStream_t stream) {
  const Shape& shape = a.shape;
  return for_each_part(shape.samples, plan, [&](int64_t first, int64_t samples) -> Result {
    BackwardArguments<T> part = a;
    part.shape.samples = samples;
    const int64_t offset = first * shape.channels * shape.pixels;
    part.grad_y += offset;
    part.x += offset;
    if (part.y) part.y += offset;
    if (part.grad_x) part.grad_x += offset;
    if (part.grad_residual) part.grad_residual += offset;
    part.saved += first * shape.saved_columns();
    part.partial += first * partial_sums(shape, plan);
    part.grad_logits += first * shape.channels;
    part.grad_hidden += first * shape.hidden;
    part.grad_means += first * shape.channels;
    LaunchConfig config;
    config.stream = stream;
    config.block = dim3(kThreads);
    if (part.grad_x || weight_grads.blocks()) {
      config.grid = grid_of(plan.sums.blocks(), samples);
      config.shared_bytes = plan.sums.shared_bytes;
      const cudaError_t error = launch(config, squeeze_excite_backward_sums<T, kChannelsLast>, part, plan.sums);
      if (error != cudaSuccess) return result("squeeze_excite_backward_sums", error);
      config.shared_bytes = 0;
      config.dependent = plan.dependent;
      if (shape.hidden || plan.sums.splits > 1)
        if (const Result done = run_layer<T, false>(part, config); done.error) return done;
      if (part.grad_x && !plan.layer_in_map)
        if (const Result done = run_layer<T, true>(part, config); done.error) return done;
    }
    if (!(part.grad_x || part.grad_residual) || !shape.pixels) return {};
    config.grid = grid_of(plan.map.blocks(), samples);
    config.shared_bytes = plan.map.shared_bytes;
    const int64_t rows = ceil_div(weight_grads.blocks(), plan.map.blocks());
    if (rows && first + samples == shape.samples && rows + samples <= kMostSamples) {  // all that they need is there
      weight_grads.grid_rows = unsigned(rows);
      config.grid.y += unsigned(rows);
      config.shared_bytes = std::max(config.shared_bytes, WeightGrads<T>::shared_bytes());
    }
    return result(
        "squeeze_excite_backward_map",
        part.y ? launch(config, squeeze_excite_backward_map<T, kChannelsLast, true>, part, plan.map, weight_grads)
               : launch(config, squeeze_excite_backward_map<T, kChannelsLast, false>, part, plan.map, weight_grads));
  });
}

template <class T, bool kChannelsLast>
Result run_backward(const Shape& shape, const Plan& plan, const BackwardTensors& tensors, cudaStream_t stream) {
  using acc_t = acc_type<T>;
  BackwardArguments<T> a{};
  a.grad_y = static_cast<const T*>(tensors.grad_y);
  a.x = static_cast<const T*>(tensors.x);
  a.y = static_cast<const T*>(tensors.y);
  a.grad_x = static_cast<T*>(tensors.grad_x);
  a.grad_residual = static_cast<T*>(tensors.grad_residual);
  a.saved = static_cast<const acc_t*>(tensors.saved);
  a.parameters = {static_cast<const T*>(tensors.reduce_weight), nullptr, static_cast<const T*>(tensors.expand_weight),
                  nullptr};
  a.shape = shape;
  a.layer_in_map = plan.layer_in_map;
  a.sum_splits = plan.sums.splits;
  a.x_reuse = plan.stream_input ? Reuse::kOnce : Reuse::kLikely;
  a.output_reuse = plan.stream_output ? Reuse::kOnce : Reuse::kLikely;
  a.pixel_divisor = PlaneWalk::divisor(shape.pixels);
  a.grad_logits = static_cast<acc_t*>(tensors.scratch);
  a.grad_hidden = a.grad_logits + shape.samples * shape.channels;
  a.grad_means = a.grad_hidden + shape.samples * shape.hidden;
  a.partial = a.grad_means + (plan.layer_in_map ? 0 : shape.samples * shape.channels);
  const bool columns_aligned = !kChannelsLast || shape.channels % kVectorWidth<T> == 0;
  const T* const output = a.grad_x ? a.grad_x : a.grad_residual;
  a.sums_vectorised = columns_aligned && equally_aligned(a.x, a.grad_y, a.y) && !(kChannelsLast && misalignment(a.x));
  a.map_vectorised = columns_aligned && output &&
                     equally_aligned(output, a.grad_y, a.y, static_cast<const T*>(a.grad_residual)) &&
                     !(kChannelsLast && misalignment(output));

  WeightGrads<T> weight_grads{};
  weight_grads.samples = shape.samples;
  weight_grads.activation = shape.activation;
  weight_grads.activated_columns = shape.hidden > 0;
  const int64_t pitch = shape.saved_columns();
  if (tensors.grad_expand_weight || tensors.grad_expand_bias)
    weight_grads.sums[0] = {a.grad_logits,
                            shape.channels,
                            shape.channels,
                            a.saved + (shape.hidden ? shape.channels : 0),
                            pitch,
                            shape.gate_inputs(),
                            static_cast<T*>(tensors.grad_expand_weight),
                            static_cast<T*>(tensors.grad_expand_bias)};
  if (shape.hidden && (tensors.grad_reduce_weight || tensors.grad_reduce_bias))
    weight_grads.sums[1] = {a.grad_hidden,
                            shape.hidden,
                            shape.hidden,
                            a.saved,
                            pitch,
                            shape.channels,
                            static_cast<T*>(tensors.grad_reduce_weight),
                            static_cast<T*>(tensors.grad_reduce_bias)};
  if (shape.samples && shape.channels)
    if (const Result done = run_passes<T, kChannelsLast>(a, plan, weight_grads, stream); done.error) return done;
  if (!weight_grads.blocks() || weight_grads.grid_rows) return {};
  LaunchConfig config;
  config.stream = stream;
  config.block = dim3(kThreads);
  config.grid = dim3(unsigned(weight_grads.blocks()));
  config.shared_bytes = WeightGrads<T>::shared_bytes();
  return result("squeeze_excite_backward_weights", launch(config, squeeze_excite_backward_weights<T>, weight_grads));
}

}  // namespace

Result backward(DataType type, const Shape& shape, const Plan& plan, const BackwardTensors& tensors, void* stream) {
  return dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    const auto native = static_cast<cudaStream_t>(stream);
    return shape.channels_last ? run_backward<T, true>(shape, plan, tensors, native)
                               : run_backward<T, false>(shape, plan, tensors, native);
  });
}

}  // namespace attnkernels::squeeze_excite
