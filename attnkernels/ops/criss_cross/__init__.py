"""The criss-cross functions of CCNet: each pixel attends to the pixels of its row and its column."""

from __future__ import annotations

from torch import Tensor

from .schema import AFFINITY, AGGREGATE, ATTENTION


@AFFINITY.public
def criss_cross_affinity(query: Tensor, key: Tensor, *, backend: str = "auto") -> Tensor:
    """The energies of criss-cross attention (Huang et al. 2019, arXiv:1811.11721), in the official kernels' order.

    Args:
        query: [N, Cq, H, W], float32, float64, float16 or bfloat16, any strides.
        key: [N, Cq, H, W], as query.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        [N, H+W-1, H, W] in query's dtype and memory format: at (h, w), entry j < W is the product of that query with
        the key at (h, j), entry W + i that with the key at (i, w) for i < h and at (i + 1, w) from there on.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or the dtypes differ (under autocast both are cast).
        ValueError: ranks, shapes or devices do not match; a backend that cannot run here.
    """
    return AFFINITY(backend, (query, key))


@AGGREGATE.public
def criss_cross_aggregate(affinity: Tensor, value: Tensor, *, backend: str = "auto") -> Tensor:
    """The values of each pixel's row and column summed with the weights of `affinity` (Huang et al. 2019).

    Args:
        affinity: [N, H+W-1, H, W] weights in the order of `criss_cross_affinity`, usually its softmax over dimension 1.
        value: [N, C, H, W], float32, float64, float16 or bfloat16, any strides.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        [N, C, H, W] in value's dtype and memory format.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or the dtypes differ (under autocast both are cast).
        ValueError: ranks, shapes or devices do not match; a backend that cannot run here.
    """
    return AGGREGATE(backend, (affinity, value))


@ATTENTION.public
def criss_cross_attention(query: Tensor, key: Tensor, value: Tensor, *, backend: str = "auto") -> Tensor:
    """Criss-cross attention (Huang et al. 2019): affinity, softmax and aggregation in one.

    Nothing of size H + W - 1 per pixel is kept: the backward recomputes the probabilities from the saved query, key,
    value, result and one number per pixel. The energies are not scaled.

    Args:
        query: [N, Cq, H, W] or [N, Cq, D, H, W], float32, float64, float16 or bfloat16, any strides;
            channels_last runs natively, other maps are copied to it for the time of the call.
        key: as query.
        value: [N, C, H, W] or [N, C, D, H, W], with any number of channels.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        The attended values, in value's shape, dtype and memory format. In three dimensions each pixel attends to the
        H + W + D - 2 distinct pixels of its three axis lines.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or the dtypes differ (under autocast all are cast).
        ValueError: ranks, shapes or devices do not match; a backend that cannot run here.
    """
    return ATTENTION(backend, (query, key, value))
