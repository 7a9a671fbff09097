"""squeeze_excite: x scaled by a gate computed from its own channel means, in one call."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .schema import SQUEEZE_EXCITE


@SQUEEZE_EXCITE.public
def squeeze_excite(
    x: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    *,
    activation: str | Callable[[Tensor], Tensor] = "relu",
    gate: str | Callable[[Tensor], Tensor] = "sigmoid",
    residual: Tensor | None = None,
    output_activation: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """Squeeze-and-excitation (Hu et al. 2018, arXiv:1709.01507): y = output_activation(x * g + residual).

    g = gate(expand_weight @ activation(reduce_weight @ mean_hw(x) + reduce_bias) + expand_bias), per sample.

    Args:
        x: [N, C, H, W], float32, float64, float16 or bfloat16, any strides; contiguous and channels_last run natively.
        reduce_weight: [rd, C] or [rd, C, 1, 1]; None for a single-layer excitation (effective SE), where rd = C.
        reduce_bias: [rd] or None.
        expand_weight: [C, rd] or [C, rd, 1, 1].
        expand_bias: [C] or None.
        activation: "relu", "silu", or any callable on tensors; with a callable the whole op is plain PyTorch (slower).
        gate: "sigmoid", "hard_sigmoid", or a callable, as for `activation`.
        residual: [N, C, H, W] added after the gate, or None.
        output_activation: "relu" or None, applied last.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        [N, C, H, W] in x's dtype and memory format.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or its dtype is not x's (under autocast the weights
            are cast to x's dtype instead).
        ValueError: ranks, shapes or devices do not match; an unknown name; a backend that cannot run here.
    """
    inputs = (x, reduce_weight, reduce_bias, expand_weight, expand_bias, residual)
    return SQUEEZE_EXCITE(backend, inputs, (activation, gate, output_activation))
