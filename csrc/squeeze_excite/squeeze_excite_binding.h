// What the torch bindings of every backend of squeeze_excite share: the checks, and the arguments that have passed them.
#pragma once
#include "common/gate_binding.h"
#include "squeeze_excite/squeeze_excite.h"

namespace attnkernels::squeeze_excite {

inline void check_matrix(const char* name, const Tensor& weight, const Tensor& x, int64_t rows, int64_t columns) {
  const bool of_convolution = weight.dim() == 4 && weight.size(2) == 1 && weight.size(3) == 1;
  STD_TORCH_CHECK(
      alike(weight, x) && (weight.dim() == 2 || of_convolution) && weight.size(0) == rows && weight.size(1) == columns,
      "squeeze_excite: ", name, ": expected ", rows, " x ", columns, " numbers of x's dtype on x's device");
}
inline void check_vector(const char* name, const Optional& bias, const Tensor& x, int64_t length) {
  STD_TORCH_CHECK(!bias || (alike(*bias, x) && bias->dim() == 1 && bias->size(0) == length), "squeeze_excite: ", name,
                  ": expected ", length, " numbers of x's dtype on x's device");
}

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
    if (reduce_weight) check_matrix("reduce_weight", *reduce_weight, x, hidden, channels);
    check_vector("reduce_bias", reduce_bias, x, hidden);
    check_matrix("expand_weight", expand_weight, x, channels, reduce_weight ? hidden : channels);
    check_vector("expand_bias", expand_bias, x, channels);
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
