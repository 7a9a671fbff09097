// Torch binding of the CPU kernels of selective_kernel: checks, allocation, threads, choice of the instruction set.
#include <algorithm>
#include <tuple>
#include <vector>

#include "common/simd.h"
#include "selective_kernel/selective_kernel_binding.h"

namespace attnkernels::selective_kernel {

using simd::Accumulator;

// The arguments of the kernels.

template <class T>
struct Pool {
  Shape shape;
  Branches<const T> branches;
  T* pooled;  // [N, C]
};

template <class T>
struct Select {
  Shape shape;
  Branches<const T> branches;
  const Accumulator<T>* weights;  // [N, M, C]
  Rows<T> y;
  bool stream;
};

template <class T>
struct GradWeights {
  Shape shape;
  Branches<const T> branches;
  Rows<const T> grad_y;
  Accumulator<T>* grad_weights;  // [N, M, C]
};

template <class T>
struct GradBranches {
  Shape shape;
  Rows<const T> grad_y;
  const Accumulator<T>* weights;  // [N, M, C]
  const T* grad_pooled;           // [N, C] or null
  Branches<T> grad_branches;      // those that are not wanted are null
  bool stream;
};

}  // namespace attnkernels::selective_kernel

#define SIMD_FILE "selective_kernel/selective_kernel_simd.h"
#include "common/simd_foreach.h"

namespace attnkernels::selective_kernel {
namespace {

// Results of this many bytes and more are written past the caches: who reads them next finds them evicted anyway, and a
// line that is not fetched before it is overwritten saves a third of the traffic.
constexpr int64_t kStreamBytes = int64_t(1) << 20;

// The work that is worth a thread: about 10 us.
constexpr int64_t kBytesPerThread = int64_t(1) << 17;

// f(sample, first, last) for all `rows` of all samples, in parallel. The samples go backwards where `backwards` is set:
// a second pass over data larger than the cache finds what the first one read last.
template <class F>
void for_rows(const Shape& shape, int64_t rows, bool backwards, int64_t bytes_per_row, const F& f) {
  const int64_t grain = std::max<int64_t>(1, kBytesPerThread / std::max<int64_t>(1, bytes_per_row));
  torch::stable::parallel_for(0, shape.samples * rows, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t index = begin / rows, first = begin % rows, last = std::min(rows, first + end - begin);
      f(backwards ? shape.samples - 1 - index : index, first, last);
      begin += last - first;
    }
  });
}

// f(sample, first channel, last channel): planes one by one; channels_last in blocks as wide as the threads allow.
template <class F>
void for_channels(const Shape& shape, int64_t element_bytes, const F& f) {
  const int64_t bytes_per_channel = shape.pixels * shape.branches * element_bytes;
  if (!shape.channels_last) return for_rows(shape, shape.channels, false, bytes_per_channel, f);
  // Whole cache lines of channels; one block a sample where the samples alone keep the threads busy.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t wanted = shape.samples >= threads ? 1 : threads / std::max<int64_t>(1, shape.samples);
  const int64_t width = (shape.channels + 64 * wanted - 1) / (64 * wanted) * 64;
  const int64_t blocks = (shape.channels + width - 1) / width;
  for_rows(shape, blocks, false, bytes_per_channel * width, [&](int64_t sample, int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block)
      f(sample, block * width, std::min(shape.channels, (block + 1) * width));
  });
}

// Calls f with a value of the C++ type of a dtype.
template <class F>
void dispatch(const char* op, ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(Half{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    default:
      STD_TORCH_CHECK(false, op, ": expected float32, float64, float16 or bfloat16");
  }
}

template <class T>
const T* pointer(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}
template <class T>
T* mutable_pointer(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

int64_t bytes(const Shape& shape, int64_t element_bytes) {
  return shape.samples * shape.channels * shape.pixels * element_bytes;
}

Tensor pooled_sum(std::vector<Tensor> given) {
  const CheckedBranches checked = check_branches("pooled_sum", std::move(given));
  const Shape& shape = checked.shape;
  const Tensor& x = checked.branches[0];
  Tensor pooled = allocate({shape.samples, shape.channels}, x.scalar_type(), x);
  dispatch("pooled_sum", x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto planes = SIMD_CHOOSE(pool_planes<T>);
    const auto pixels = SIMD_CHOOSE(pool_pixels<T>);
    const Pool<T> args{shape, checked.rows<T>(), mutable_pointer<T>(pooled)};
    for_channels(shape, sizeof(T), [&](int64_t sample, int64_t first, int64_t last) {
      if (!shape.channels_last) return planes(args, sample, first, last);
      std::vector<Accumulator<T>> scratch(last - first);
      pixels(args, sample, first, last, scratch.data());
    });
  });
  return pooled;
}

std::tuple<Tensor, Tensor> select_branches(std::vector<Tensor> given, Tensor logits) {
  const char* op = "select_branches";
  const CheckedBranches checked = check_branches(op, std::move(given));
  const Shape& shape = checked.shape;
  const Tensor& x = checked.branches[0];
  logits = check_weights(op, logits, shape, x.scalar_type());
  Tensor y = allocate(x.sizes(), x.scalar_type(), x, shape.channels_last);
  Tensor weights = allocate({shape.samples, shape.branches, shape.channels}, accumulation_dtype(x.scalar_type()), x);
  dispatch(op, x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto softmax = SIMD_CHOOSE(softmax<T>);
    const auto select = SIMD_CHOOSE(select<T>);
    Accumulator<T>* a = mutable_pointer<Accumulator<T>>(weights);
    for (int64_t sample = 0; sample < shape.samples; ++sample) softmax(shape, pointer<T>(logits), a, sample);
    const Select<T> args{shape, checked.rows<T>(), a, rows_at<T>(y.mutable_data_ptr(), y, shape.channels_last),
                         bytes(shape, sizeof(T)) >= kStreamBytes};
    const int64_t bytes_per_row = shape.row_length() * (shape.branches + 1) * int64_t(sizeof(T));
    for_rows(shape, shape.rows(), true, bytes_per_row,
             [&](int64_t sample, int64_t first, int64_t last) { select(args, sample, first, last); });
  });
  return {y, weights};
}

Tensor select_branches_grad_logits(Tensor grad_y, std::vector<Tensor> given, Tensor weights) {
  const char* op = "select_branches_grad_logits";
  const CheckedBranches checked = check_branches(op, std::move(given));
  const Shape& shape = checked.shape;
  const Tensor& x = checked.branches[0];
  check_alike(op, grad_y, x);
  grad_y = with_rows(grad_y, shape.channels_last);
  weights = check_weights(op, weights, shape, accumulation_dtype(x.scalar_type()));
  Tensor grad_logits = allocate({shape.samples, shape.branches, shape.channels}, x.scalar_type(), x);
  dispatch(op, x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto planes = SIMD_CHOOSE(grad_weights_planes<T>);
    const auto pixels = SIMD_CHOOSE(grad_weights_pixels<T>);
    const auto softmax_backward = SIMD_CHOOSE(softmax_backward<T>);
    std::vector<Accumulator<T>> grad_weights(shape.samples * shape.branches * shape.channels);
    const GradWeights<T> args{shape, checked.rows<T>(),
                              rows_at<const T>(grad_y.const_data_ptr(), grad_y, shape.channels_last),
                              grad_weights.data()};
    for_channels(shape, sizeof(T), [&](int64_t sample, int64_t first, int64_t last) {
      (shape.channels_last ? pixels : planes)(args, sample, first, last);
    });
    for (int64_t sample = 0; sample < shape.samples; ++sample)
      softmax_backward(shape, pointer<Accumulator<T>>(weights), grad_weights.data(), mutable_pointer<T>(grad_logits),
                       sample);
  });
  return grad_logits;
}

std::vector<Tensor> select_branches_grad_branches(Tensor grad_y, Tensor weights, std::optional<Tensor> grad_pooled,
                                                  bool stacked, bool channels_last, int64_t needs) {
  const char* op = "select_branches_grad_branches";
  STD_TORCH_CHECK(grad_y.dim() == 4 && weights.dim() == 3 && weights.size(1) <= kMaxBranches, op,
                  ": expected grad_y [N, C, H, W] and weights [N, M, C]");
  const Shape shape = shape_of(grad_y, weights.size(1), channels_last);
  grad_y = with_rows(grad_y, channels_last);
  weights = check_weights(op, weights, shape, accumulation_dtype(grad_y.scalar_type()));
  if (grad_pooled) {
    STD_TORCH_CHECK(grad_pooled->dim() == 2 && grad_pooled->size(0) == shape.samples &&
                        grad_pooled->size(1) == shape.channels && grad_pooled->scalar_type() == grad_y.scalar_type(),
                    op, ": expected grad_pooled [N, C] in the dtype of grad_y");
    grad_pooled = attnkernels::contiguous(*grad_pooled);
  }
  std::vector<Tensor> grads = allocate_grad_branches(grad_y, shape, stacked, needs);
  dispatch(op, grad_y.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto grad_branches = SIMD_CHOOSE(grad_branches<T>);
    const GradBranches<T> args{shape,
                               rows_at<const T>(grad_y.const_data_ptr(), grad_y, channels_last),
                               pointer<Accumulator<T>>(weights),
                               grad_pooled ? pointer<T>(*grad_pooled) : nullptr,
                               rows_of_grad_branches<T>(grads, shape, stacked),
                               bytes(shape, sizeof(T)) >= kStreamBytes};
    const int64_t bytes_per_row = shape.row_length() * (shape.branches + 1) * int64_t(sizeof(T));
    for_rows(shape, shape.rows(), true, bytes_per_row, [&](int64_t sample, int64_t first, int64_t last) {
      std::vector<Accumulator<T>> scratch(shape.channels);
      grad_branches(args, sample, first, last, scratch.data());
    });
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
