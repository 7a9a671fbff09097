// The CPU backend of efficient_channel_attention: checks, allocation, its convolution over the channels between the
// passes that all gates have. The kernels are in efficient_channel_attention_simd.h.
#include <tuple>
#include <utility>
#include <vector>

#include "common/cpu_gate.h"
#include "efficient_channel_attention/efficient_channel_attention_binding.h"

namespace attnkernels::efficient_channel_attention {

// The kernels of one level: the first two on one sample, the last on all.
template <class T>
struct Kernels {
  using A = Accumulator<T>;
  void (*gates)(const Shape&, const T* weight, const A* means, A* gates, A* padded);
  void (*grad_means)(const Shape&, const T* weight, const A* gates, A* grads, A* grad_means, A* padded);
  void (*grad_weight)(const Shape&, const A* grads, const A* saved, T* grad_weight, A* sums, A* padded);
};

}  // namespace attnkernels::efficient_channel_attention

#define SIMD_FILE "efficient_channel_attention/efficient_channel_attention_simd.h"
#include "common/simd_foreach.h"

namespace attnkernels::efficient_channel_attention {
namespace {

using cpu::input, cpu::output;

struct Call : CheckedCall {
  template <class... Arguments>
  explicit Call(const Tensor& x, const Arguments&... arguments) : CheckedCall(x, arguments...) {
    STD_TORCH_CHECK(x.is_cpu(), kOp, ": x: expected a tensor on the CPU");
    shape.channels_last |= shape.pixels == 1;  // vectors of channels in either layout
  }
};

std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& weight, const Optional& residual, int64_t circular,
                                   int64_t gate, int64_t output_activation) {
  const Call call(x, weight, circular, gate, output_activation);
  const Shape& shape = call.shape;
  if (residual) check_map(kOp, "residual", *residual, x);
  const Tensor dense_x = as_layout(x, call.channels_last);
  const Optional dense_residual = residual ? Optional(as_layout(*residual, call.channels_last)) : std::nullopt;
  Tensor y = cpu::allocate(x.sizes(), x.scalar_type(), call.channels_last);
  Tensor saved = cpu::allocate({shape.samples, shape.saved_columns()}, accumulation_dtype(x.scalar_type()));
  cpu::dispatch("efficient_channel_attention: x", x.scalar_type(), [&]<class T>(T) {
    using A = Accumulator<T>;
    const Kernels<T>& kernels = *SIMD_CHOOSE(kKernels<T>);
    A* means = output<A>(saved);
    const GateForward<T> maps{.shape = shape,
                              .output_activation = shape.output_activation,
                              .stream = y.numel() * int64_t(sizeof(T)) >= cpu::stream_bytes(),
                              .prologue = {},
                              .x = input<T>(dense_x),
                              .residual = input<T>(dense_residual),
                              .y = output<T>(y),
                              .means = means,
                              .gates = means + shape.channels,
                              .columns = shape.saved_columns()};
    cpu::run(maps, 0, [&](int64_t n0, int64_t n1, int64_t) {
      std::vector<A> padded(shape.channels + shape.taps - 1);
      for (int64_t n = n0; n < n1; ++n)
        kernels.gates(shape, input<T>(call.weight), maps.means + n * maps.columns, maps.gates + n * maps.columns,
                      padded.data());
    });
  });
  return {std::move(y), std::move(saved)};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_y, const Tensor& x, const Optional& y,
                                            const Tensor& weight, const Tensor& saved, int64_t circular, int64_t gate,
                                            int64_t output_activation, int64_t needs) {
  const Call call(x, weight, circular, gate, output_activation);
  const Shape& shape = call.shape;
  const ScalarType dtype = x.scalar_type();
  check_backward(shape, grad_y, x, y, saved, needs);
  const Tensor dense_grad = as_layout(grad_y, call.channels_last), dense_x = as_layout(x, call.channels_last);
  const bool relu = shape.output_activation == OutputActivation::kRelu;
  const Optional dense_y = relu ? Optional(as_layout(*y, call.channels_last)) : std::nullopt;
  const Tensor dense_saved = attnkernels::contiguous(saved);
  Tensor grad_x = cpu::allocate_result(needs & kNeedsX, x.sizes(), dtype, call.channels_last);
  Tensor grad_weight = cpu::allocate_result(needs & kNeedsWeight, weight.sizes(), dtype);
  Tensor grad_residual = cpu::allocate_result(needs & kNeedsResidual, x.sizes(), dtype, call.channels_last);
  cpu::dispatch("efficient_channel_attention: x", dtype, [&]<class T>(T) {
    using A = Accumulator<T>;
    const Kernels<T>& kernels = *SIMD_CHOOSE(kKernels<T>);
    const int64_t channels = shape.channels, of_channels = shape.samples * channels;
    const int64_t of_padded = channels + shape.taps - 1;
    std::vector<A> scratch(2 * of_channels + shape.taps + of_padded);
    const A* means = input<A>(dense_saved);
    const GateBackward<T> maps{.shape = shape,
                               .stream = x.numel() * int64_t(sizeof(T)) >= cpu::stream_bytes(),
                               .grad_y = input<T>(dense_grad),
                               .x = input<T>(dense_x),
                               .y = input<T>(dense_y),
                               .gates = means + channels,
                               .columns = shape.saved_columns(),
                               .grad_x = output<T>(grad_x),
                               .grad_residual = output<T>(grad_residual),
                               .grad_gates = scratch.data(),
                               .grad_means = scratch.data() + of_channels};
    cpu::run(maps, needs & (kNeedsX | kNeedsWeight), 0, [&](int64_t n0, int64_t n1, int64_t) {
      std::vector<A> padded(of_padded);
      for (int64_t n = n0; n < n1; ++n)
        kernels.grad_means(shape, input<T>(call.weight), maps.gates + n * maps.columns, maps.grad_gates + n * channels,
                           maps.grad_means + n * channels, padded.data());
    });
    A* sums = maps.grad_means + of_channels;
    if (needs & kNeedsWeight)
      kernels.grad_weight(shape, maps.grad_gates, means, output<T>(grad_weight), sums, sums + shape.taps);
  });
  return {std::move(grad_x), std::move(grad_weight), std::move(grad_residual)};
}

STABLE_TORCH_LIBRARY_IMPL(attnkernels, CPU, m) {
  m.impl("efficient_channel_attention", TORCH_BOX(&forward));
  m.impl("efficient_channel_attention_backward", TORCH_BOX(&backward));
}

}  // namespace
}  // namespace attnkernels::efficient_channel_attention
