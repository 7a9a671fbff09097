// Launchers of the CUDA kernels of the channel gate's layers.
#include "channel_spatial/channel_spatial_layers.cuh"
#include "channel_spatial/channel_spatial_layers_launch.h"

namespace attnkernels::channel_spatial {
namespace {

// Groups of samples along x, of which there may be many, and blocks of a layer along y.
LaunchConfig config_of(const LayerGrid& grid, bool dependent, void* stream) {
  LaunchConfig config;
  config.grid = dim3(unsigned(grid.sample_groups), unsigned(grid.blocks));
  config.block = dim3(kThreads);
  config.dependent = dependent;
  config.stream = static_cast<cudaStream_t>(stream);
  return config;
}

template <class T, bool kGates>
Result run_layer(const ForwardLayers<T>& a, bool dependent, void* stream) {
  const LayerGrid grid = layer_grid(layer_of<kGates>(a));
  const auto kernel =
      grid.together ? channel_spatial_layer<T, kGates, kLayerSamples<T>> : channel_spatial_layer<T, kGates, 1>;
  return result("channel_spatial_layer", launch(config_of(grid, dependent, stream), kernel, a, grid.group_warps));
}

template <class T>
Result run_grad_hidden(const BackwardLayers<T>& a, void* stream) {
  const LayerGrid grid = transposed_layer_grid<kVectorsOfManyRows>(grad_layer_of<false>(a));
  const auto kernel =
      grid.together ? channel_spatial_grad_hidden<T, kGradSamples<T>> : channel_spatial_grad_hidden<T, 1>;
  return result("channel_spatial_grad_hidden", launch(config_of(grid, false, stream), kernel, a));
}

// Rows of the grid that weights may take: a grid's y is limited. Groups of samples beyond the last do nothing.
constexpr int64_t kMostSumRows = 1 << 15;

template <class T>
Result run_grad_layers(const BackwardLayers<T>& a, LayerSums<T> sums, bool dependent, void* stream) {
  LayerGrid grid = transposed_layer_grid<kVectorsOfFewRows>(grad_layer_of<true>(a));
  if (!a.grad_pooled) grid.blocks = 0;
  // Alone, the weights take as many blocks as they are made of.
  if (!grid.blocks || !grid.sample_groups) grid.sample_groups = sums.blocks();
  if (!grid.sample_groups) return {};
  grid.sample_groups = std::max(grid.sample_groups, ceil_div(sums.blocks(), kMostSumRows));
  sums.grid_rows = unsigned(ceil_div(sums.blocks(), grid.sample_groups));
  grid.blocks += sums.grid_rows;
  LaunchConfig config = config_of(grid, dependent, stream);
  if (sums.grid_rows) config.shared_bytes = OuterSum<T>::shared_bytes();
  const auto kernel =
      grid.together ? channel_spatial_grad_layers<T, kGradSamples<T>> : channel_spatial_grad_layers<T, 1>;
  return result("channel_spatial_grad_layers", launch(config, kernel, a, sums));
}

}  // namespace

Result layers(DataType type, const Layers& shape, const LayersForward& tensors, void* stream) {
  if (!shape.samples) return {};
  Device device;
  if (const cudaError_t error = current_device(device)) return result("channel_spatial_layer", error);
  return dispatch(type, [&](auto zero) -> Result {
    using T = decltype(zero);
    using acc_t = acc_type<T>;
    const ForwardLayers<T> a{static_cast<const acc_t*>(tensors.pooled),
                             static_cast<const T*>(tensors.reduce_weight),
                             static_cast<const T*>(tensors.reduce_bias),
                             static_cast<const T*>(tensors.expand_weight),
                             static_cast<const T*>(tensors.expand_bias),
                             static_cast<acc_t*>(tensors.hidden),
                             static_cast<acc_t*>(tensors.gate),
                             shape,
                             shape.samples * shape.pools};
    if (shape.hidden)
      if (const Result done = run_layer<T, false>(a, false, stream); done.error) return done;
    return run_layer<T, true>(a, shape.hidden && device.dependent_launches, stream);
  });
}

Result layers_backward(DataType type, const Layers& shape, const LayersBackward& tensors, void* stream) {
  Device device;
  if (const cudaError_t error = current_device(device)) return result("channel_spatial_grad_layers", error);
  return dispatch(type, [&](auto zero) -> Result {
    using T = decltype(zero);
    using acc_t = acc_type<T>;
    const int64_t rows = shape.samples * shape.pools;
    const BackwardLayers<T> a{static_cast<const acc_t*>(tensors.grad_gate),
                              static_cast<const acc_t*>(tensors.gate),
                              static_cast<const acc_t*>(tensors.pooled),
                              static_cast<const acc_t*>(tensors.hidden),
                              static_cast<const T*>(tensors.reduce_weight),
                              static_cast<const T*>(tensors.expand_weight),
                              static_cast<acc_t*>(tensors.scratch),
                              static_cast<acc_t*>(tensors.grad_pooled),
                              shape,
                              rows,
                              shape.hidden ? rows : shape.samples};
    const bool of_reduce = tensors.grad_reduce_weight || tensors.grad_reduce_bias;
    LayerSums<T> sums{};
    sums.rows = rows;
    if (tensors.grad_expand_weight || tensors.grad_expand_bias)
      sums.sums[0] = {{shape.channels, shape.gate_inputs(), static_cast<T*>(tensors.grad_expand_weight),
                       static_cast<T*>(tensors.grad_expand_bias)},
                      a.grad_gate,
                      a.gate,
                      shape.hidden ? a.hidden : a.pooled,
                      Divisor(uint32_t(shape.pools))};
    if (of_reduce)
      sums.sums[1] = {{shape.hidden, shape.channels, static_cast<T*>(tensors.grad_reduce_weight),
                       static_cast<T*>(tensors.grad_reduce_bias)},
                      a.grad_hidden,
                      nullptr,
                      a.pooled,
                      Divisor(1)};
    const bool through_hidden = shape.samples && shape.hidden && (tensors.grad_pooled || of_reduce);
    if (through_hidden)
      if (const Result done = run_grad_hidden(a, stream); done.error) return done;
    return run_grad_layers(a, sums, through_hidden && device.dependent_launches, stream);
  });
}

}  // namespace attnkernels::channel_spatial
