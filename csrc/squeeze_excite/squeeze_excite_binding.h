// What the torch bindings of every backend of squeeze_excite share: the checks, and the arguments that have passed them.
#pragma once
#include "common/gate_binding.h"
#include "squeeze_excite/squeeze_excite.h"

namespace attnkernels::squeeze_excite {

// The contiguous parameters and the shape of a call that has passed the checks.
struct CheckedCall {
  CheckedCall(const Tensor& x, const Optional& reduce_weight, const Optional& reduce_bias, const Tensor& expand_weight,
              const Optional& expand_bias, int64_t activation, int64_t gate, int64_t output_activation)
      : shape{check_x("squeeze_excite", x)},
        channels_last(shape.channels_last),
        reduce_weight(attnkernels::contiguous(reduce_weight)),
        reduce_bias(attnkernels::contiguous(reduce_bias)),
        expand_weight(attnkernels::contiguous(expand_weight)),
        expand_bias(attnkernels::contiguous(expand_bias)) {
    check_binary("squeeze_excite", "activation, gate, output_activation", activation, gate, output_activation);
    const int64_t channels = shape.channels, hidden = reduce_weight ? reduce_weight->size(0) : 0;
    STD_TORCH_CHECK(reduce_weight || !reduce_bias, "squeeze_excite: reduce_bias: expected None without reduce_weight");
    const char* op = "squeeze_excite";
    if (reduce_weight) check_matrix(op, "reduce_weight", *reduce_weight, hidden, channels, x, "x");
    check_vector(op, "reduce_bias", reduce_bias, hidden, x, "x");
    check_matrix(op, "expand_weight", expand_weight, channels, reduce_weight ? hidden : channels, x, "x");
    check_vector(op, "expand_bias", expand_bias, channels, x, "x");
    shape.hidden = hidden;
    shape.activation = Activation(activation);
    shape.gate = Gate(gate);
    shape.output_activation = OutputActivation(output_activation);
    shape.constant_gates = reduce_weight && !hidden;
  }

  Shape shape;
  bool channels_last;  // of the results
  Optional reduce_weight, reduce_bias;
  Tensor expand_weight;
  Optional expand_bias;
};

}  // namespace attnkernels::squeeze_excite
