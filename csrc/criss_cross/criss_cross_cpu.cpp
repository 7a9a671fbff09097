// The CPU backend of criss_cross: allocation, the order of the passes, threads. The kernels are in criss_cross_simd.h.
#include <cmath>
#include <memory>
#include <new>
#include <tuple>
#include <utility>

#include "common/cpu_work.h"
#include "criss_cross/criss_cross_binding.h"
#include "criss_cross/criss_cross_pass.h"

#define SIMD_FILE "criss_cross/criss_cross_simd.h"
#include "common/simd_foreach.h"

namespace attnkernels::criss_cross {
namespace {

// Fewer multiplications than this, 10 to 20 us of them, are not worth waking a thread for.
constexpr int64_t kProductsPerThread = 1 << 20;
// Elements per thread of the loops over pixels alone, for the same reason.
constexpr int64_t kPixelsPerThread = 1 << 12;
// Of the partial sums of 16-bit maps, in bytes; larger batches take turns in it. Maps beyond it are alone.
constexpr int64_t kPartialBytes = 16 << 20;

struct Release {
  void operator()(void* block) const { ::operator delete(block, std::align_val_t(64)); }
};

// Calls kernel(pass, scratch, begin, end) on all lines of all passes, in the passes' order.
template <class T, class Kernel>
void run_passes(const Shape& shape, bool backward, const Kernel& kernel) {
  using acc_t = Accumulator<T>;
  const bool of_pairs = std::is_same_v<T, BFloat16> && simd::level() == simd::Level::kAvx512Bf16;
  for_each_pass(shape, [&](const Pass& pass) {
    const int64_t elements = Scratch<acc_t>(nullptr, shape, pass, backward, of_pairs).layout.used;
    const int64_t line = pass.lines.length * pass.lines.length * (shape.query_channels + shape.value_channels);
    const int64_t grain = 1 + kProductsPerThread / std::max<int64_t>(line, 1);
    torch::stable::parallel_for(0, pass.count, grain, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<void, Release> block(::operator new(elements * sizeof(acc_t), std::align_val_t(64)));
      kernel(pass, Scratch<acc_t>(static_cast<acc_t*>(block.get()), shape, pass, backward, of_pairs), begin, end);
    });
  });
}

// ---- layouts: the kernels work on pixels of contiguous channels, other maps are copied to that and back

// to[sample][column][row] = from[sample][row][column]
void transpose(const Tensor& to, const Tensor& from, int64_t samples, int64_t rows, int64_t columns) {
  if (from.numel() == 0) return;
  constexpr int64_t kStrip = 64;  // columns: whole cache lines of each row, and their rows of `to` stay in the L2
  const int64_t strips = (columns + kStrip - 1) / kStrip;
  cpu::dispatch("criss_cross", from.scalar_type(), [&]<class T>(T) {
    const auto kernel = SIMD_CHOOSE(transpose_columns<T>);
    T* target = static_cast<T*>(to.mutable_data_ptr());
    const T* source = static_cast<const T*>(from.const_data_ptr());
    const int64_t grain = 1 + kPixelsPerThread / (rows * kStrip);
    torch::stable::parallel_for(0, samples * strips, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t map = i / strips * rows * columns, strip = i % strips * kStrip;
        kernel(target + map, source + map, rows, columns, strip, std::min(columns, strip + kStrip));
      }
    });
  });
}

int64_t pixels_of(const Tensor& map) { return map.numel() / std::max<int64_t>(map.size(0) * map.size(1), 1); }

Tensor channels_last_map(const Tensor& x) {
  if (!x.is_contiguous() || is_dense(x, true)) return dense_map(x, true);
  Tensor result = allocate_map(x.sizes(), x, true);
  transpose(result, x, x.size(0), x.size(1), pixels_of(x));
  return result;
}

// Frees copies before the results are copied, unless they are the caller's tensors.
template <class... Tensors>
void release(Tensors&... tensors) {
  ((tensors = Tensor()), ...);
}

// The result [.., C] of a call as a map in the layout of the call.
Tensor in_layout(Tensor x, bool channels_last) {
  if (channels_last || x.dim() == 1) return x;
  Tensor result = allocate_map(x.sizes(), x, false);
  transpose(result, x, x.size(0), pixels_of(x), x.size(1));
  return result;
}

// Where partial sums are held: in the results, or for 16-bit types in a workspace for a few samples at a time.
template <class T>
class Partial {
 public:
  using acc_t = Accumulator<T>;
  static constexpr bool kInPlace = std::is_same_v<T, acc_t>;

  // Of results with `channels` channels in all.
  Partial(const Shape& shape, int64_t channels, const Tensor& like) {
    const int64_t sample = std::max<int64_t>(channels * shape.pixels(), 1);
    samples_ =
        kInPlace ? shape.samples : std::clamp<int64_t>(kPartialBytes / (sample * sizeof(acc_t)), 1, shape.samples);
    if (!kInPlace) workspace_ = allocate({samples_ * sample}, accumulation_dtype(like.scalar_type()), like);
  }

  // Calls f(first sample, shape of the samples that share the workspace).
  template <class F>
  void for_each_part(Shape shape, const F& f) {
    const int64_t all = shape.samples;
    for (int64_t first = 0; first < all; first += samples_) {
      used_ = 0;
      shape.samples = std::min(samples_, all - first);
      f(first, shape);
    }
  }

  // The partial sums of `result` [samples of the part][elements]; null where it is not wanted.
  acc_t* of(T* result, int64_t elements) {
    if (!result) return nullptr;
    if constexpr (kInPlace) {
      return result;
    } else {
      acc_t* start = static_cast<acc_t*>(workspace_.mutable_data_ptr()) + used_;
      used_ += samples_ * elements;
      return start;
    }
  }

 private:
  int64_t samples_, used_ = 0;
  Tensor workspace_;
};

template <class T>
T* offset(T* start, int64_t elements) {
  return start ? start + elements : nullptr;
}

std::tuple<Tensor, Tensor> attention(const Tensor& query, const Tensor& key, const Tensor& value) {
  const Shape shape = attention_shape("criss_cross_attention", query, key, value);
  Tensor dense_query = channels_last_map(query), dense_key = channels_last_map(key),
         dense_value = channels_last_map(value);
  Tensor out = allocate_map(value.sizes(), value, true);
  Tensor log_sum_exp = allocate(pixel_sizes(value), accumulation_dtype(value.scalar_type()), value);
  if (log_sum_exp.numel() == 0) return {in_layout(std::move(out), shape.channels_last), std::move(log_sum_exp)};
  const Tensor sums = allocate(log_sum_exp.sizes(), log_sum_exp.scalar_type(), value);
  cpu::dispatch("criss_cross", value.scalar_type(), [&]<class T>(T) {
    using acc_t = Accumulator<T>;
    acc_t *largest = output<acc_t>(log_sum_exp), *sum = output<acc_t>(sums);
    const int64_t query_size = shape.query_channels * shape.pixels(),
                  value_size = shape.value_channels * shape.pixels();
    Partial<T> partial(shape, shape.value_channels, value);
    partial.for_each_part(shape, [&](int64_t first, const Shape& part) {
      T* result = offset(output<T>(out), first * value_size);
      const AttentionForward<T, acc_t> arguments{.shape = part,
                                                 .query = input<T>(dense_query) + first * query_size,
                                                 .key = input<T>(dense_key) + first * query_size,
                                                 .value = input<T>(dense_value) + first * value_size,
                                                 .out = result,
                                                 .partial_out = partial.of(result, value_size),
                                                 .log_sum_exp = largest + first * shape.pixels(),
                                                 .sum = sum + first * shape.pixels()};
      const auto kernel = SIMD_CHOOSE(attention_forward<T>);
      run_passes<T>(part, false, [&](const Pass& pass, const Scratch<acc_t>& scratch, int64_t begin, int64_t end) {
        kernel(arguments, pass, scratch, begin, end);
      });
    });
    torch::stable::parallel_for(0, log_sum_exp.numel(), kPixelsPerThread, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) largest[i] += std::log(sum[i]);
    });
  });
  release(dense_query, dense_key, dense_value);
  return {in_layout(std::move(out), shape.channels_last), std::move(log_sum_exp)};
}

// delta = sum_c grad_out[c] out[c] of each pixel
void compute_delta(const Tensor& delta, const Tensor& grad_out, const Tensor& out) {
  cpu::dispatch("criss_cross", out.scalar_type(), [&]<class T>(T) {
    const auto kernel = SIMD_CHOOSE(attention_delta<T>);
    torch::stable::parallel_for(0, delta.numel(), kPixelsPerThread, [&](int64_t begin, int64_t end) {
      kernel(output<Accumulator<T>>(delta), input<T>(grad_out), input<T>(out), out.size(1), begin, end);
    });
  });
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad_out, const Tensor& query, const Tensor& key,
                                                      const Tensor& value, const Tensor& out, const Tensor& log_sum_exp,
                                                      int64_t needs) {
  constexpr const char* op = "criss_cross_attention_backward";
  const Shape shape = attention_shape(op, query, key, value);
  check_map(op, "grad_out", grad_out, value, shape.value_channels);
  check_map(op, "out", out, value, shape.value_channels);
  STD_TORCH_CHECK(log_sum_exp.numel() == shape.samples * shape.pixels() && log_sum_exp.device() == value.device() &&
                      log_sum_exp.scalar_type() == accumulation_dtype(value.scalar_type()),
                  op, ": log_sum_exp: expected one number per pixel in the accumulation dtype");
  Tensor dense_grad = channels_last_map(grad_out);
  const Tensor statistics = attnkernels::contiguous(log_sum_exp);
  const Tensor deltas = allocate(statistics.sizes(), statistics.scalar_type(), value);
  // Before anything else is allocated: a copy of `out` is gone then.
  if (needs & (kNeedsQuery | kNeedsKey)) compute_delta(deltas, dense_grad, channels_last_map(out));
  Tensor dense_query = channels_last_map(query), dense_key = channels_last_map(key),
         dense_value = channels_last_map(value);
  Tensor grad_query = allocate_gradient(needs & kNeedsQuery, query, true),
         grad_key = allocate_gradient(needs & kNeedsKey, key, true),
         grad_value = allocate_gradient(needs & kNeedsValue, value, true);
  if (log_sum_exp.numel() == 0)
    return {in_layout(std::move(grad_query), shape.channels_last), in_layout(std::move(grad_key), shape.channels_last),
            in_layout(std::move(grad_value), shape.channels_last)};
  cpu::dispatch("criss_cross", value.scalar_type(), [&]<class T>(T) {
    using acc_t = Accumulator<T>;
    const int64_t query_size = shape.query_channels * shape.pixels(),
                  value_size = shape.value_channels * shape.pixels();
    Partial<T> partial(shape, 2 * shape.query_channels + shape.value_channels, value);
    partial.for_each_part(shape, [&](int64_t first, const Shape& part) {
      T *to_query = offset(output<T>(grad_query), first * query_size),
        *to_key = offset(output<T>(grad_key), first * query_size),
        *to_value = offset(output<T>(grad_value), first * value_size);
      const AttentionBackward<T, acc_t> arguments{.shape = part,
                                                  .grad_out = input<T>(dense_grad) + first * value_size,
                                                  .query = input<T>(dense_query) + first * query_size,
                                                  .key = input<T>(dense_key) + first * query_size,
                                                  .value = input<T>(dense_value) + first * value_size,
                                                  .out = nullptr,  // it is in delta
                                                  .log_sum_exp = input<acc_t>(statistics) + first * shape.pixels(),
                                                  .delta = output<acc_t>(deltas) + first * shape.pixels(),
                                                  .grad_query = to_query,
                                                  .grad_key = to_key,
                                                  .grad_value = to_value,
                                                  .partial_grad_query = partial.of(to_query, query_size),
                                                  .partial_grad_key = partial.of(to_key, query_size),
                                                  .partial_grad_value = partial.of(to_value, value_size)};
      const auto kernel = SIMD_CHOOSE(attention_backward<T>);
      run_passes<T>(part, true, [&](const Pass& pass, const Scratch<acc_t>& scratch, int64_t begin, int64_t end) {
        kernel(arguments, pass, scratch, begin, end);
      });
    });
  });
  release(dense_query, dense_key, dense_value, dense_grad);
  return {in_layout(std::move(grad_query), shape.channels_last), in_layout(std::move(grad_key), shape.channels_last),
          in_layout(std::move(grad_value), shape.channels_last)};
}

Tensor affinity(const Tensor& query, const Tensor& key) {
  const Shape shape = affinity_shape("criss_cross_affinity", query, key);
  const Tensor dense_query = channels_last_map(query), dense_key = channels_last_map(key);
  Tensor result = allocate_map({shape.samples, shape.affinity_channels(), shape.height, shape.width}, query, true);
  cpu::dispatch("criss_cross", query.scalar_type(), [&]<class T>(T) {
    const Affinity<T> arguments{shape, input<T>(dense_query), input<T>(dense_key), output<T>(result)};
    const auto kernel = SIMD_CHOOSE(affinity_forward<T>);
    run_passes<T>(shape, false, [&](const Pass& pass, const auto& scratch, int64_t begin, int64_t end) {
      kernel(arguments, pass, scratch, begin, end);
    });
  });
  return in_layout(std::move(result), shape.channels_last);
}

std::tuple<Tensor, Tensor> affinity_backward(const Tensor& grad_affinity, const Tensor& query, const Tensor& key,
                                             int64_t needs) {
  constexpr const char* op = "criss_cross_affinity_backward";
  const Shape shape = affinity_shape(op, query, key);
  check_map(op, "grad_affinity", grad_affinity, query, shape.affinity_channels());
  const Tensor dense_grad = channels_last_map(grad_affinity), dense_query = channels_last_map(query),
               dense_key = channels_last_map(key);
  Tensor grad_query = allocate_gradient(needs & kNeedsQuery, query, true),
         grad_key = allocate_gradient(needs & kNeedsKey, key, true);
  cpu::dispatch("criss_cross", query.scalar_type(), [&]<class T>(T) {
    using acc_t = Accumulator<T>;
    const int64_t size = shape.query_channels * shape.pixels(), weights = shape.affinity_channels() * shape.pixels();
    Partial<T> partial(shape, 2 * shape.query_channels, query);
    partial.for_each_part(shape, [&](int64_t first, const Shape& part) {
      T *to_query = offset(output<T>(grad_query), first * size), *to_key = offset(output<T>(grad_key), first * size);
      const AffinityBackward<T, acc_t> arguments{.shape = part,
                                                 .grad_affinity = input<T>(dense_grad) + first * weights,
                                                 .query = input<T>(dense_query) + first * size,
                                                 .key = input<T>(dense_key) + first * size,
                                                 .grad_query = to_query,
                                                 .grad_key = to_key,
                                                 .partial_grad_query = partial.of(to_query, size),
                                                 .partial_grad_key = partial.of(to_key, size)};
      const auto kernel = SIMD_CHOOSE(affinity_backward<T>);
      run_passes<T>(part, true, [&](const Pass& pass, const Scratch<acc_t>& scratch, int64_t begin, int64_t end) {
        kernel(arguments, pass, scratch, begin, end);
      });
    });
  });
  return {in_layout(std::move(grad_query), shape.channels_last), in_layout(std::move(grad_key), shape.channels_last)};
}

Tensor aggregate(const Tensor& affinity, const Tensor& value) {
  const Shape shape = aggregate_shape("criss_cross_aggregate", affinity, value);
  const Tensor dense_affinity = channels_last_map(affinity), dense_value = channels_last_map(value);
  Tensor out = allocate_map(value.sizes(), value, true);
  cpu::dispatch("criss_cross", value.scalar_type(), [&]<class T>(T) {
    using acc_t = Accumulator<T>;
    const int64_t size = shape.value_channels * shape.pixels(), weights = shape.affinity_channels() * shape.pixels();
    Partial<T> partial(shape, shape.value_channels, value);
    partial.for_each_part(shape, [&](int64_t first, const Shape& part) {
      T* result = offset(output<T>(out), first * size);
      const Aggregate<T, acc_t> arguments{.shape = part,
                                          .affinity = input<T>(dense_affinity) + first * weights,
                                          .value = input<T>(dense_value) + first * size,
                                          .out = result,
                                          .partial_out = partial.of(result, size)};
      const auto kernel = SIMD_CHOOSE(aggregate_forward<T>);
      run_passes<T>(part, false, [&](const Pass& pass, const Scratch<acc_t>& scratch, int64_t begin, int64_t end) {
        kernel(arguments, pass, scratch, begin, end);
      });
    });
  });
  return in_layout(std::move(out), shape.channels_last);
}

std::tuple<Tensor, Tensor> aggregate_backward(const Tensor& grad_out, const Tensor& affinity, const Tensor& value,
                                              int64_t needs) {
  constexpr const char* op = "criss_cross_aggregate_backward";
  const Shape shape = aggregate_shape(op, affinity, value);
  check_map(op, "grad_out", grad_out, value, shape.value_channels);
  const Tensor dense_grad = channels_last_map(grad_out), dense_affinity = channels_last_map(affinity),
               dense_value = channels_last_map(value);
  Tensor grad_affinity = allocate_gradient(needs & kNeedsAffinity, affinity, true),
         grad_value = allocate_gradient(needs & kNeedsAggregated, value, true);
  cpu::dispatch("criss_cross", value.scalar_type(), [&]<class T>(T) {
    using acc_t = Accumulator<T>;
    const int64_t size = shape.value_channels * shape.pixels(), weights = shape.affinity_channels() * shape.pixels();
    Partial<T> partial(shape, shape.value_channels, value);
    partial.for_each_part(shape, [&](int64_t first, const Shape& part) {
      T* to_value = offset(output<T>(grad_value), first * size);
      const AggregateBackward<T, acc_t> arguments{.shape = part,
                                                  .grad_out = input<T>(dense_grad) + first * size,
                                                  .affinity = input<T>(dense_affinity) + first * weights,
                                                  .value = input<T>(dense_value) + first * size,
                                                  .grad_affinity = offset(output<T>(grad_affinity), first * weights),
                                                  .grad_value = to_value,
                                                  .partial_grad_value = partial.of(to_value, size)};
      const auto kernel = SIMD_CHOOSE(aggregate_backward<T>);
      run_passes<T>(part, true, [&](const Pass& pass, const Scratch<acc_t>& scratch, int64_t begin, int64_t end) {
        kernel(arguments, pass, scratch, begin, end);
      });
    });
  });
  return {in_layout(std::move(grad_affinity), shape.channels_last),
          in_layout(std::move(grad_value), shape.channels_last)};
}

STABLE_TORCH_LIBRARY_IMPL(attnkernels, CPU, m) {
  m.impl("criss_cross_attention", TORCH_BOX(&attention));
  m.impl("criss_cross_attention_backward", TORCH_BOX(&attention_backward));
  m.impl("criss_cross_affinity", TORCH_BOX(&affinity));
  m.impl("criss_cross_affinity_backward", TORCH_BOX(&affinity_backward));
  m.impl("criss_cross_aggregate", TORCH_BOX(&aggregate));
  m.impl("criss_cross_aggregate_backward", TORCH_BOX(&aggregate_backward));
}

}  // namespace
}  // namespace attnkernels::criss_cross
