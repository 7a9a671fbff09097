// What the torch bindings of every backend of squeeze_excite share: the checks, and the arguments that have passed them.
#pragma once
#include <optional>

#include "common/binding.h"
#include "squeeze_excite/squeeze_excite.h"

namespace attnkernels::squeeze_excite {

using Optional = std::optional<Tensor>;

// The public function calls the operator before it checks anything itself, and explains a refusal afterwards: what is
// accepted here is what it accepts.
inline bool alike(const Tensor& tensor, const Tensor& x) {
  return tensor.scalar_type() == x.scalar_type() && tensor.device() == x.device();
}
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
inline void check_map(const char* name, const Tensor& map, const Tensor& x) {
  STD_TORCH_CHECK(alike(map, x) && same_shape(map, x), "squeeze_excite: ", name,
                  ": expected shape, dtype and device of x");
}
inline void check_saved(const Tensor& saved, const Tensor& x, const Shape& shape) {
  STD_TORCH_CHECK(saved.scalar_type() == accumulation_dtype(x.scalar_type()) && saved.device() == x.device() &&
                      saved.numel() == shape.samples * shape.saved_columns(),
                  "squeeze_excite: saved: expected what the forward gave, ", shape.samples, " x ",
                  shape.saved_columns(), " numbers");
}

// The contiguous parameters and the shape of a call that has passed the checks.
struct CheckedCall {
  CheckedCall(const Tensor& x, const Optional& reduce_weight, const Optional& reduce_bias, const Tensor& expand_weight,
              const Optional& expand_bias, int64_t activation, int64_t gate, int64_t output_activation)
      : channels_last(is_channels_last(x)),
        reduce_weight(attnkernels::contiguous(reduce_weight)),
        reduce_bias(attnkernels::contiguous(reduce_bias)),
        expand_weight(attnkernels::contiguous(expand_weight)),
        expand_bias(attnkernels::contiguous(expand_bias)) {
    STD_TORCH_CHECK(x.dim() == 4, "squeeze_excite: x: expected a tensor [N, C, H, W], got ", x.dim(), " dimensions");
    const auto is_0_or_1 = [](int64_t value) { return value == 0 || value == 1; };
    STD_TORCH_CHECK(is_0_or_1(activation) && is_0_or_1(gate) && is_0_or_1(output_activation),
                    "squeeze_excite: activation, gate, output_activation: expected 0 or 1");
    const int64_t channels = x.size(1), hidden = reduce_weight ? reduce_weight->size(0) : 0;
    STD_TORCH_CHECK(reduce_weight || !reduce_bias, "squeeze_excite: reduce_bias: expected None without reduce_weight");
    if (reduce_weight) check_matrix("reduce_weight", *reduce_weight, x, hidden, channels);
    check_vector("reduce_bias", reduce_bias, x, hidden);
    check_matrix("expand_weight", expand_weight, x, channels, reduce_weight ? hidden : channels);
    check_vector("expand_bias", expand_bias, x, channels);
    shape = {.samples = x.size(0),
             .channels = channels,
             .hidden = hidden,
             .pixels = x.size(2) * x.size(3),
             .channels_last = channels_last,
             .activation = Activation(activation),
             .gate = Gate(gate),
             .output_activation = OutputActivation(output_activation),
             .constant_gates = reduce_weight && !hidden};
  }

  bool channels_last;  // of the results
  Optional reduce_weight, reduce_bias;
  Tensor expand_weight;
  Optional expand_bias;
  Shape shape;
};

}  // namespace attnkernels::squeeze_excite
