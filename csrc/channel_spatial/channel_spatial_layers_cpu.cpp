// The CPU backend of the channel gate's layers: allocation, threads. The kernels are in channel_spatial_layers_simd.h.
#include <tuple>
#include <utility>
#include <vector>

#include "channel_spatial/channel_spatial_layers_binding.h"
#include "common/cpu_gate.h"

namespace attnkernels::channel_spatial {

// What the kernels are given. `summed` [N, gate_inputs()] is the sum over the pools of what the last layer gets.
template <class T>
struct LayersForward {
  using A = Accumulator<T>;
  Layers shape;
  const T *reduce_weight, *reduce_bias, *expand_weight, *expand_bias;
  const A *pooled, *summed;
  A *hidden, *gates;
};

template <class T>
struct LayersBackward {
  using A = Accumulator<T>;
  Layers shape;
  const T *reduce_weight, *expand_weight;
  const A *pooled, *hidden, *summed;
  A *grad_logits, *grad_inputs;  // [N, C]; of `summed`
  A* grad_hidden;                // [N, K, rd], before the ReLU
  A* grad_pooled;
  T *grad_reduce_weight, *grad_reduce_bias, *grad_expand_weight, *grad_expand_bias;  // null: not wanted
};

// The kernels of one level; those with a range work on the outputs [begin, end) of all samples, or on as many inputs of
// a layer where they go backwards through it.
template <class T>
struct LayersKernels {
  using A = Accumulator<T>;
  void (*reduce)(const LayersForward<T>&, int64_t begin, int64_t end);
  void (*sum_pools)(const Layers&, A* to, const A* from);
  void (*expand)(const LayersForward<T>&, int64_t begin, int64_t end);
  void (*sigmoid_gradients)(A* to, const A* grads, const A* gates, int64_t count);
  void (*backward_expand)(const LayersBackward<T>&, int64_t begin, int64_t end);
  void (*backward_reduce)(const LayersBackward<T>&, int64_t begin, int64_t end);
  void (*expand_gradients)(const LayersBackward<T>&, int64_t begin, int64_t end);
  void (*reduce_gradients)(const LayersBackward<T>&, int64_t begin, int64_t end);
};

}  // namespace attnkernels::channel_spatial

#define SIMD_FILE "channel_spatial/channel_spatial_layers_simd.h"
#include "common/simd_foreach.h"

namespace attnkernels::channel_spatial {
namespace {

using cpu::input, cpu::output;

// What a pass over a layer's weights for each of `rows` costs, as bytes read from memory: of weights that are in the
// cache, the products with 16 rows take about as long.
template <class T>
int64_t layer_bytes(int64_t outputs, int64_t inputs, int64_t rows) {
  return outputs * inputs * int64_t(sizeof(T)) * ((rows + 15) / 16);
}

// f(begin, end) on parts of `count` outputs or inputs of a layer, for all samples.
template <class F>
void for_outputs(int64_t bytes, int64_t count, int64_t unit, const F& f) {
  cpu::for_parts(cpu::threads_for(bytes), count, unit, [&](int64_t, int64_t begin, int64_t end) { f(begin, end); });
}

std::tuple<Tensor, Tensor> forward(const Tensor& pooled, const Optional& reduce_weight, const Optional& reduce_bias,
                                   const Tensor& expand_weight, const Optional& expand_bias) {
  const CheckedLayersForward call(pooled, reduce_weight, reduce_bias, expand_weight, expand_bias);
  const Layers& shape = call;
  const int64_t samples = shape.samples, pools = shape.pools, inputs = shape.gate_inputs();
  Tensor gates = cpu::allocate({samples, shape.channels}, call.numbers_dtype);
  Tensor hidden =
      cpu::allocate_result(call.reduce_weight.has_value(), {samples, pools, shape.hidden}, call.numbers_dtype);
  cpu::dispatch(call.op, call.dtype, [&]<class T>(T) {
    using A = Accumulator<T>;
    const LayersKernels<T>& kernels = *SIMD_CHOOSE(kLayers<T>);
    const A* terms = shape.hidden ? output<A>(hidden) : input<A>(call.pooled);
    std::vector<A> sums(pools > 1 ? samples * inputs : 0);
    const LayersForward<T> f{.shape = shape,
                             .reduce_weight = input<T>(call.reduce_weight),
                             .reduce_bias = input<T>(call.reduce_bias),
                             .expand_weight = input<T>(call.expand_weight),
                             .expand_bias = input<T>(call.expand_bias),
                             .pooled = input<A>(call.pooled),
                             .summed = pools > 1 ? sums.data() : terms,
                             .hidden = output<A>(hidden),
                             .gates = output<A>(gates)};
    if (shape.hidden)
      for_outputs(layer_bytes<T>(shape.hidden, shape.channels, samples * pools), shape.hidden, 4,
                  [&](int64_t begin, int64_t end) { kernels.reduce(f, begin, end); });
    if (pools > 1) kernels.sum_pools(shape, sums.data(), terms);
    for_outputs(layer_bytes<T>(shape.channels, inputs, samples), shape.channels, 16,
                [&](int64_t begin, int64_t end) { kernels.expand(f, begin, end); });
  });
  return {std::move(gates), std::move(hidden)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_gate, const Tensor& pooled,
                                                            const Tensor& gate, const Tensor& hidden,
                                                            const Optional& reduce_weight, const Tensor& expand_weight,
                                                            int64_t needs) {
  const CheckedLayersBackward call(grad_gate, pooled, gate, hidden, reduce_weight, expand_weight, needs);
  const Layers& shape = call;
  const int64_t samples = shape.samples, pools = shape.pools, channels = shape.channels, inputs = shape.gate_inputs();
  const bool reduces = call.reduce_weight.has_value();
  const int64_t of_reduce = kNeedsReduceWeight | kNeedsReduceBias, of_expand = kNeedsExpandWeight | kNeedsExpandBias;
  Tensor grad_pooled = cpu::allocate_result(needs & kNeedsPooled, call.pooled.sizes(), call.numbers_dtype);
  const Tensor& like_reduce = reduces ? *call.reduce_weight : call.expand_weight;
  Tensor grad_reduce_weight =
      cpu::allocate_result(reduces && (needs & kNeedsReduceWeight), like_reduce.sizes(), call.dtype);
  Tensor grad_reduce_bias = cpu::allocate_result(reduces && (needs & kNeedsReduceBias), {shape.hidden}, call.dtype);
  Tensor grad_expand_weight = cpu::allocate_result(needs & kNeedsExpandWeight, call.expand_weight.sizes(), call.dtype);
  Tensor grad_expand_bias = cpu::allocate_result(needs & kNeedsExpandBias, {channels}, call.dtype);
  cpu::dispatch(call.op, call.dtype, [&]<class T>(T) {
    using A = Accumulator<T>;
    const LayersKernels<T>& kernels = *SIMD_CHOOSE(kLayers<T>);
    const A *numbers = input<A>(call.pooled), *values = reduces ? input<A>(call.hidden_values) : numbers;
    const int64_t logits = samples * channels, sums = samples * inputs;
    std::vector<A> scratch(logits + 2 * sums + samples * pools * shape.hidden);
    A *grad_logits = scratch.data(), *grad_inputs = grad_logits + logits, *summed = grad_inputs + sums;
    const LayersBackward<T> b{.shape = shape,
                              .reduce_weight = input<T>(call.reduce_weight),
                              .expand_weight = input<T>(call.expand_weight),
                              .pooled = numbers,
                              .hidden = values,
                              .summed = pools > 1 ? summed : values,
                              .grad_logits = grad_logits,
                              .grad_inputs = grad_inputs,
                              .grad_hidden = summed + sums,
                              .grad_pooled = output<A>(grad_pooled),
                              .grad_reduce_weight = output<T>(grad_reduce_weight),
                              .grad_reduce_bias = output<T>(grad_reduce_bias),
                              .grad_expand_weight = output<T>(grad_expand_weight),
                              .grad_expand_bias = output<T>(grad_expand_bias)};
    const int64_t expand_bytes = layer_bytes<T>(channels, inputs, samples);
    const int64_t reduce_bytes = layer_bytes<T>(shape.hidden, channels, samples * pools);
    kernels.sigmoid_gradients(grad_logits, input<A>(call.grad_gate), input<A>(call.gate), logits);
    if (needs & of_expand) {
      if (pools > 1) kernels.sum_pools(shape, summed, values);
      for_outputs(expand_bytes, channels, 16,
                  [&](int64_t begin, int64_t end) { kernels.expand_gradients(b, begin, end); });
    }
    if (needs & (kNeedsPooled | (reduces ? of_reduce : 0)))
      for_outputs(expand_bytes, inputs, 16,
                  [&](int64_t begin, int64_t end) { kernels.backward_expand(b, begin, end); });
    if (!reduces) return;
    if (needs & of_reduce)
      for_outputs(reduce_bytes, shape.hidden, 4,
                  [&](int64_t begin, int64_t end) { kernels.reduce_gradients(b, begin, end); });
    if (needs & kNeedsPooled)
      for_outputs(reduce_bytes, channels, 64,
                  [&](int64_t begin, int64_t end) { kernels.backward_reduce(b, begin, end); });
  });
  return {std::move(grad_pooled), std::move(grad_reduce_weight), std::move(grad_reduce_bias),
          std::move(grad_expand_weight), std::move(grad_expand_bias)};
}

STABLE_TORCH_LIBRARY_IMPL(attnkernels, CPU, m) {
  m.impl("channel_spatial_layers", TORCH_BOX(&forward));
  m.impl("channel_spatial_layers_backward", TORCH_BOX(&backward));
}

}  // namespace
}  // namespace attnkernels::channel_spatial
