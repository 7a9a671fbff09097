"""What cbam, scse and their references ask of their arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .. import _checks, _fully_connected
from .._fully_connected import check_vector
from .operators import TIES

POOL_TYPES = ("avg", "max", "lp", "lse")
SPATIAL_ORDERS = (("max", "mean"), ("mean", "max"))
SCSE_MERGES = ("max", "add")
MOST_TAPS = 15  # of a side of the convolution; csrc/channel_spatial/channel_spatial_convolution.h has the same


def _check_map_and_layers(
    op: str, x: Tensor, layers: Sequence[Tensor | None], spatial: Sequence[Tensor | None]
) -> None:
    """x and the layers of the channel gate, all None where there is none."""
    if _fully_connected.fit(x, layers, spatial):
        return
    _checks.feature_map(op, "x", x)
    reduce_weight, reduce_bias, expand_weight, expand_bias = layers
    if expand_weight is not None:
        _fully_connected.check(op, x, *layers)
        return
    others = {"reduce_weight": reduce_weight, "reduce_bias": reduce_bias, "expand_bias": expand_bias}
    for name, value in others.items():
        if value is not None:
            _checks.fail(op, name, "None, as expand_weight is None", _checks.shown(value))


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
    _check_map_and_layers(op, x, layers, (spatial_weight, spatial_bias))
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
        check_vector(op, "spatial_bias", spatial_bias, x, 1)
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
    _check_map_and_layers(op, x, layers, (spatial_weight, spatial_bias))
    channels = x.shape[1]
    _checks.alike(op, "spatial_weight", spatial_weight, x)
    _checks.shape(op, "spatial_weight", spatial_weight, (channels,), (1, channels), (1, channels, 1, 1))
    check_vector(op, "spatial_bias", spatial_bias, x, 1)
    _checks.choice(op, "merge", merge, SCSE_MERGES)
