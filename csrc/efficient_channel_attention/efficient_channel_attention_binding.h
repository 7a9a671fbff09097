// What the torch bindings of every backend of efficient_channel_attention share: the checks, and the arguments that have
// passed them.
#pragma once
#include "common/gate_binding.h"
#include "efficient_channel_attention/efficient_channel_attention.h"

namespace attnkernels::efficient_channel_attention {

inline constexpr const char* kOp = "efficient_channel_attention";

// The contiguous weight and the shape of a call that has passed the checks.
struct CheckedCall {
  CheckedCall(const Tensor& x, const Tensor& given_weight, int64_t circular, int64_t gate, int64_t output_activation)
      : shape{check_x(kOp, x)}, channels_last(shape.channels_last), weight(attnkernels::contiguous(given_weight)) {
    check_binary(kOp, "circular, gate, output_activation", circular, gate, output_activation);
    const bool of_convolution = weight.dim() == 3 && weight.size(0) == 1 && weight.size(1) == 1;
    STD_TORCH_CHECK(alike(weight, x) && (weight.dim() == 1 || of_convolution) && weight.numel() % 2 == 1 &&
                        weight.numel() <= kMostTaps,
                    kOp, ": weight: expected an odd number of taps [k] or [1, 1, k] of x's dtype on x's device");
    shape.taps = weight.numel();
    shape.circular = circular;
    shape.gate = Gate(gate);
    shape.output_activation = OutputActivation(output_activation);
    STD_TORCH_CHECK(!circular || shape.taps / 2 <= shape.channels, kOp, ": weight: expected at most ",
                    2 * shape.channels + 1, " taps around ", shape.channels, " channels, got ", shape.taps);
  }

  Shape shape;
  bool channels_last;  // of the results
  Tensor weight;
};

inline void check_backward(const Shape& shape, const Tensor& grad_y, const Tensor& x, const Optional& y,
                           const Tensor& saved, int64_t needs) {
  check_map(kOp, "grad_y", grad_y, x);
  check_kept(kOp, saved, shape.saved_columns(), y, shape.output_activation, x);
  STD_TORCH_CHECK(!(needs & kNeedsResidual) || shape.output_activation == OutputActivation::kRelu, kOp,
                  ": needs: grad_residual is grad_y without a ReLU");
}

}  // namespace attnkernels::efficient_channel_attention
