"""efficient_channel_attention: x scaled by a gate computed from the means of neighbouring channels, in one call."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .schema import EFFICIENT_CHANNEL_ATTENTION


@EFFICIENT_CHANNEL_ATTENTION.public
def efficient_channel_attention(
    x: Tensor,
    weight: Tensor,
    *,
    circular: bool = False,
    gate: str | Callable[[Tensor], Tensor] = "sigmoid",
    residual: Tensor | None = None,
    output_activation: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """Efficient channel attention (Wang et al. 2020, arXiv:1910.03151): y = output_activation(x * g + residual).

    g = gate(weight * mean_hw(x)) per sample, a convolution over the channels: each gate depends on the means of its own
    channel and of those beside it.

    Args:
        x: [N, C, H, W], float32, float64, float16 or bfloat16, any strides; contiguous and channels_last run natively.
        weight: [k] or [1, 1, k], k odd and at most 255.
        circular: whether the channels beyond the first and the last are those from the other end (timm's
            `CecaModule`), instead of zeros.
        gate: "sigmoid", "hard_sigmoid", or any callable on tensors; with a callable the whole op is plain PyTorch.
        residual: [N, C, H, W] added after the gate, or None.
        output_activation: "relu" or None, applied last.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        [N, C, H, W] in x's dtype and memory format.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or its dtype is not x's (under autocast the weight is
            cast to x's dtype instead).
        ValueError: ranks, shapes or devices do not match; an even k, or one that reaches around all channels; an
            unknown name; a backend that cannot run here.
    """
    return EFFICIENT_CHANNEL_ATTENTION(backend, (x, weight, residual), (circular, gate, output_activation))
