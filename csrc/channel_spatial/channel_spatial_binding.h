// What the torch bindings of every backend of the channel_spatial operators share: the checks, and the arguments that
// have passed them. A map is only checked, the backend makes it dense; whatever else there is comes back contiguous.
#pragma once
#include <algorithm>
#include <initializer_list>
#include <string>

#include "channel_spatial/channel_spatial.h"
#include "common/gate_binding.h"

namespace attnkernels::channel_spatial {

// A call on x. `op` names the operator in messages.
struct Checked {
  Checked(const char* op, const Tensor& x)
      : op(op),
        x(x),
        dtype(x.scalar_type()),
        numbers_dtype(accumulation_dtype(dtype)),
        shape{check_x(op, x), x.size(2), x.size(3)},
        channels_last(shape.channels_last) {
    STD_TORCH_CHECK(shape.channels > 0 && shape.pixels > 0, op, ": x: expected at least one channel and one pixel");
  }

  void map(const char* name, const Tensor& given) const { check_map(op, name, given, x); }

  Tensor tensor(const char* name, const Tensor& given, ScalarType expected,
                std::initializer_list<int64_t> sizes) const {
    if (given.scalar_type() != expected || given.device() != x.device() || !std::ranges::equal(given.sizes(), sizes)) {
      std::string listed;
      for (int64_t size : sizes) listed += (listed.empty() ? "" : ", ") + std::to_string(size);
      STD_TORCH_CHECK(false, op, ": ", name, ": expected a tensor [", listed, "] of ",
                      expected == dtype ? "x's dtype" : "dtype float32", " on x's device");
    }
    return attnkernels::contiguous(given);
  }
  Optional tensor(const char* name, const Optional& given, ScalarType expected,
                  std::initializer_list<int64_t> sizes) const {
    return given ? Optional(tensor(name, *given, expected, sizes)) : std::nullopt;
  }

  // Numbers [N, C], [N, H, W] and [N, 2, H, W]; T is Tensor or Optional.
  template <class T>
  T per_channel(const char* name, const T& given) const {
    return tensor(name, given, numbers_dtype, {shape.samples, shape.channels});
  }
  template <class T>
  T per_pixel(const char* name, const T& given) const {
    return tensor(name, given, numbers_dtype, {shape.samples, shape.height, shape.width});
  }
  template <class T>
  T two_per_pixel(const char* name, const T& given) const {
    return tensor(name, given, numbers_dtype, {shape.samples, 2, shape.height, shape.width});
  }

  void places(const char* axis, int64_t count) const {
    STD_TORCH_CHECK(numbers_dtype == ScalarType::Double || count < kMostPlacesInFloat, op, ": x: expected fewer than ",
                    kMostPlacesInFloat, " ", axis, " where the first of equal maxima is looked for, got ", count);
  }

  Merge merge(int64_t given) const {
    STD_TORCH_CHECK(given >= 0 && given <= 2, op, ": merge: expected 0, 1 or 2, got ", given);
    return Merge(given);
  }

  void one_gate_at_least(const Optional& channel_gate, const Optional& spatial_gate) const {
    STD_TORCH_CHECK(channel_gate || spatial_gate, op, ": channel_gate: expected it or spatial_gate, got neither");
  }

  void needs(int64_t given) const {
    STD_TORCH_CHECK(given >= 0 && given <= 3, op, ": needs: expected 0 to 3, got ", given);
  }

  const char* op;
  const Tensor& x;
  ScalarType dtype, numbers_dtype;  // of the maps; of the numbers, which are accumulated
  Shape shape;
  bool channels_last;  // of the results
};

struct CheckedPool : Checked {
  CheckedPool(const Tensor& x, const Optional& given_weight, const Optional& given_bias, int64_t given_pools)
      : Checked("channel_spatial_pool", x),
        spatial_weight(tensor("spatial_weight", given_weight, dtype, {shape.channels})),
        spatial_bias(tensor("spatial_bias", given_bias, dtype, {1})),
        pools(Pools(given_pools)) {
    STD_TORCH_CHECK(given_pools >= 0 && given_pools <= 4, op, ": pools: expected 0 to 4, got ", given_pools);
    STD_TORCH_CHECK(spatial_weight || !spatial_bias, op,
                    ": spatial_bias: expected None, as there is no spatial_weight");
    if (pools == Pools::kMeansAndMaxima) places("pixels", shape.pixels);
  }

  bool maxima() const { return pools >= Pools::kMeansAndMaxima; }
  bool marked() const { return maxima() && pools != Pools::kMeansAndUnmarkedMaxima; }
  int64_t columns() const { return std::min(int64_t(pools), int64_t(2)); }  // K of pooled [N, K, C]

  Optional spatial_weight, spatial_bias;
  Pools pools;
};

struct CheckedStatistics : Checked {
  CheckedStatistics(const Tensor& x, const Optional& given_gate, int64_t given_ties)
      : Checked("channel_spatial_statistics", x),
        channel_gate(per_channel("channel_gate", given_gate)),
        ties(Ties(given_ties)) {
    STD_TORCH_CHECK(given_ties >= 0 && given_ties <= 2, op, ": ties: expected 0, 1 or 2, got ", given_ties);
    if (ties == Ties::kFirst) places("channels", shape.channels);
  }

  bool marked() const { return ties != Ties::kUnmarked; }

  Optional channel_gate;
  Ties ties;
};

struct CheckedScale : Checked {
  CheckedScale(const Tensor& x, const Optional& given_channel_gate, const Optional& given_spatial_gate,
               int64_t given_merge, int64_t skip)
      : Checked("channel_spatial_scale", x),
        channel_gate(per_channel("channel_gate", given_channel_gate)),
        spatial_gate(per_pixel("spatial_gate", given_spatial_gate)),
        merge(Checked::merge(given_merge)) {
    one_gate_at_least(channel_gate, spatial_gate);
    check_binary(op, "skip", skip);
    if (!channel_gate || !spatial_gate) merge = Merge::kProduct;
  }

  Optional channel_gate, spatial_gate;
  Merge merge;  // kProduct where there is one gate alone
};

struct CheckedGradGates : Checked {
  CheckedGradGates(const Tensor& grad_y, const Tensor& x, const Optional& given_channel_gate,
                   const Optional& given_spatial_gate, int64_t given_merge, int64_t given_needs)
      : Checked("channel_spatial_grad_gates", x),
        channel_gate(per_channel("channel_gate", given_channel_gate)),
        spatial_gate(per_pixel("spatial_gate", given_spatial_gate)),
        merge(Checked::merge(given_merge)) {
    map("grad_y", grad_y);
    one_gate_at_least(channel_gate, spatial_gate);
    needs(given_needs);
    STD_TORCH_CHECK(
        (channel_gate || !(given_needs & kNeedsChannel)) && (spatial_gate || !(given_needs & kNeedsSpatial)), op,
        ": needs: expected gates that there are, got ", given_needs);
    if (!channel_gate || !spatial_gate) merge = Merge::kProduct;
  }

  Optional channel_gate, spatial_gate;
  Merge merge;  // kProduct where there is one gate alone
};

struct CheckedGradChannelGate : Checked {
  CheckedGradChannelGate(const Tensor& grad_y, const Tensor& x, const Tensor& given_channel_gate,
                         const Tensor& given_spatial_gate, const Tensor& given_grad_statistics,
                         const Tensor& given_statistics, const Tensor& given_marks, int64_t share)
      : Checked("channel_spatial_grad_channel_gate", x),
        channel_gate(per_channel("channel_gate", given_channel_gate)),
        spatial_gate(per_pixel("spatial_gate", given_spatial_gate)),
        grad_statistics(two_per_pixel("grad_statistics", given_grad_statistics)),
        statistics(two_per_pixel("statistics", given_statistics)),
        marks(per_pixel("marks", given_marks)) {
    map("grad_y", grad_y);
    check_binary(op, "share", share);
  }

  Tensor channel_gate, spatial_gate, grad_statistics, statistics, marks;
};

struct CheckedGradX : Checked {
  CheckedGradX(const Tensor& grad_y, const Tensor& x, const Optional& given_channel_gate,
               const Optional& given_spatial_gate, const Optional& given_grad_statistics,
               const Optional& given_statistics, const Optional& given_marks, const Optional& given_grad_pooled,
               const Optional& given_pooled, const Optional& given_pool_marks, int64_t skip, int64_t share)
      : Checked("channel_spatial_grad_x", x),
        channel_gate(per_channel("channel_gate", given_channel_gate)),
        spatial_gate(per_pixel("spatial_gate", given_spatial_gate)),
        grad_statistics(two_per_pixel("grad_statistics", given_grad_statistics)),
        statistics(two_per_pixel("statistics", given_statistics)),
        marks(per_pixel("marks", given_marks)),
        columns(given_grad_pooled && given_grad_pooled->dim() == 3 && given_grad_pooled->size(1) == 2 ? 2 : 1),
        grad_pooled(of_pools("grad_pooled", given_grad_pooled)),
        pooled(of_pools("pooled", given_pooled)),
        pool_marks(per_channel("pool_marks", given_pool_marks)) {
    map("grad_y", grad_y);
    check_binary(op, "skip, share", skip, share);
    STD_TORCH_CHECK(!grad_statistics == !statistics && !grad_statistics == !marks, op,
                    ": grad_statistics: expected it, statistics and marks, or none of them");
    STD_TORCH_CHECK(!grad_pooled == !pooled, op, ": grad_pooled: expected it and pooled, or neither");
    STD_TORCH_CHECK(maxima() == pool_marks.has_value(), op, ": pool_marks: expected it with pooled [N, 2, C] alone");
  }

  // Whether the pools have maxima.
  bool maxima() const { return grad_pooled && columns == 2; }
  Optional of_pools(const char* name, const Optional& given) const {
    return tensor(name, given, numbers_dtype, {shape.samples, columns, shape.channels});
  }

  Optional channel_gate, spatial_gate, grad_statistics, statistics, marks;
  int64_t columns;  // K of grad_pooled and pooled [N, K, C]
  Optional grad_pooled, pooled, pool_marks;
};

struct CheckedGradConcurrent : Checked {
  CheckedGradConcurrent(const Tensor& grad_y, const Tensor& x, const Optional& given_channel_gate,
                        const Tensor& given_spatial_gate, const Optional& given_grad_means,
                        const Tensor& given_grad_gate, const Tensor& given_weight, int64_t given_merge,
                        int64_t given_needs)
      : Checked("channel_spatial_grad_concurrent", x),
        channel_gate(per_channel("channel_gate", given_channel_gate)),
        spatial_gate(per_pixel("spatial_gate", given_spatial_gate)),
        grad_means(per_channel("grad_means", given_grad_means)),
        grad_spatial_gate(per_pixel("grad_spatial_gate", given_grad_gate)),
        spatial_weight(tensor("spatial_weight", given_weight, dtype, {shape.channels})),
        merge(Checked::merge(given_merge)) {
    map("grad_y", grad_y);
    needs(given_needs);
    STD_TORCH_CHECK(merge != Merge::kProduct, op, ": merge: expected 1 or 2, got 0");
    if (!channel_gate) merge = Merge::kAdd;
  }

  Optional channel_gate;
  Tensor spatial_gate;
  Optional grad_means;
  Tensor grad_spatial_gate, spatial_weight;
  Merge merge;  // kAdd where there is one gate alone
};

}  // namespace attnkernels::channel_spatial
