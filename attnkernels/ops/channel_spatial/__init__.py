"""cbam and scse: x scaled by gates per channel and per pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .schema import CBAM, SCSE


@CBAM.public
def cbam(
    x: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    spatial_weight: Tensor | None,
    spatial_bias: Tensor | None = None,
    *,
    pool_types: Sequence[str] = ("avg", "max"),
    spatial_order: Sequence[str] = ("max", "mean"),
    spatial_norm: Callable[[Tensor], Tensor] | None = None,
    ties: str = "first",
    skip: bool = False,
    backend: str = "auto",
) -> Tensor:
    """The convolutional block attention module (Woo et al. 2018, arXiv:1807.06521): y = x * gc * gs, or x + that.

    gc [N, C] = sigmoid(sum over the pools of layers(pool(x))), layers(s) = expand_weight @ relu(reduce_weight @ s +
    reduce_bias) + expand_bias. gs [N, H, W] = sigmoid(spatial_norm(convolution of the maximum and the mean over the
    channels of x * gc)). Neither x * gc nor its gradient is stored.

    Args:
        x: [N, C, H, W], float32, float64, float16 or bfloat16, any strides; contiguous and channels_last run natively.
        reduce_weight: [rd, C] or [rd, C, 1, 1]; None for a single layer (as ultralytics has it), where rd = C.
        reduce_bias: [rd] or None.
        expand_weight: [C, rd] or [C, rd, 1, 1]; None for a spatial gate alone.
        expand_bias: [C] or None.
        spatial_weight: [1, 2, k, k], k odd and at most 15; None for a channel gate alone.
        spatial_bias: [1] or None.
        pool_types: one or more of "avg", "max", "lp" (the square root of the sum of squares) and "lse" (the logarithm
            of the sum of exponentials); the last two are computed by PyTorch, each in a pass of its own.
        spatial_order: which statistic each of the two slices of `spatial_weight` is for: ("max", "mean") in the
            official code, ("mean", "max") in timm and most other copies.
        spatial_norm: what follows the convolution, as an `nn.BatchNorm2d(1)`: a callable from [N, 1, H, W] in x's dtype
            to the same. It runs under ordinary autograd.
        ties: where the gradient of a maximum goes if several elements are equal to it: "first" as in the official code,
            or "share", in equal parts to all of them (timm).
        skip: whether x is added to the result.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        [N, C, H, W] in x's dtype and memory format.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or its dtype is not x's (under autocast the weights
            are cast to x's dtype instead).
        ValueError: ranks, shapes or devices do not match; no gate at all; an even k; an unknown name; a backend that
            cannot run here.
    """
    weights = reduce_weight, reduce_bias, expand_weight, expand_bias, spatial_weight, spatial_bias
    return CBAM(backend, (x, *weights), (pool_types, spatial_order, spatial_norm, ties, skip))


@SCSE.public
def scse(
    x: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    spatial_weight: Tensor,
    spatial_bias: Tensor | None,
    *,
    merge: str = "max",
    backend: str = "auto",
) -> Tensor:
    """Concurrent spatial and channel squeeze-and-excitation (Roy et al. 2018, arXiv:1803.02579).

    y = max(x * gc, x * gs) or x * gc + x * gs, with gc [N, C] = sigmoid(expand_weight @ relu(reduce_weight @ mean_hw(x)
    + reduce_bias) + expand_bias) and gs [N, H, W] = sigmoid(spatial_weight @ x + spatial_bias).

    Args:
        x: [N, C, H, W], float32, float64, float16 or bfloat16, any strides; contiguous and channels_last run natively.
        reduce_weight: [rd, C] or [rd, C, 1, 1]; None for a single layer, where rd = C.
        reduce_bias: [rd] or None.
        expand_weight: [C, rd] or [C, rd, 1, 1]; None for the spatial gate alone, y = x * gs. The channel gate alone is
            `squeeze_excite`.
        expand_bias: [C] or None.
        spatial_weight: [C], [1, C] or [1, C, 1, 1].
        spatial_bias: [1] or None.
        merge: "max", whose gradient goes in halves to equal sides, as that of torch.max(a, b), or "add".
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        [N, C, H, W] in x's dtype and memory format.

    Raises:
        TypeError, ValueError: as `cbam`.
    """
    weights = reduce_weight, reduce_bias, expand_weight, expand_bias, spatial_weight, spatial_bias
    return SCSE(backend, (x, *weights), (merge,))
