"""Branches mixed channel by channel: pooled_sum, select_branches, and both with a network between, selective_kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .checks import check_attention
from .schema import POOLED_SUM, SELECT_BRANCHES, SELECTIVE_KERNEL


@POOLED_SUM.public
def pooled_sum(branches: Sequence[Tensor] | Tensor, *, backend: str = "auto") -> Tensor:
    """Mean over H, W of the sum of the branches; the sum itself is never stored (Li et al. 2019, arXiv:1903.06586).

    Args:
        branches: 2 to 8 tensors [N, C, H, W] of one shape, dtype (float32, float64, float16 or bfloat16) and device, or
            one tensor [N, M, C, H, W]. They are read in place whatever their strides, as long as the rows or the pixels
            are dense; a branch whose layout is not that of the first one is copied once.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        [N, C] in the branches' dtype.

    Raises:
        TypeError: a branch is no dense floating-point tensor, or its dtype is not that of the first one.
        ValueError: too few or too many branches; their shapes or devices differ; a backend that cannot run here.
    """
    return POOLED_SUM(backend, (branches,))


@SELECT_BRANCHES.public
def select_branches(branches: Sequence[Tensor] | Tensor, logits: Tensor, *, backend: str = "auto") -> Tensor:
    """sum_m a[:, m] * branches[m] with a = softmax(logits, dim=1), per sample and channel (Li et al. 2019).

    Args:
        branches: M tensors [N, C, H, W], or one tensor [N, M, C, H, W], as for `pooled_sum`.
        logits: [N, M, C] in the branches' dtype (under autocast it is cast to it).
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        [N, C, H, W] in the branches' dtype and memory format.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or the dtypes differ.
        ValueError: shapes or devices do not match; a backend that cannot run here.
    """
    return SELECT_BRANCHES(backend, (branches, logits))


@SELECTIVE_KERNEL.public
def selective_kernel(
    branches: Sequence[Tensor] | Tensor, attention: Callable[[Tensor], Tensor], *, backend: str = "auto"
) -> Tensor:
    """select_branches(branches, attention(pooled_sum(branches))), each branch's gradient written once.

    Args:
        branches: M tensors [N, C, H, W], or one tensor [N, M, C, H, W], as for `pooled_sum`.
        attention: the small network, from pooled [N, C] to logits [N, M, C] in the branches' dtype. It runs under
            ordinary autograd: its modules, their hooks and their buffers behave as anywhere else.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        [N, C, H, W] in the branches' dtype and memory format.

    Raises:
        TypeError, ValueError: as `pooled_sum` and `select_branches`.
    """
    check_attention("selective_kernel", attention)
    pooled, select = SELECTIVE_KERNEL(backend, (branches,))
    return select(attention(pooled))
