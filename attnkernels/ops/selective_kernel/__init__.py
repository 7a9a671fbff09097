"""Branches mixed channel by channel: pooled_sum, select_branches, and both with a network between, selective_kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from ... import backends
from . import reference, schema
from .checks import ATTENTION_RESULT, as_branches, check_attention, checked_branches, checked_logits, tensors_of
from .schema import listed


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
    op = "pooled_sum"
    given = as_branches(branches)
    if given and (chosen := _plain_backend(given, backend)):
        try:
            return schema.run_pooled_sum(chosen, given)
        except (RuntimeError, LookupError, TypeError):
            pass  # wrong arguments: what follows names them
    if backends.overridden(tensors := tensors_of(branches)):
        return handle_torch_function(pooled_sum, tensors, branches, backend=backend)
    branches = checked_branches(op, branches)
    chosen = _backend(op, branches, backend)
    if chosen == "reference":
        return reference.pooled(listed(branches))
    return schema.run_pooled_sum(chosen, branches)


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
    op = "select_branches"
    given = as_branches(branches)
    if given and (chosen := _plain_backend(given, backend, logits)):
        try:
            return schema.run_select_branches(chosen, given, logits)
        except (RuntimeError, LookupError, TypeError):
            pass  # wrong arguments: what follows names them
    if backends.overridden(tensors := (*tensors_of(branches), logits)):
        return handle_torch_function(select_branches, tensors, branches, logits, backend=backend)
    branches = checked_branches(op, branches)
    logits = checked_logits(op, branches, logits)
    chosen = _backend(op, branches, backend, logits)
    if chosen == "reference":
        return reference.selected(listed(branches), logits)
    return schema.run_select_branches(chosen, branches, logits)


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
    op = "selective_kernel"
    check_attention(op, attention)
    given = as_branches(branches)
    if given and (chosen := _plain_backend(given, backend)):
        try:
            pooled, select = schema.run_open(chosen, given)
        except (RuntimeError, LookupError, TypeError):
            pass  # wrong arguments: what follows names them
        else:
            return select(_logits(given, attention, pooled))
    if backends.overridden(tensors_of(branches)):  # each half goes by the override; `attention` is no argument of one
        return select_branches(branches, attention(pooled_sum(branches, backend=backend)), backend=backend)
    branches = checked_branches(op, branches)
    chosen = _backend(op, branches, backend)
    if chosen == "reference":
        one_by_one = listed(branches)
        return reference.selected(one_by_one, _logits(branches, attention, reference.pooled(one_by_one)))
    pooled, select = schema.run_open(chosen, branches)
    return select(_logits(branches, attention, pooled))


def _logits(branches: Sequence[Tensor], attention: Callable[[Tensor], Tensor], pooled: Tensor) -> Tensor:
    return checked_logits("selective_kernel", branches, attention(pooled), ATTENTION_RESULT)


def _plain_backend(branches: Sequence[Tensor], backend: str, *logits: Tensor) -> str:
    """As `backends.plain_backend`, for backends whose operators check all that the functions do."""
    chosen = backends.plain_backend(branches[0], backend, (*branches, *logits))
    return "" if chosen == "triton" else chosen


def _backend(op: str, branches: Sequence[Tensor], backend: str, logits: Tensor | None = None) -> str:
    # Under torch.compile the plain formula is taken: Inductor makes as few passes and fuses them with their neighbours,
    # and where it changes a graph's layout it copies the inputs of an opaque op (8x128x56x56, training: contiguous 1.55
    # times the plain formula's time, channels_last 0.7 times; inference 0.9 and 0.8 times).
    return backends.choose(
        op, branches[0], backend, (logits, *branches),
        when_compiled="torch.compile fuses the plain formula into its neighbours",
    )  # fmt: skip


def _example_branches(device: str) -> list[Tensor]:
    return [torch.zeros(1, 8, 4, 4, device=device) for _ in range(2)]


def _example_attention(pooled: Tensor) -> Tensor:
    return torch.stack([pooled, -pooled], 1)


backends.register(backends.Operator(pooled_sum, lambda device: ((_example_branches(device),), {})))
backends.register(
    backends.Operator(
        select_branches, lambda device: ((_example_branches(device), torch.zeros(1, 2, 8, device=device)), {})
    )
)
backends.register(
    backends.Operator(selective_kernel, lambda device: ((_example_branches(device), _example_attention), {}))
)
