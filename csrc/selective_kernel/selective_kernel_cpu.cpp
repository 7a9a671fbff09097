// The CPU backend of selective_kernel: checks, allocation, threads. The kernels are in selective_kernel_simd.h.
#include "selective_kernel/selective_kernel_cpu.h"

#include <tuple>
#include <utility>
#include <vector>

#include "common/cpu_gate.h"
#include "selective_kernel/selective_kernel_binding.h"

#define SIMD_FILE "selective_kernel/selective_kernel_simd.h"
#include "common/simd_foreach.h"

namespace attnkernels::selective_kernel {
namespace {

using cpu::input, cpu::output;

template <class T>
int64_t map_bytes(const Shape& shape) {
  return shape.samples * shape.channels * shape.pixels * int64_t(sizeof(T));
}

// f(n, first, last, sums) for the rows of all samples, sums [columns] a sample
template <class A, class F>
void sum_rows(const Shape& shape, int64_t bytes, int64_t columns, A* sums, const F& f) {
  cpu::sum_rows(shape, 0, shape.samples, cpu::threads_for(bytes), sums, columns, columns, f);
}

template <class F>
void for_rows(const Shape& shape, int64_t bytes, const F& f) {
  cpu::for_rows_backwards(shape, 0, shape.samples, cpu::threads_for(bytes), f);
}

Tensor pooled_sum(std::vector<Tensor> given) {
  const CheckedBranches checked = check_branches("pooled_sum", std::move(given));
  const Shape& shape = checked.shape;
  const Tensor& x = checked.branches[0];
  Tensor pooled = allocate({shape.samples, shape.channels}, x.scalar_type(), x);
  cpu::dispatch("selective_kernel: branches", x.scalar_type(), [&]<class T>(T) {
    using A = Accumulator<T>;
    const Kernels<T>& kernels = *SIMD_CHOOSE(kKernels<T>);
    const Pool<T> args{shape, checked.rows<T>()};
    const int64_t count = shape.samples * shape.channels;
    std::vector<A> sums(count);
    sum_rows(shape, shape.branches * map_bytes<T>(shape), shape.channels, sums.data(),
             [&](int64_t n, int64_t first, int64_t last, A* sums) { kernels.pool(args, n, first, last, sums); });
    kernels.scale(output<T>(pooled), sums.data(), A(1) / A(shape.pixels), count);
  });
  return pooled;
}

std::tuple<Tensor, Tensor> select_branches(std::vector<Tensor> given, Tensor logits) {
  const CheckedBranches checked = check_branches("select_branches", std::move(given));
  const Shape& shape = checked.shape;
  const Tensor& x = checked.branches[0];
  logits = check_weights("select_branches", logits, shape, x.scalar_type(), x);
  Tensor y = allocate(x.sizes(), x.scalar_type(), x, shape.channels_last);
  Tensor weights = allocate({shape.samples, shape.branches, shape.channels}, accumulation_dtype(x.scalar_type()), x);
  cpu::dispatch("selective_kernel: branches", x.scalar_type(), [&]<class T>(T) {
    using A = Accumulator<T>;
    const Kernels<T>& kernels = *SIMD_CHOOSE(kKernels<T>);
    for (int64_t n = 0; n < shape.samples; ++n) kernels.softmax(shape, input<T>(logits), output<A>(weights), n);
    const Select<T> args{.shape = shape,
                         .stream = map_bytes<T>(shape) >= cpu::stream_bytes(),
                         .branches = checked.rows<T>(),
                         .weights = input<A>(weights),
                         .y = output<T>(y)};
    for_rows(shape, (shape.branches + 1) * map_bytes<T>(shape),
             [&](int64_t n, int64_t first, int64_t last) { kernels.select(args, n, first, last); });
  });
  return {std::move(y), std::move(weights)};
}

Tensor select_branches_grad_logits(Tensor grad_y, std::vector<Tensor> given, Tensor weights) {
  const char* op = "select_branches_grad_logits";
  const CheckedBranches checked = check_branches(op, std::move(given));
  const Shape& shape = checked.shape;
  const Tensor& x = checked.branches[0];
  check_alike(op, grad_y, x);
  grad_y = with_rows(grad_y, shape.channels_last);
  weights = check_weights(op, weights, shape, accumulation_dtype(x.scalar_type()), x);
  Tensor grad_logits = allocate({shape.samples, shape.branches, shape.channels}, x.scalar_type(), x);
  cpu::dispatch("selective_kernel: branches", x.scalar_type(), [&]<class T>(T) {
    using A = Accumulator<T>;
    const Kernels<T>& kernels = *SIMD_CHOOSE(kKernels<T>);
    const GradLogits<T> args{shape, rows_of<const T>(grad_y, shape.channels_last), checked.rows<T>()};
    const int64_t columns = shape.branches * shape.channels;
    std::vector<A> sums(shape.samples * columns);
    sum_rows(
        shape, (shape.branches + 1) * map_bytes<T>(shape), columns, sums.data(),
        [&](int64_t n, int64_t first, int64_t last, A* sums) { kernels.grad_weights(args, n, first, last, sums); });
    for (int64_t n = 0; n < shape.samples; ++n)
      kernels.grad_logits(shape, input<A>(weights), sums.data() + n * columns, output<T>(grad_logits), n);
  });
  return grad_logits;
}

std::vector<Tensor> select_branches_grad_branches(Tensor grad_y, Tensor weights, std::optional<Tensor> grad_pooled,
                                                  bool stacked, bool channels_last, int64_t needs) {
  const char* op = "select_branches_grad_branches";
  const Shape shape = check_grad_branches(op, grad_y, weights, grad_pooled, channels_last);
  grad_y = with_rows(grad_y, channels_last);
  weights = attnkernels::contiguous(weights);
  std::vector<Tensor> grads = allocate_grad_branches(grad_y, shape, stacked, needs);
  cpu::dispatch("selective_kernel: branches", grad_y.scalar_type(), [&]<class T>(T) {
    using A = Accumulator<T>;
    const Kernels<T>& kernels = *SIMD_CHOOSE(kKernels<T>);
    std::vector<A> pooled_term(shape.samples * shape.channels);
    if (grad_pooled) {
      const Tensor dense = attnkernels::contiguous(*grad_pooled);
      kernels.scale_up(pooled_term.data(), input<T>(dense), A(1) / A(shape.pixels), pooled_term.size());
    }
    GradBranches<T> args{.shape = shape,
                         .stream = map_bytes<T>(shape) >= cpu::stream_bytes(),
                         .grad_y = rows_of<const T>(grad_y, channels_last),
                         .weights = input<A>(weights),
                         .pooled_term = pooled_term.data(),
                         .grad_branches = {},
                         .sample_stride = shape.channels * shape.pixels * (stacked ? shape.branches : 1),
                         .interleaved = stacked && channels_last};
    for (int m = 0; m < shape.branches; ++m) {
      if (stacked)
        args.grad_branches[m] = output<T>(grads[0]) + (channels_last ? 0 : m * shape.channels * shape.pixels);
      else if (needs >> m & 1)
        args.grad_branches[m] = output<T>(grads[m]);
    }
    for_rows(shape, (shape.branches + 1) * map_bytes<T>(shape),
             [&](int64_t n, int64_t first, int64_t last) { kernels.grad_branches(args, n, first, last); });
  });
  return as_branch_order(std::move(grads), shape, stacked);
}

STABLE_TORCH_LIBRARY_IMPL(attnkernels, CPU, m) {
  m.impl("pooled_sum", TORCH_BOX(&pooled_sum));
  m.impl("select_branches", TORCH_BOX(&select_branches));
  m.impl("select_branches_grad_logits", TORCH_BOX(&select_branches_grad_logits));
  m.impl("select_branches_grad_branches", TORCH_BOX(&select_branches_grad_branches));
}

}  // namespace
}  // namespace attnkernels::selective_kernel
