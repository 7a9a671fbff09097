// What the torch bindings of the criss_cross backends share: layouts of 4-D and 5-D maps, checks, allocation.
#pragma once
#include <vector>

#include "common/binding.h"
#include "criss_cross/criss_cross.h"

namespace attnkernels::criss_cross {

using torch::headeronly::MemoryFormat;

// Whether a map is dense in the order N, (D,) H, W, C and not also contiguous: the layout of everything in the call.
inline bool has_channels_last(const Tensor& x) {
  if (x.is_contiguous()) return false;
  const auto size = x.sizes(), stride = x.strides();
  int64_t expected = 1;
  const auto dense = [&](int64_t axis) {
    const bool fits = size[axis] == 1 || stride[axis] == expected;
    expected *= size[axis];
    return fits;
  };
  bool fits = dense(1);
  for (int64_t axis = x.dim() - 1; fits && axis > 1; --axis) fits = dense(axis);
  return fits && dense(0);
}

inline MemoryFormat memory_format(int64_t rank, bool channels_last) {
  if (!channels_last) return MemoryFormat::Contiguous;
  return rank == 5 ? MemoryFormat::ChannelsLast3d : MemoryFormat::ChannelsLast;
}

// Whether x is dense in the wanted layout. A map of one channel or one pixel is dense in both.
inline bool is_dense(const Tensor& x, bool channels_last) {
  const bool one = x.size(1) == 1 || x.numel() == x.size(0) * x.size(1);
  return x.is_contiguous() ? !channels_last || one : channels_last && has_channels_last(x);
}

// x itself where it is dense in the wanted layout, a copy otherwise.
inline Tensor dense_map(const Tensor& x, bool channels_last) {
  if (is_dense(x, channels_last)) return x;
  return torch::stable::contiguous(x, memory_format(x.dim(), channels_last));
}

inline Tensor allocate_map(torch::headeronly::IntHeaderOnlyArrayRef shape, const Tensor& like, bool channels_last) {
  return torch::stable::empty(shape, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              memory_format(shape.size(), channels_last));
}

// A gradient, or the empty tensor that stands for one that is not wanted.
inline Tensor allocate_gradient(bool wanted, const Tensor& like, bool channels_last) {
  return wanted ? allocate_map(like.sizes(), like, channels_last) : allocate({0}, like.scalar_type(), like);
}

template <class T>
const T* input(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}
// Null for a gradient that is not wanted. An empty map is never read or written.
template <class T>
T* output(const Tensor& x) {
  return x.dim() > 1 ? static_cast<T*>(x.mutable_data_ptr()) : nullptr;
}

// ---- what is safe to compute: Python has checked it with better messages

inline void check_map(const char* op, const char* name, const Tensor& x, const Tensor& like, int64_t channels) {
  bool same = x.dim() == like.dim() && x.scalar_type() == like.scalar_type() && x.device() == like.device();
  for (int64_t axis = 0; same && axis < like.dim(); ++axis)
    same = x.size(axis) == (axis == 1 ? channels : like.size(axis));
  STD_TORCH_CHECK(same, op, ": ", name, ": expected ", channels,
                  " channels, and otherwise the dtype, device and shape of the first map");
}

// The shape of a call on maps like `map`, whose layout it takes.
inline Shape shape_of(const char* op, const Tensor& map, int64_t query_channels, int64_t value_channels, bool volumes) {
  STD_TORCH_CHECK(map.dim() == 4 || (volumes && map.dim() == 5), op, ": expected a map [N, C, H, W]",
                  volumes ? " or [N, C, D, H, W]" : "", ", got ", map.dim(), " dimensions");
  const int64_t rank = map.dim();
  Shape shape{.samples = map.size(0),
              .query_channels = query_channels,
              .value_channels = value_channels,
              .depth = rank == 5 ? map.size(2) : 1,
              .height = map.size(rank - 2),
              .width = map.size(rank - 1),
              .channels_last = has_channels_last(map)};
  STD_TORCH_CHECK(volumes || shape.pixels() > 0, op, ": expected a map with H and W of at least 1");
  return shape;
}

inline Shape attention_shape(const char* op, const Tensor& query, const Tensor& key, const Tensor& value) {
  STD_TORCH_CHECK(query.dim() >= 4, op, ": query: expected a map [N, C, H, W] or [N, C, D, H, W]");
  const Shape shape = shape_of(op, value, query.size(1), value.size(1), true);
  check_map(op, "query", query, value, shape.query_channels);
  check_map(op, "key", key, value, shape.query_channels);
  return shape;
}

inline Shape affinity_shape(const char* op, const Tensor& query, const Tensor& key) {
  const Shape shape = shape_of(op, query, query.dim() > 1 ? query.size(1) : 0, 0, false);
  check_map(op, "key", key, query, shape.query_channels);
  return shape;
}

inline Shape aggregate_shape(const char* op, const Tensor& affinity, const Tensor& value) {
  const Shape shape = shape_of(op, value, 0, value.dim() > 1 ? value.size(1) : 0, false);
  check_map(op, "affinity", affinity, value, shape.affinity_channels());
  return shape;
}

// One number per pixel: [N, H, W] or [N, D, H, W].
inline std::vector<int64_t> pixel_sizes(const Tensor& map) {
  std::vector<int64_t> sizes{map.size(0)};
  for (int64_t axis = 2; axis < map.dim(); ++axis) sizes.push_back(map.size(axis));
  return sizes;
}

}  // namespace attnkernels::criss_cross
