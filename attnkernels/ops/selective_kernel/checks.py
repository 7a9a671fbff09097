"""What pooled_sum, select_branches, selective_kernel and their references ask of their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import _checks
from .._autocast import autocasts

ATTENTION_RESULT = "the result of attention"  # logits, as messages name them
MAX_BRANCHES = 8  # csrc/selective_kernel/selective_kernel.h has the same


def tensors_of(branches: Sequence[Tensor] | Tensor) -> tuple:
    """The branches as arguments that may be overridden."""
    return tuple(branches) if isinstance(branches, (list, tuple)) else (branches,)


def as_branches(branches: Any) -> Sequence[Any]:
    """What `checked_branches` returns of branches that it may take; empty where it does not, or is to tell."""
    kind = branches.__class__
    if kind is list or kind is tuple:
        return branches if len(branches) > 1 and branches[0].__class__ is Tensor and branches[0].dim() == 4 else ()
    return (branches,) if kind is Tensor and branches.dim() == 5 and branches.shape[1] > 1 else ()


def checked_branches(op: str, branches: Sequence[Tensor] | Tensor) -> Sequence[Tensor]:
    """The branches as the Functions take them: M tensors [N, C, H, W], or one [N, M, C, H, W], in a tuple."""
    if isinstance(branches, Tensor):
        _checks.tensor(op, "branches", branches)
        if branches.dim() != 5 or not 2 <= branches.shape[1] <= MAX_BRANCHES:
            _fail(op, branches)
        return (branches,)
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
    return branches


def _fail(op: str, branches: Any, kind: type[Exception] = ValueError) -> None:
    expected = f"2 to {MAX_BRANCHES} tensors [N, C, H, W], or one tensor [N, M, C, H, W]"
    _checks.fail(op, "branches", expected, _checks.shown(branches), kind)


def checked_logits(op: str, branches: Sequence[Tensor], logits: Any, name: str = "logits") -> Tensor:
    """The logits, under autocast in the branches' dtype."""
    x = branches[0]
    count = len(branches) if x.dim() == 4 else x.shape[1]
    if isinstance(logits, Tensor) and logits.dtype != x.dtype and autocasts(x):
        logits = logits.to(x.dtype)
    _checks.alike(op, name, logits, x, "branches")
    _checks.shape(op, name, logits, (x.shape[0], count, x.shape[-3]))
    return logits


def check_attention(op: str, attention: Any) -> None:
    """Raise unless `attention` can be called on the pooled branches; a class is a layer not yet made."""
    if isinstance(attention, type) or not callable(attention):
        expected = "a callable from pooled [N, C] to logits [N, M, C]"
        _checks.fail(op, "attention", expected, _checks.shown(attention), TypeError)
