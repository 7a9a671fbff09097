// The CPU backend of squeeze_excite: checks, allocation, the order of the passes, threads. The kernels are in
// squeeze_excite_simd.h.
#include "squeeze_excite/squeeze_excite_cpu.h"

#include <tuple>
#include <utility>
#include <vector>

#include "common/cpu_work.h"
#include "squeeze_excite/squeeze_excite_binding.h"

#define SIMD_FILE "squeeze_excite/squeeze_excite_simd.h"
#include "common/simd_foreach.h"

namespace attnkernels::squeeze_excite {
namespace {

template <class T>
const T* input(const Optional& x) {
  return x ? static_cast<const T*>(x->const_data_ptr()) : nullptr;
}
// Null where nothing was allocated for a result that was not asked for.
template <class T>
T* output(const Optional& x) {
  return x ? static_cast<T*>(x->mutable_data_ptr()) : nullptr;
}

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

// ---- the order of the passes

// How a call is divided: groups of samples that fit the cache go to the threads whole (the weights are read once per
// group); a few large samples are each shared by all threads.
struct Plan {
  Plan(const Shape& shape, int64_t sample_bytes, int64_t weight_bytes) {
    threads = cpu::threads_for(shape.samples * sample_bytes);
    // Uneven shares are worse than a barrier per pass.
    shared = threads > 1 && (shape.samples < threads || (shape.samples % threads && shape.samples < 4 * threads));
    // The weights are read once per group, a tile of the layers takes 4 samples: where the weights are no small part
    // of the traffic, that is worth more than a group that stays in the L2.
    const int64_t fitting = cpu::cache_bytes() / std::max<int64_t>(sample_bytes, 1);
    const int64_t wanted = 4 * weight_bytes >= sample_bytes ? std::max<int64_t>(fitting, 8) : fitting;
    const int64_t share = (shape.samples + threads - 1) / threads;
    group = shared ? 1 : std::max<int64_t>(1, std::min(wanted, share));
    groups = (shape.samples + group - 1) / group;
  }
  int64_t threads, group, groups;
  bool shared;
};

// The units of a sample, first to last, of a pass: pool(first, last, sums) into sums [C], by `parts` threads.
template <class A, class Pool>
void pool_sample(const Shape& shape, int64_t parts, A* sums, std::vector<A>& partial, const Pool& pool) {
  const int64_t units = shape.channels_last ? shape.pixels : shape.channels;
  if (parts == 1 || !shape.channels_last)
    return cpu::for_parts(parts, units, 1, [&](int64_t, int64_t first, int64_t last) { pool(first, last, sums); });
  partial.resize(parts * shape.channels);
  cpu::for_parts(parts, units, 1, [&](int64_t part, int64_t first, int64_t last) {
    pool(first, last, partial.data() + part * shape.channels);
  });
  for (int64_t c = 0; c < shape.channels; ++c) {
    A sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += partial[part * shape.channels + c];
    sums[c] = sum;
  }
}

// Calls group(n0, n1, parts): by several threads at once with parts == 1, or one after the other with all threads.
template <class Group>
void for_groups(const Plan& plan, int64_t samples, const Group& group) {
  if (plan.shared) {
    for (int64_t n = 0; n < samples; ++n) group(n, n + 1, plan.threads);
    return;
  }
  cpu::for_parts(std::min(plan.threads, plan.groups), plan.groups, 1, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t g = first; g < last; ++g) group(g * plan.group, std::min(samples, (g + 1) * plan.group), int64_t(1));
  });
}

template <class T, class Direction>
int64_t weight_bytes(const Direction& d) {
  return (d.single_layer ? d.shape.channels : 2 * d.shape.hidden) * d.shape.channels * int64_t(sizeof(T));
}

template <class T>
void run(const Forward<T>& f) {
  using A = Accumulator<T>;
  const Shape& shape = f.shape;
  const Kernels<T>& kernels = *SIMD_CHOOSE(kKernels<T>);
  const auto pool = f.prologue.changes_x() ? kernels.prologue_pool : kernels.pool;
  const int64_t units = shape.channels_last ? shape.pixels : shape.channels;
  const int64_t sample_bytes = shape.channels * shape.pixels * sizeof(T);
  for_groups(Plan(shape, sample_bytes, weight_bytes<T>(f)), shape.samples, [&](int64_t n0, int64_t n1, int64_t parts) {
    std::vector<A> partial;
    for (int64_t n = n0; n < n1; ++n) {
      A* means = f.saved.means(n);
      pool_sample(shape, parts, means, partial,
                  [&](int64_t first, int64_t last, A* sums) { pool(f, n, first, last, sums); });
      for (int64_t c = 0; c < shape.channels; ++c) means[c] /= A(shape.pixels);
    }
    if (!f.single_layer)
      cpu::for_parts(parts, shape.hidden, 4,
                     [&](int64_t, int64_t begin, int64_t end) { kernels.reduce(f, n0, n1, begin, end); });
    cpu::for_parts(parts, shape.channels, 16,
                   [&](int64_t, int64_t begin, int64_t end) { kernels.expand(f, n0, n1, begin, end); });
    for (int64_t n = n1 - 1; n >= n0; --n)
      cpu::for_parts(parts, units, 1, [&](int64_t, int64_t first, int64_t last) { kernels.scale(f, n, first, last); });
  });
}

template <class T>
void run(const Backward<T>& b, int needs) {
  using A = Accumulator<T>;
  const Shape& shape = b.shape;
  const Kernels<T>& kernels = *SIMD_CHOOSE(kKernels<T>);
  const int64_t units = shape.channels_last ? shape.pixels : shape.channels;
  const int64_t map_bytes = shape.channels * shape.pixels * sizeof(T);
  const bool gradients = needs & (kNeedsX | kNeedsWeights);
  // x passes through the cache between the two uses of grad_y and y.
  const Plan plan(shape, map_bytes * (b.y ? 3 : 2), weight_bytes<T>(b));
  for_groups(plan, shape.samples, [&](int64_t n0, int64_t n1, int64_t parts) {
    std::vector<A> partial;
    if (gradients) {
      for (int64_t n = n0; n < n1; ++n)
        pool_sample(shape, parts, b.grad_logits + n * shape.channels, partial,
                    [&](int64_t first, int64_t last, A* sums) { kernels.backward_pool(b, n, first, last, sums); });
      kernels.backward_gate(b, n0, n1);
      cpu::for_parts(parts, b.single_layer ? shape.channels : shape.hidden, 16,
                     [&](int64_t, int64_t begin, int64_t end) { kernels.backward_expand(b, n0, n1, begin, end); });
      if (!b.single_layer && b.grad_x)
        cpu::for_parts(parts, shape.channels, 64,
                       [&](int64_t, int64_t begin, int64_t end) { kernels.backward_reduce(b, n0, n1, begin, end); });
    }
    if (b.grad_x || b.grad_residual)
      for (int64_t n = n1 - 1; n >= n0; --n)
        cpu::for_parts(parts, units, 1,
                       [&](int64_t, int64_t first, int64_t last) { kernels.backward_scale(b, n, first, last); });
  });
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
    check_vector("norm_mean", mean, x, x.size(1));
    check_vector("norm_variance", variance, x, x.size(1));
    check_vector("norm_weight", weight, x, x.size(1));
    check_vector("norm_bias", bias, x, x.size(1));
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
  if (residual) check_map(kOp, "residual", *residual, x);
  const Optional dense_residual = residual ? Optional(as_layout(*residual, call.channels_last)) : std::nullopt;
  Tensor saved = cpu::allocate({shape.samples, shape.saved_columns()}, accumulation_dtype(x.scalar_type()));
  cpu::dispatch("squeeze_excite: x", x.scalar_type(), [&]<class T>(T) {
    using A = Accumulator<T>;
    std::vector<A> scratch(shape.samples * shape.hidden + (preceding && preceding->mean ? 2 * shape.channels : 0));
    A* of_norm = scratch.data() + shape.samples * shape.hidden;
    run(Forward<T>{.shape = shape,
                   .single_layer = call.single_layer,
                   .stream = stream,
                   .prologue = preceding ? preceding->fold<T>(of_norm, shape.channels) : Prologue<A>{},
                   .parameters = call.parameters<T>(),
                   .x = input<T>(x),
                   .residual = input<T>(dense_residual),
                   .y = output<T>(y),
                   .saved = {output<A>(saved), shape.channels, shape.hidden},
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
  check_map(kOp, "grad_y", grad_y, x);
  STD_TORCH_CHECK(!relu || y, "squeeze_excite: y: expected the output, as output_activation is relu, got None");
  if (relu) check_map(kOp, "y", *y, x);
  check_saved(kOp, saved, x, shape.saved_columns());
  STD_TORCH_CHECK(!(needs & kNeedsResidual) || relu, "squeeze_excite: needs: grad_residual is grad_y without a ReLU");
  const Tensor dense_grad = as_layout(grad_y, call.channels_last), dense_x = as_layout(x, call.channels_last);
  const Optional dense_y = relu ? Optional(as_layout(*y, call.channels_last)) : std::nullopt;
  const Tensor dense_saved = attnkernels::contiguous(saved);

  const auto map = [&](bool wanted) -> Optional {
    return wanted ? Optional(cpu::allocate(x.sizes(), dtype, call.channels_last)) : std::nullopt;
  };
  const auto parameter = [&](const Optional& like) -> Optional {
    return like && (needs & kNeedsWeights) ? Optional(cpu::allocate(like->sizes(), dtype)) : std::nullopt;
  };
  Optional grad_x = map(needs & kNeedsX), grad_residual = map(needs & kNeedsResidual);
  Optional grads[] = {parameter(reduce_weight), parameter(reduce_bias), parameter(expand_weight),
                      parameter(expand_bias)};
  cpu::dispatch("squeeze_excite: x", dtype, [&]<class T>(T) {
    using A = Accumulator<T>;
    std::vector<A> scratch(shape.samples * 2 * (shape.hidden + shape.channels));
    A* part = scratch.data();
    const int64_t of_hidden = shape.samples * shape.hidden, of_channels = shape.samples * shape.channels;
    run(Backward<T>{.shape = shape,
                    .single_layer = call.single_layer,
                    .stream = x.numel() * int64_t(sizeof(T)) >= cpu::stream_bytes(),
                    .parameters = call.parameters<T>(),
                    .grad_y = input<T>(dense_grad),
                    .x = input<T>(dense_x),
                    .y = input<T>(dense_y),
                    .saved = {static_cast<const A*>(dense_saved.const_data_ptr()), shape.channels, shape.hidden},
                    .grad_x = output<T>(grad_x),
                    .grad_residual = output<T>(grad_residual),
                    .grad_reduce_weight = output<T>(grads[0]),
                    .grad_reduce_bias = output<T>(grads[1]),
                    .grad_expand_weight = output<T>(grads[2]),
                    .grad_expand_bias = output<T>(grads[3]),
                    .hidden = part,
                    .grad_hidden = part + of_hidden,
                    .grad_logits = part + 2 * of_hidden,
                    .grad_means = part + 2 * of_hidden + of_channels},
        int(needs));
  });
  const auto result = [&](Optional& wanted) { return wanted ? std::move(*wanted) : cpu::allocate({0}, dtype); };
  return {result(grad_x),   result(grad_residual), result(grads[0]),
          result(grads[1]), result(grads[2]),      result(grads[3])};
}

STABLE_TORCH_LIBRARY_IMPL(attnkernels, CPU, m) {
  m.impl("squeeze_excite", TORCH_BOX(&forward));
  m.impl("squeeze_excite_", TORCH_BOX(&forward_over));
  m.impl("squeeze_excite_backward", TORCH_BOX(&backward));
}

}  // namespace
}  // namespace attnkernels::squeeze_excite
