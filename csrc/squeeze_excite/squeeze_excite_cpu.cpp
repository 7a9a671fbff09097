// The CPU backend of squeeze_excite: checks, allocation, its layers between the passes that all gates have. The kernels
// are in squeeze_excite_simd.h.
#include "squeeze_excite/squeeze_excite_cpu.h"

#include <tuple>
#include <utility>
#include <vector>

#include "common/cpu_gate.h"
#include "squeeze_excite/squeeze_excite_binding.h"

#define SIMD_FILE "squeeze_excite/squeeze_excite_simd.h"
#include "common/simd_foreach.h"

namespace attnkernels::squeeze_excite {
namespace {

using cpu::input, cpu::output;

struct Call : CheckedCall {
  template <class... Arguments>
  explicit Call(const Tensor& x, const Arguments&... arguments)
      : CheckedCall(x, arguments...), single_layer(!reduce_weight) {
    STD_TORCH_CHECK(x.is_cpu(), "squeeze_excite: x: expected a tensor on the CPU");
    shape.channels_last |= shape.pixels == 1;  // vectors of channels in either layout
  }

  template <class T>
  Parameters<T> parameters() const {
    return {input<T>(reduce_weight), input<T>(reduce_bias), input<T>(expand_weight), input<T>(expand_bias)};
  }

  bool single_layer;
};

// ---- the layers, by `parts` threads that share the samples [n0, n1)

template <class T, class Direction>
int64_t weight_bytes(const Direction& d) {
  return (d.single_layer ? d.shape.channels : 2 * d.shape.hidden) * d.shape.channels * int64_t(sizeof(T));
}

template <class T>
void run(const GateForward<T>& maps, const Forward<T>& f) {
  const Shape& shape = f.shape;
  const Kernels<T>& kernels = *SIMD_CHOOSE(kKernels<T>);
  cpu::run(maps, weight_bytes<T>(f), [&](int64_t n0, int64_t n1, int64_t parts) {
    if (!f.single_layer)
      cpu::for_parts(parts, shape.hidden, 4,
                     [&](int64_t, int64_t begin, int64_t end) { kernels.reduce(f, n0, n1, begin, end); });
    cpu::for_parts(parts, shape.channels, 16,
                   [&](int64_t, int64_t begin, int64_t end) { kernels.expand(f, n0, n1, begin, end); });
  });
}

template <class T>
void run(const GateBackward<T>& maps, const Backward<T>& b, int64_t needs) {
  const Shape& shape = b.shape;
  const Kernels<T>& kernels = *SIMD_CHOOSE(kKernels<T>);
  const auto layers = [&](int64_t n0, int64_t n1, int64_t parts) {
    kernels.backward_gate(b, n0, n1);
    cpu::for_parts(parts, b.single_layer ? shape.channels : shape.hidden, 16,
                   [&](int64_t, int64_t begin, int64_t end) { kernels.backward_expand(b, n0, n1, begin, end); });
    if (!b.single_layer && maps.grad_x)
      cpu::for_parts(parts, shape.channels, 64,
                     [&](int64_t, int64_t begin, int64_t end) { kernels.backward_reduce(b, n0, n1, begin, end); });
  };
  cpu::run(maps, needs & (kNeedsX | kNeedsWeights), weight_bytes<T>(b), layers);
  if (needs & kNeedsWeights) kernels.backward_weights(b);
}

// ---- operators

// What precedes the op in the place of x: a batch normalisation by its running statistics, where `mean` and `variance`
// are given, as scale[c] and shift[c]; then an activation.
struct Preceding {
  const Optional &mean, &variance, &weight, &bias;
  double epsilon;
  InputActivation activation;

  void check(const Tensor& x) const {
    STD_TORCH_CHECK(mean ? bool(variance) : !variance && !weight && !bias,
                    "squeeze_excite: norm_mean, norm_variance: expected both, or no norm at all");
    check_vector("squeeze_excite", "norm_mean", mean, x.size(1), x, "x");
    check_vector("squeeze_excite", "norm_variance", variance, x.size(1), x, "x");
    check_vector("squeeze_excite", "norm_weight", weight, x.size(1), x, "x");
    check_vector("squeeze_excite", "norm_bias", bias, x.size(1), x, "x");
    STD_TORCH_CHECK(activation >= InputActivation::kNone && activation <= InputActivation::kHardSwish,
                    "squeeze_excite: input_activation: expected 0 to 3");
  }

  // Scale and shift are written to the two rows of `coefficients` [2, C].
  template <class T>
  Prologue<Accumulator<T>> fold(Accumulator<T>* coefficients, int64_t channels) const {
    using A = Accumulator<T>;
    if (!mean) return {nullptr, nullptr, activation};
    const Optional dense_mean = attnkernels::contiguous(mean), dense_variance = attnkernels::contiguous(variance);
    const Optional dense_weight = attnkernels::contiguous(weight), dense_bias = attnkernels::contiguous(bias);
    A *scale = coefficients, *shift = coefficients + channels;
    SIMD_CHOOSE(fold_batch_norm<T>)
    (channels, input<T>(dense_mean), input<T>(dense_variance), input<T>(dense_weight), input<T>(dense_bias), A(epsilon),
     scale, shift);
    return {scale, shift, activation};
  }
};

// Writes y, which is x itself where something precedes, and returns `saved`; x is dense.
Tensor forward_into(const Call& call, const Tensor& x, const Optional& residual, const Tensor& y, bool stream,
                    const Preceding* preceding = nullptr) {
  const Shape& shape = call.shape;
  if (residual) check_map("squeeze_excite", "residual", *residual, x);
  const Optional dense_residual = residual ? Optional(as_layout(*residual, call.channels_last)) : std::nullopt;
  Tensor saved = cpu::allocate({shape.samples, shape.saved_columns()}, accumulation_dtype(x.scalar_type()));
  cpu::dispatch("squeeze_excite: x", x.scalar_type(), [&]<class T>(T) {
    using A = Accumulator<T>;
    std::vector<A> scratch(shape.samples * shape.hidden + (preceding && preceding->mean ? 2 * shape.channels : 0));
    A* of_norm = scratch.data() + shape.samples * shape.hidden;
    const Saved<A> rows{output<A>(saved), shape.channels, shape.hidden};
    run(GateForward<T>{.shape = shape,
                       .output_activation = shape.output_activation,
                       .stream = stream,
                       .prologue = preceding ? preceding->fold<T>(of_norm, shape.channels) : Prologue<A>{},
                       .x = input<T>(x),
                       .residual = input<T>(dense_residual),
                       .y = output<T>(y),
                       .means = rows.means(0),
                       .gates = rows.gates(0),
                       .columns = rows.columns()},
        Forward<T>{.shape = shape,
                   .single_layer = call.single_layer,
                   .parameters = call.parameters<T>(),
                   .saved = rows,
                   .hidden = scratch.data()});
  });
  return saved;
}

std::tuple<Tensor, Tensor> forward(const Tensor& x, const Optional& reduce_weight, const Optional& reduce_bias,
                                   const Tensor& expand_weight, const Optional& expand_bias, const Optional& residual,
                                   int64_t activation, int64_t gate, int64_t output_activation) {
  const Call call(x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate, output_activation);
  const Tensor dense_x = as_layout(x, call.channels_last);
  Tensor y = cpu::allocate(x.sizes(), x.scalar_type(), call.channels_last);
  const bool stream = y.numel() * int64_t(y.element_size()) >= cpu::stream_bytes();
  Tensor saved = forward_into(call, dense_x, residual, y, stream);
  return {std::move(y), std::move(saved)};
}

// In place, and without non-temporal stores: x's lines are in the cache already.
void forward_over(const Tensor& x, const Optional& norm_mean, const Optional& norm_variance,
                  const Optional& norm_weight, const Optional& norm_bias, double norm_epsilon, int64_t input_activation,
                  const Optional& reduce_weight, const Optional& reduce_bias, const Tensor& expand_weight,
                  const Optional& expand_bias, const Optional& residual, int64_t activation, int64_t gate,
                  int64_t output_activation) {
  const Call call(x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate, output_activation);
  STD_TORCH_CHECK(call.channels_last || x.is_contiguous(),
                  "squeeze_excite: x: expected contiguous or channels_last memory");
  const Preceding preceding{norm_mean, norm_variance, norm_weight,
                            norm_bias, norm_epsilon,  InputActivation(input_activation)};
  preceding.check(x);
  forward_into(call, x, residual, x, false, &preceding);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_y, const Tensor& x, const Optional& y, const Optional& reduce_weight,
    const Optional& reduce_bias, const Tensor& expand_weight, const Optional& expand_bias, const Tensor& saved,
    int64_t activation, int64_t gate, int64_t output_activation, int64_t needs) {
  const Call call(x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate, output_activation);
  const Shape& shape = call.shape;
  const bool relu = shape.output_activation == OutputActivation::kRelu;
  const ScalarType dtype = x.scalar_type();
  check_map("squeeze_excite", "grad_y", grad_y, x);
  check_kept("squeeze_excite", saved, shape.saved_columns(), y, shape.output_activation, x);
  STD_TORCH_CHECK(!(needs & kNeedsResidual) || relu, "squeeze_excite: needs: grad_residual is grad_y without a ReLU");
  const Tensor dense_grad = as_layout(grad_y, call.channels_last), dense_x = as_layout(x, call.channels_last);
  const Optional dense_y = relu ? Optional(as_layout(*y, call.channels_last)) : std::nullopt;
  const Tensor dense_saved = attnkernels::contiguous(saved);

  const auto parameter = [&](const Optional& like) {
    const bool wanted = like && (needs & kNeedsWeights);
    return cpu::allocate_result(wanted, wanted ? like->sizes() : x.sizes(), dtype);
  };
  Tensor grad_x = cpu::allocate_result(needs & kNeedsX, x.sizes(), dtype, call.channels_last);
  Tensor grad_residual = cpu::allocate_result(needs & kNeedsResidual, x.sizes(), dtype, call.channels_last);
  Tensor grads[] = {parameter(reduce_weight), parameter(reduce_bias), parameter(expand_weight), parameter(expand_bias)};
  cpu::dispatch("squeeze_excite: x", dtype, [&]<class T>(T) {
    using A = Accumulator<T>;
    std::vector<A> scratch(shape.samples * 2 * (shape.hidden + shape.channels));
    A* part = scratch.data();
    const int64_t of_hidden = shape.samples * shape.hidden, of_channels = shape.samples * shape.channels;
    const Saved<const A> rows{input<A>(dense_saved), shape.channels, shape.hidden};
    A *grad_logits = part + 2 * of_hidden, *grad_means = grad_logits + of_channels;
    run(GateBackward<T>{.shape = shape,
                        .stream = x.numel() * int64_t(sizeof(T)) >= cpu::stream_bytes(),
                        .grad_y = input<T>(dense_grad),
                        .x = input<T>(dense_x),
                        .y = input<T>(dense_y),
                        .gates = rows.gates(0),
                        .columns = rows.columns(),
                        .grad_x = output<T>(grad_x),
                        .grad_residual = output<T>(grad_residual),
                        .grad_gates = grad_logits,
                        .grad_means = grad_means},
        Backward<T>{.shape = shape,
                    .single_layer = call.single_layer,
                    .parameters = call.parameters<T>(),
                    .saved = rows,
                    .grad_reduce_weight = output<T>(grads[0]),
                    .grad_reduce_bias = output<T>(grads[1]),
                    .grad_expand_weight = output<T>(grads[2]),
                    .grad_expand_bias = output<T>(grads[3]),
                    .hidden = part,
                    .grad_hidden = part + of_hidden,
                    .grad_logits = grad_logits,
                    .grad_means = grad_means},
        needs);
  });
  return {std::move(grad_x),   std::move(grad_residual), std::move(grads[0]),
          std::move(grads[1]), std::move(grads[2]),      std::move(grads[3])};
}

STABLE_TORCH_LIBRARY_IMPL(attnkernels, CPU, m) {
  m.impl("squeeze_excite", TORCH_BOX(&forward));
  m.impl("squeeze_excite_", TORCH_BOX(&forward_over));
  m.impl("squeeze_excite_backward", TORCH_BOX(&backward));
}

}  // namespace
}  // namespace attnkernels::squeeze_excite
