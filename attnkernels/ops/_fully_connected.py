"""What the ops share that compute a channel gate by fully connected layers: names, and the checks of their tensors.

Layers are reduce_weight [rd, C] or [rd, C, 1, 1], reduce_bias [rd], expand_weight [C, rd] or [C, rd, 1, 1] and
expand_bias [C]; without reduce_weight there is a single layer, and rd = C.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks

# Between the layers, in the order of their integers.
ACTIVATIONS = ("relu", "silu")


def fit(x: Tensor, layers: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> bool:
    """Whether x is a map, two layers of a call or none surely fit it, and the other tensors have its dtype and device.

    Found in half the time of the checks one by one, on the way of every call.
    """
    if not isinstance(x, Tensor) or x.dim() != 4 or x.dtype not in _checks.FLOATING:
        return False
    dtype, device, channels = x.dtype, x.device, x.shape[1]
    for value in (x, *layers, *others):
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


def check(
    op: str,
    x: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
) -> None:
    """Raise unless these are the layers of a gate of x, which has been checked."""
    channels = x.shape[1]
    hidden = channels
    if reduce_weight is not None:
        _checks.alike(op, "reduce_weight", reduce_weight, x)
        hidden = reduce_weight.shape[0] if reduce_weight.dim() else 0
        allowed = (hidden, channels), (hidden, channels, 1, 1)
        names = f"[rd, {channels}] or [rd, {channels}, 1, 1]"
        _checks.shape(op, "reduce_weight", reduce_weight, *allowed, names=names)
    elif reduce_bias is not None:
        _checks.fail(op, "reduce_bias", "None, as reduce_weight is None", _checks.shown(reduce_bias))
    check_vector(op, "reduce_bias", reduce_bias, x, hidden)
    _checks.alike(op, "expand_weight", expand_weight, x)
    _checks.shape(op, "expand_weight", expand_weight, (channels, hidden), (channels, hidden, 1, 1))
    check_vector(op, "expand_bias", expand_bias, x, channels)


def check_vector(op: str, name: str, value: Tensor | None, x: Tensor, length: int) -> None:
    """Raise unless an optional parameter has this one dimension, and x's dtype and device."""
    if value is not None:
        _checks.alike(op, name, value, x)
        _checks.shape(op, name, value, (length,))
