// What the torch bindings of the channel gate's layers share on every backend: the checks, and the contiguous arguments
// that have passed them.
#pragma once
#include "channel_spatial/channel_spatial_layers.h"
#include "common/gate_binding.h"

namespace attnkernels::channel_spatial {

struct CheckedLayers : Layers {
  CheckedLayers(const char* op, const Tensor& given_pooled, const Optional& given_reduce_weight,
                const Tensor& given_expand_weight)
      : op(op),
        pooled(attnkernels::contiguous(given_pooled)),
        reduce_weight(attnkernels::contiguous(given_reduce_weight)),
        expand_weight(attnkernels::contiguous(given_expand_weight)),
        dtype(given_expand_weight.scalar_type()),
        numbers_dtype(accumulation_dtype(dtype)) {
    STD_TORCH_CHECK(pooled.dim() == 3 && pooled.size(1) > 0 && pooled.size(2) > 0 &&
                        pooled.scalar_type() == numbers_dtype && pooled.device() == expand_weight.device(),
                    op, ": pooled: expected a tensor [N, K, C] on expand_weight's device, of the dtype in which sums ",
                    "of its dtype are held");
    samples = pooled.size(0);
    pools = pooled.size(1);
    channels = pooled.size(2);
    hidden = reduce_weight && reduce_weight->dim() ? reduce_weight->size(0) : 0;
    if (reduce_weight) {
      STD_TORCH_CHECK(hidden > 0, op, ": reduce_weight: expected at least one row");
      check_matrix(op, "reduce_weight", *reduce_weight, hidden, channels, expand_weight, "expand_weight");
    }
    check_matrix(op, "expand_weight", expand_weight, channels, gate_inputs(), expand_weight, "expand_weight");
  }

  // Of the operator's arguments of the accumulation type, which are contiguous then.
  Tensor numbers(const char* name, const Tensor& given, std::initializer_list<int64_t> sizes) const {
    STD_TORCH_CHECK(alike(given, pooled) && std::ranges::equal(given.sizes(), sizes), op, ": ", name,
                    ": expected the shape that belongs to pooled's, and its dtype and device");
    return attnkernels::contiguous(given);
  }

  const char* op;
  Tensor pooled;
  Optional reduce_weight;
  Tensor expand_weight;
  ScalarType dtype, numbers_dtype;  // of the weights, the biases and their gradients; of everything else
};

struct CheckedLayersForward : CheckedLayers {
  CheckedLayersForward(const Tensor& pooled, const Optional& reduce_weight, const Optional& given_reduce_bias,
                       const Tensor& expand_weight, const Optional& given_expand_bias)
      : CheckedLayers("channel_spatial_layers", pooled, reduce_weight, expand_weight),
        reduce_bias(attnkernels::contiguous(given_reduce_bias)),
        expand_bias(attnkernels::contiguous(given_expand_bias)) {
    STD_TORCH_CHECK(reduce_weight || !reduce_bias, op, ": reduce_bias: expected None without reduce_weight");
    check_vector(op, "reduce_bias", reduce_bias, hidden, expand_weight, "expand_weight");
    check_vector(op, "expand_bias", expand_bias, channels, expand_weight, "expand_weight");
  }

  Optional reduce_bias, expand_bias;
};

struct CheckedLayersBackward : CheckedLayers {
  CheckedLayersBackward(const Tensor& given_grad_gate, const Tensor& pooled, const Tensor& given_gate,
                        const Tensor& given_hidden, const Optional& reduce_weight, const Tensor& expand_weight,
                        int64_t needs)
      : CheckedLayers("channel_spatial_layers_backward", pooled, reduce_weight, expand_weight),
        grad_gate(numbers("grad_gate", given_grad_gate, {samples, channels})),
        gate(numbers("gate", given_gate, {samples, channels})),
        hidden_values(reduce_weight ? numbers("hidden", given_hidden, {samples, pools, hidden}) : given_hidden) {
    STD_TORCH_CHECK(needs >= 0 && needs < 32, op, ": needs: expected 0 to 31, got ", needs);
  }

  Tensor grad_gate, gate;
  Tensor hidden_values;  // [N, K, rd]; nothing of a single layer
};

}  // namespace attnkernels::channel_spatial
