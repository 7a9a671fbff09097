"""What pooled_sum, select_branches, selective_kernel and their references ask of their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import _checks

MAX_BRANCHES = 8  # csrc/selective_kernel/selective_kernel.h has the same


def check_branches(op: str, branches: Sequence[Tensor] | Tensor) -> None:
    """Raise unless these are M tensors [N, C, H, W], or one [N, M, C, H, W]."""
    if isinstance(branches, Tensor):
        _checks.tensor(op, "branches", branches)
        if branches.dim() != 5 or not 2 <= branches.shape[1] <= MAX_BRANCHES:
            _fail(op, branches)
        return
    if not isinstance(branches, (list, tuple)):
        _fail(op, branches, TypeError)
    if not 2 <= len(branches) <= MAX_BRANCHES:
        _fail(op, branches)
    first = branches[0]
    _checks.feature_map(op, "branches[0]", first)
    for m in range(1, len(branches)):
        _checks.alike(op, f"branches[{m}]", branches[m], first, "branches[0]")
        if branches[m].shape != first.shape:
            _checks.shape(op, f"branches[{m}]", branches[m], tuple(first.shape))


def _fail(op: str, branches: Any, kind: type[Exception] = ValueError) -> None:
    expected = f"2 to {MAX_BRANCHES} tensors [N, C, H, W], or one tensor [N, M, C, H, W]"
    _checks.fail(op, "branches", expected, _checks.shown(branches), kind)


def check_logits(op: str, branches: Sequence[Tensor] | Tensor, logits: Any, name: str = "logits") -> None:
    """Raise unless the logits are those of branches that have been checked."""
    stacked = isinstance(branches, Tensor)
    x, count = (branches, branches.shape[1]) if stacked else (branches[0], len(branches))
    _checks.alike(op, name, logits, x, "branches")
    _checks.shape(op, name, logits, (x.shape[0], count, x.shape[-3]))


def check_select(op: str, branches: Sequence[Tensor] | Tensor, logits: Any) -> None:
    """Raise where select_branches does not take these arguments."""
    check_branches(op, branches)
    check_logits(op, branches, logits)


def check_attention(op: str, attention: Any) -> None:
    """Raise unless `attention` can be called on the pooled branches; a class is a layer not yet made."""
    if isinstance(attention, type) or not callable(attention):
        expected = "a callable from pooled [N, C] to logits [N, M, C]"
        _checks.fail(op, "attention", expected, _checks.shown(attention), TypeError)
