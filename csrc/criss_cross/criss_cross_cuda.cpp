// The CUDA backend of criss_cross in torch: checks, layouts, allocation, stream. Built with ATTNKERNELS_EMULATED it takes
// CPU tensors and runs the same kernels on the host.
#include <array>
#include <tuple>
#include <utility>

#include "common/cuda_binding.h"
#include "criss_cross/criss_cross_binding.h"
#include "criss_cross/criss_cross_launch.h"

namespace attnkernels::criss_cross {
namespace {

// The kernels read and write channels_last maps: those of a call that are not, in one launch of copies.
template <class... Maps>
std::array<Tensor, sizeof...(Maps)> dense_maps(const char* op, const Maps&... maps) {
  LayoutCopies copies;
  const std::array<Tensor, sizeof...(Maps)> dense{(is_dense(maps, true) ? maps : copies.copy(maps, true))...};
  copies.run(op, dense[0]);
  return dense;
}

// Maps whose memory starts at a multiple of 16 bytes, as whole lines need it: a result's bits must not depend on it.
template <size_t kCount>
std::array<Tensor, kCount> aligned(std::array<Tensor, kCount> maps) {
  for (Tensor& map : maps)
    if (reinterpret_cast<uintptr_t>(map.const_data_ptr()) % 16) map = torch::stable::clone(map);
  return maps;
}

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// Whether a result is summed over the passes, or each pass writes elements of its own.
enum class Sums { kPartial, kNone };

// A result of a call: computed channels_last, and copied in the end where the call's maps are contiguous.
class Map {
 public:
  Map(Sizes sizes, const Tensor& like, const Shape& shape, Sums sums, bool wanted = true)
      : wanted_(wanted),
        copied_(wanted && !shape.channels_last && sizes[1] > 1 && shape.samples && shape.pixels() > 1),
        map_(wanted ? allocate_map(sizes, like, shape.channels_last || copied_)
                    : allocate({0}, like.scalar_type(), like)) {
    if (wanted && sums == Sums::kPartial && needs_partial(data_type("criss_cross", like), shape))
      partial_ = allocate({map_.numel()}, ScalarType::Float, like);
  }

  void* data() const { return wanted_ ? map_.mutable_data_ptr() : nullptr; }
  void* partial() const { return partial_ ? partial_->mutable_data_ptr() : nullptr; }

  // The results of a call in its layout.
  template <class... Maps>
  static auto results(const char* op, const Maps&... maps) {
    LayoutCopies copies;
    const std::tuple found{(maps.copied_ ? copies.copy(maps.map_, false) : Tensor(maps.map_))...};
    copies.run(op, std::get<0>(found));
    return found;
  }

 private:
  bool wanted_, copied_;
  Tensor map_;
  std::optional<Tensor> partial_;
};

std::tuple<Tensor, Tensor> attention(const Tensor& query, const Tensor& key, const Tensor& value) {
  constexpr const char* op = "criss_cross_attention";
  const Shape shape = attention_shape(op, query, key, value);
  check_device(op, value);
  const DeviceGuard guard(value.get_device_index());
  const auto [dense_query, dense_key, dense_value] = aligned(dense_maps(op, query, key, value));
  const ScalarType sum = accumulation_dtype(value.scalar_type());
  const Map out(value.sizes(), value, shape, Sums::kPartial);
  const Tensor log_sum_exp = allocate(pixel_sizes(value), sum, value);
  const Tensor statistics = allocate({forward_statistics(shape)}, sum, value);
  check_launch(op, criss_cross::attention(data_type(op, value),
                                          {.shape = shape,
                                           .query = dense_query.const_data_ptr(),
                                           .key = dense_key.const_data_ptr(),
                                           .value = dense_value.const_data_ptr(),
                                           .out = out.data(),
                                           .partial_out = out.partial(),
                                           .log_sum_exp = log_sum_exp.mutable_data_ptr(),
                                           .sum = statistics.mutable_data_ptr()},
                                          current_stream(value)));
  return {std::get<0>(Map::results(op, out)), log_sum_exp};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad_out, const Tensor& query, const Tensor& key,
                                                      const Tensor& value, const Tensor& out, const Tensor& log_sum_exp,
                                                      int64_t needs) {
  constexpr const char* op = "criss_cross_attention_backward";
  const Shape shape = attention_shape(op, query, key, value);
  check_device(op, value);
  check_map(op, "grad_out", grad_out, value, shape.value_channels);
  check_map(op, "out", out, value, shape.value_channels);
  STD_TORCH_CHECK(log_sum_exp.numel() == shape.samples * shape.pixels() && log_sum_exp.device() == value.device() &&
                      log_sum_exp.scalar_type() == accumulation_dtype(value.scalar_type()),
                  op, ": log_sum_exp: expected one number per pixel in the accumulation dtype");
  const DeviceGuard guard(value.get_device_index());
  const auto [dense_query, dense_key, dense_value, dense_out, dense_grad] =
      aligned(dense_maps(op, query, key, value, out, grad_out));
  const Tensor statistics = attnkernels::contiguous(log_sum_exp),
               delta = allocate(statistics.sizes(), statistics.scalar_type(), value);
  const Map grad_query(query.sizes(), query, shape, Sums::kPartial, needs & kNeedsQuery),
      grad_key(key.sizes(), key, shape, Sums::kPartial, needs & kNeedsKey),
      grad_value(value.sizes(), value, shape, Sums::kPartial, needs & kNeedsValue);
  check_launch(op, criss_cross::attention_backward(data_type(op, value),
                                                   {.shape = shape,
                                                    .grad_out = dense_grad.const_data_ptr(),
                                                    .query = dense_query.const_data_ptr(),
                                                    .key = dense_key.const_data_ptr(),
                                                    .value = dense_value.const_data_ptr(),
                                                    .out = dense_out.const_data_ptr(),
                                                    .log_sum_exp = statistics.const_data_ptr(),
                                                    .delta = delta.mutable_data_ptr(),
                                                    .grad_query = grad_query.data(),
                                                    .grad_key = grad_key.data(),
                                                    .grad_value = grad_value.data(),
                                                    .partial_grad_query = grad_query.partial(),
                                                    .partial_grad_key = grad_key.partial(),
                                                    .partial_grad_value = grad_value.partial()},
                                                   current_stream(value)));
  return Map::results(op, grad_query, grad_key, grad_value);
}

Tensor affinity(const Tensor& query, const Tensor& key) {
  constexpr const char* op = "criss_cross_affinity";
  const Shape shape = affinity_shape(op, query, key);
  check_device(op, query);
  const DeviceGuard guard(query.get_device_index());
  const auto [dense_query, dense_key] = dense_maps(op, query, key);
  const int64_t sizes[] = {shape.samples, shape.affinity_channels(), shape.height, shape.width};
  const Map result(sizes, query, shape, Sums::kNone);
  check_launch(op, criss_cross::affinity(data_type(op, query),
                                         {.shape = shape,
                                          .query = dense_query.const_data_ptr(),
                                          .key = dense_key.const_data_ptr(),
                                          .affinity = result.data()},
                                         current_stream(query)));
  return std::get<0>(Map::results(op, result));
}

std::tuple<Tensor, Tensor> affinity_backward(const Tensor& grad_affinity, const Tensor& query, const Tensor& key,
                                             int64_t needs) {
  constexpr const char* op = "criss_cross_affinity_backward";
  const Shape shape = affinity_shape(op, query, key);
  check_device(op, query);
  check_map(op, "grad_affinity", grad_affinity, query, shape.affinity_channels());
  const DeviceGuard guard(query.get_device_index());
  const auto [dense_grad, dense_query, dense_key] = dense_maps(op, grad_affinity, query, key);
  const Map grad_query(query.sizes(), query, shape, Sums::kPartial, needs & kNeedsQuery),
      grad_key(key.sizes(), key, shape, Sums::kPartial, needs & kNeedsKey);
  check_launch(op, criss_cross::affinity_backward(data_type(op, query),
                                                  {.shape = shape,
                                                   .grad_affinity = dense_grad.const_data_ptr(),
                                                   .query = dense_query.const_data_ptr(),
                                                   .key = dense_key.const_data_ptr(),
                                                   .grad_query = grad_query.data(),
                                                   .grad_key = grad_key.data(),
                                                   .partial_grad_query = grad_query.partial(),
                                                   .partial_grad_key = grad_key.partial()},
                                                  current_stream(query)));
  return Map::results(op, grad_query, grad_key);
}

Tensor aggregate(const Tensor& affinity, const Tensor& value) {
  constexpr const char* op = "criss_cross_aggregate";
  const Shape shape = aggregate_shape(op, affinity, value);
  check_device(op, value);
  const DeviceGuard guard(value.get_device_index());
  const auto [last_affinity, dense_value] = dense_maps(op, affinity, value);
  const Map out(value.sizes(), value, shape, Sums::kPartial);
  check_launch(op, criss_cross::aggregate(data_type(op, value),
                                          {.shape = shape,
                                           .affinity = last_affinity.const_data_ptr(),
                                           .value = dense_value.const_data_ptr(),
                                           .out = out.data(),
                                           .partial_out = out.partial()},
                                          current_stream(value)));
  return std::get<0>(Map::results(op, out));
}

std::tuple<Tensor, Tensor> aggregate_backward(const Tensor& grad_out, const Tensor& affinity, const Tensor& value,
                                              int64_t needs) {
  constexpr const char* op = "criss_cross_aggregate_backward";
  const Shape shape = aggregate_shape(op, affinity, value);
  check_device(op, value);
  check_map(op, "grad_out", grad_out, value, shape.value_channels);
  const DeviceGuard guard(value.get_device_index());
  const auto [dense_grad, last_affinity, dense_value] = dense_maps(op, grad_out, affinity, value);
  const Map grad_affinity(affinity.sizes(), affinity, shape, Sums::kNone, needs & kNeedsAffinity),
      grad_value(value.sizes(), value, shape, Sums::kPartial, needs & kNeedsAggregated);
  check_launch(op, criss_cross::aggregate_backward(data_type(op, value),
                                                   {.shape = shape,
                                                    .grad_out = dense_grad.const_data_ptr(),
                                                    .affinity = last_affinity.const_data_ptr(),
                                                    .value = dense_value.const_data_ptr(),
                                                    .grad_affinity = grad_affinity.data(),
                                                    .grad_value = grad_value.data(),
                                                    .partial_grad_value = grad_value.partial()},
                                                   current_stream(value)));
  return Map::results(op, grad_affinity, grad_value);
}

ATTNKERNELS_CUDA_LIBRARY_IMPL(m) {
  m.impl("criss_cross_attention", TORCH_BOX(&attention));
  m.impl("criss_cross_attention_backward", TORCH_BOX(&attention_backward));
  m.impl("criss_cross_affinity", TORCH_BOX(&affinity));
  m.impl("criss_cross_affinity_backward", TORCH_BOX(&affinity_backward));
  m.impl("criss_cross_aggregate", TORCH_BOX(&aggregate));
  m.impl("criss_cross_aggregate_backward", TORCH_BOX(&aggregate_backward));
}

}  // namespace
}  // namespace attnkernels::criss_cross
