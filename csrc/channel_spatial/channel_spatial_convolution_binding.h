// What the torch bindings of the convolution share on every backend: the checks.
#pragma once
#include "channel_spatial/channel_spatial_convolution.h"
#include "common/gate_binding.h"

namespace attnkernels::channel_spatial {

struct CheckedConvolution : Convolution {
  CheckedConvolution(const char* op, const Tensor& given_statistics, const Tensor& given_weight)
      : statistics(attnkernels::contiguous(given_statistics)), weight(attnkernels::contiguous(given_weight)) {
    const ScalarType dtype = given_statistics.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op,
                    ": statistics: expected float32 or float64");
    STD_TORCH_CHECK(given_statistics.dim() == 4 && given_statistics.size(1) == 2, op,
                    ": statistics: expected a tensor [N, 2, H, W]");
    STD_TORCH_CHECK(given_weight.dim() == 3 && given_weight.size(0) == 2 &&
                        given_weight.size(1) == given_weight.size(2) && given_weight.size(1) % 2 == 1 &&
                        given_weight.size(1) <= kMostTaps && alike(given_weight, given_statistics),
                    op, ": weight: expected a tensor [2, k, k], k odd and at most ", kMostTaps, ", as statistics");
    samples = given_statistics.size(0);
    height = given_statistics.size(2);
    width = given_statistics.size(3);
    taps = given_weight.size(1);
  }

  Tensor statistics, weight;
};

struct CheckedConvolutionForward : CheckedConvolution {
  CheckedConvolutionForward(const Tensor& statistics, const Tensor& weight, const Optional& given_bias)
      : CheckedConvolution("channel_spatial_convolution", statistics, weight),
        bias(attnkernels::contiguous(given_bias)) {
    STD_TORCH_CHECK(!bias || (bias->numel() == 1 && alike(*bias, statistics)),
                    "channel_spatial_convolution: bias: expected one number, as statistics");
  }
  Optional bias;
};

struct CheckedConvolutionBackward : CheckedConvolution {
  CheckedConvolutionBackward(const Tensor& given_grad, const Tensor& statistics, const Tensor& weight, int64_t needs)
      : CheckedConvolution("channel_spatial_convolution_backward", statistics, weight),
        grad(attnkernels::contiguous(given_grad)) {
    STD_TORCH_CHECK(alike(grad, statistics) && grad.dim() == 3 && grad.size(0) == samples && grad.size(1) == height &&
                        grad.size(2) == width,
                    "channel_spatial_convolution_backward: grad_logits: expected [N, H, W], as statistics");
    STD_TORCH_CHECK(needs >= 0 && needs <= 3, "channel_spatial_convolution_backward: needs: expected 0 to 3");
  }
  Tensor grad;
};

}  // namespace attnkernels::channel_spatial
