"""What the criss-cross functions and their references ask of their arguments."""

from __future__ import annotations

from torch import Tensor

from .. import _checks

AFFINITY, AGGREGATE, ATTENTION = "criss_cross_affinity", "criss_cross_aggregate", "criss_cross_attention"


def _check_map(op: str, argument: str, value: Tensor) -> None:
    _checks.feature_map(op, argument, value)
    if not value.shape[2] or not value.shape[3]:
        _checks.fail(op, argument, "a tensor [N, C, H, W] with H and W of at least 1", _checks.shown(value))


def check_affinity(query: Tensor, key: Tensor) -> None:
    """Raise where criss_cross_affinity does not take these arguments."""
    _check_map(AFFINITY, "query", query)
    _checks.alike(AFFINITY, "key", key, query, "query")
    _checks.shape(AFFINITY, "key", key, tuple(query.shape))


def check_aggregate(affinity: Tensor, value: Tensor) -> None:
    """Raise where criss_cross_aggregate does not take these arguments."""
    _check_map(AGGREGATE, "value", value)
    samples, _, height, width = value.shape
    _checks.alike(AGGREGATE, "affinity", affinity, value, "value")
    _checks.shape(AGGREGATE, "affinity", affinity, (samples, height + width - 1, height, width))


def check_attention(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise where criss_cross_attention does not take these arguments."""
    _checks.tensor(ATTENTION, "query", query)
    if query.dim() not in (4, 5):
        got = f"{query.dim()} dimensions: {list(query.shape)}"
        _checks.fail(ATTENTION, "query", "a tensor [N, C, H, W] or [N, C, D, H, W]", got)
    _checks.alike(ATTENTION, "key", key, query, "query")
    _checks.shape(ATTENTION, "key", key, tuple(query.shape))
    _checks.alike(ATTENTION, "value", value, query, "query")
    samples, _, *space = query.shape
    channels = value.shape[1] if value.dim() > 1 else 0
    if value.shape != (samples, channels, *space):
        names = f"[{', '.join(map(str, (samples, 'C', *space)))}]"
        _checks.shape(ATTENTION, "value", value, (samples, channels, *space), names=names)
