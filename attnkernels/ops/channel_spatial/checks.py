"""What cbam, scse and their references ask of their arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from .operators import TIES

POOL_TYPES = ("avg", "max", "lp", "lse")
SPATIAL_ORDERS = (("max", "mean"), ("mean", "max"))
SCSE_MERGES = ("max", "add")
MOST_TAPS = 15  # of a side of the convolution; csrc/channel_spatial/channel_spatial.h has the same


def _fit(x: Tensor, layers: Sequence[Tensor | None], spatial: Sequence[Tensor | None]) -> bool:
    """Whether x and the layers of a call surely fit, and the others are like x: found in half the time."""
    if not isinstance(x, Tensor) or x.dim() != 4 or x.dtype not in _checks.FLOATING:
        return False
    dtype, device, channels = x.dtype, x.device, x.shape[1]
    for value in (x, *layers, *spatial):
        if value is not None and not (
            isinstance(value, Tensor)
            and value.dtype is dtype
            and value.device == device
            and value.layout is torch.strided
        ):
            return False
    reduce_weight, reduce_bias, expand_weight, expand_bias = layers
    if reduce_weight is None or expand_weight is None or not reduce_weight.dim():
        return not any(layer is not None for layer in layers)
    hidden = reduce_weight.shape[0]
    return (
        reduce_weight.shape in ((hidden, channels, 1, 1), (hidden, channels))
        and expand_weight.shape in ((channels, hidden, 1, 1), (channels, hidden))
        and (reduce_bias is None or reduce_bias.shape == (hidden,))
        and (expand_bias is None or expand_bias.shape == (channels,))
    )


def _check_layers(
    op: str,
    x: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
) -> None:
    """The fully connected layers of the channel gate; all None where there is none."""
    channels = x.shape[1]
    if expand_weight is None:
        others = {"reduce_weight": reduce_weight, "reduce_bias": reduce_bias, "expand_bias": expand_bias}
        for name, value in others.items():
            if value is not None:
                _checks.fail(op, name, "None, as expand_weight is None", _checks.shown(value))
        return
    hidden = channels
    if reduce_weight is not None:
        _checks.alike(op, "reduce_weight", reduce_weight, x)
        hidden = reduce_weight.shape[0] if reduce_weight.dim() else 0
        allowed = (hidden, channels), (hidden, channels, 1, 1)
        _checks.shape(op, "reduce_weight", reduce_weight, *allowed, names=f"[rd, {channels}] or [rd, {channels}, 1, 1]")
    elif reduce_bias is not None:
        _checks.fail(op, "reduce_bias", "None, as reduce_weight is None", _checks.shown(reduce_bias))
    _vector(op, "reduce_bias", reduce_bias, x, hidden)
    _checks.alike(op, "expand_weight", expand_weight, x)
    _checks.shape(op, "expand_weight", expand_weight, (channels, hidden), (channels, hidden, 1, 1))
    _vector(op, "expand_bias", expand_bias, x, channels)


def _vector(op: str, name: str, value: Tensor | None, x: Tensor, length: int) -> None:
    if value is not None:
        _checks.alike(op, name, value, x)
        _checks.shape(op, name, value, (length,))


def check_kernel_size(where: str, argument: str, size: int) -> None:
    """Raise unless a convolution of this size keeps the map's size."""
    if size % 2 == 0 or size > MOST_TAPS:
        expected = f"an odd number, which keeps the size of the map, at most {MOST_TAPS}"
        _checks.fail(where, argument, expected, str(size))


def check_pool_types(where: str, pool_types: Any) -> None:
    """Raise unless these are names of pools, each at most once."""
    if not isinstance(pool_types, (tuple, list)):
        _checks.fail(where, "pool_types", "a sequence of names", _checks.shown(pool_types), TypeError)
    for name in pool_types:
        _checks.choice(where, "pool_types", name, POOL_TYPES)
    if not pool_types or len(set(pool_types)) < len(pool_types):
        _checks.fail(where, "pool_types", "one or more different names", _checks.shown(pool_types))


def check_spatial_order(where: str, spatial_order: Any) -> None:
    """Raise unless this is an order of the two statistics."""
    if not isinstance(spatial_order, (tuple, list)) or tuple(spatial_order) not in SPATIAL_ORDERS:
        kind = ValueError if isinstance(spatial_order, (tuple, list)) else TypeError
        expected = '("max", "mean") or ("mean", "max")'
        _checks.fail(where, "spatial_order", expected, _checks.shown(spatial_order), kind)


def check_cbam(
    x: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    spatial_weight: Tensor | None,
    spatial_bias: Tensor | None,
    pool_types: Sequence[str],
    spatial_order: Sequence[str],
    spatial_norm: Callable[[Tensor], Tensor] | None,
    ties: str,
    skip: bool,
) -> None:
    """Raise where cbam does not take these arguments."""
    op = "cbam"
    layers = reduce_weight, reduce_bias, expand_weight, expand_bias
    if not _fit(x, layers, (spatial_weight, spatial_bias)):
        _checks.feature_map(op, "x", x)
        _check_layers(op, x, *layers)
    check_pool_types(op, pool_types)
    check_spatial_order(op, spatial_order)
    if spatial_weight is None:
        if expand_weight is None:
            _checks.fail(op, "spatial_weight", "a tensor, as expand_weight is None: there is no gate", "None")
        for name, value in (("spatial_bias", spatial_bias), ("spatial_norm", spatial_norm)):
            if value is not None:
                _checks.fail(op, name, "None, as spatial_weight is None", _checks.shown(value))
    else:
        _checks.alike(op, "spatial_weight", spatial_weight, x)
        taps = spatial_weight.shape[-1] if spatial_weight.dim() else 0
        _checks.shape(op, "spatial_weight", spatial_weight, (1, 2, taps, taps), names="[1, 2, k, k]")
        check_kernel_size(op, "spatial_weight: k", taps)
        _vector(op, "spatial_bias", spatial_bias, x, 1)
    if spatial_norm is not None and (isinstance(spatial_norm, type) or not callable(spatial_norm)):
        expected = "a callable from [N, 1, H, W] to the same, or None"
        _checks.fail(op, "spatial_norm", expected, _checks.shown(spatial_norm), TypeError)
    _checks.choice(op, "ties", ties, TIES)
    _checks.flag(op, "skip", skip)


def check_scse(
    x: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    spatial_weight: Tensor,
    spatial_bias: Tensor | None,
    merge: str,
) -> None:
    """Raise where scse does not take these arguments."""
    op = "scse"
    layers = reduce_weight, reduce_bias, expand_weight, expand_bias
    if not _fit(x, layers, (spatial_weight, spatial_bias)):
        _checks.feature_map(op, "x", x)
        _check_layers(op, x, *layers)
    channels = x.shape[1]
    _checks.alike(op, "spatial_weight", spatial_weight, x)
    _checks.shape(op, "spatial_weight", spatial_weight, (channels,), (1, channels), (1, channels, 1, 1))
    _vector(op, "spatial_bias", spatial_bias, x, 1)
    _checks.choice(op, "merge", merge, SCSE_MERGES)
