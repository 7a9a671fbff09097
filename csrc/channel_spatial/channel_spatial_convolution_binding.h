// What the torch bindings of the convolution share on every backend: the checks.
#pragma once
#include "channel_spatial/channel_spatial_convolution.h"
#include "common/gate_binding.h"

namespace attnkernels::channel_spatial {

struct CheckedConvolution : Convolution {
  CheckedConvolution(const char* op, const Tensor& given_statistics, const Tensor& given_weight, int64_t given_first)
      : op(op),
        statistics(attnkernels::contiguous(given_statistics)),
        weight(is_interleaved(given_weight) ? given_weight : attnkernels::contiguous(given_weight)),
        dtype(weight.scalar_type()),
        numbers_dtype(statistics.scalar_type()) {
    STD_TORCH_CHECK(numbers_dtype == ScalarType::Float || numbers_dtype == ScalarType::Double, op,
                    ": statistics: expected float32 or float64");
    STD_TORCH_CHECK(statistics.dim() == 4 && statistics.size(1) == 2, op,
                    ": statistics: expected a tensor [N, 2, H, W]");
    STD_TORCH_CHECK(weight.dim() == 4 && weight.size(0) == 1 && weight.size(1) == 2 &&
                        weight.size(2) == weight.size(3) && weight.size(2) % 2 == 1 && weight.size(2) <= kMostTaps &&
                        accumulation_dtype(dtype) == numbers_dtype && weight.device() == statistics.device(),
                    op, ": weight: expected a tensor [1, 2, k, k], k odd and at most ", kMostTaps,
                    ", of a dtype whose sums are held in that of statistics, on its device");
    check_binary(op, "mean_first", given_first);
    samples = statistics.size(0);
    height = statistics.size(2);
    width = statistics.size(3);
    taps = weight.size(2);
    mean_first = given_first;
    interleaved = is_interleaved(weight);
  }

  // As the weight of a channels_last module is, of which each call would have to make a copy.
  static bool is_interleaved(const Tensor& weight) {
    return weight.dim() == 4 && weight.size(1) == 2 && weight.stride(1) == 1 && weight.stride(3) == 2 &&
           weight.stride(2) == 2 * weight.size(3);
  }

  Tensor per_pixel(const char* name, const Tensor& given) const {
    STD_TORCH_CHECK(alike(given, statistics) && given.dim() == 3 && given.size(0) == samples &&
                        given.size(1) == height && given.size(2) == width,
                    op, ": ", name, ": expected [N, H, W], as statistics");
    return attnkernels::contiguous(given);
  }

  const char* op;
  Tensor statistics, weight;
  ScalarType dtype, numbers_dtype;  // of the weight, the bias and their gradients; of everything else
};

struct CheckedConvolutionForward : CheckedConvolution {
  CheckedConvolutionForward(const Tensor& statistics, const Tensor& weight, const Optional& given_bias,
                            int64_t mean_first, int64_t gate)
      : CheckedConvolution("channel_spatial_convolution", statistics, weight, mean_first),
        bias(attnkernels::contiguous(given_bias)) {
    check_vector(op, "bias", bias, 1, weight, "weight");
    check_binary(op, "gate", gate);
  }

  Optional bias;
};

struct CheckedConvolutionBackward : CheckedConvolution {
  CheckedConvolutionBackward(const Tensor& given_grad, const Tensor& statistics, const Tensor& weight,
                             const Optional& given_gate, int64_t mean_first, int64_t needs)
      : CheckedConvolution("channel_spatial_convolution_backward", statistics, weight, mean_first),
        grad(per_pixel("grad", given_grad)),
        gate(given_gate ? Optional(per_pixel("gate", *given_gate)) : std::nullopt) {
    STD_TORCH_CHECK(needs >= 0 && needs <= 3, op, ": needs: expected 0 to 3, got ", needs);
  }

  Tensor grad;
  Optional gate;  // what the forward gave, where `grad` is of the gate and not of its logits
};

}  // namespace attnkernels::channel_spatial
