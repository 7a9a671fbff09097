"""What squeeze_excite and its reference ask of their arguments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import _checks
from .._gate import GATES, OUTPUT_ACTIVATIONS

OP = "squeeze_excite"
ACTIVATIONS = ("relu", "silu")


def check(
    x: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    residual: Tensor | None,
    activation: str | Callable[[Tensor], Tensor],
    gate: str | Callable[[Tensor], Tensor],
    output_activation: str | None,
) -> None:
    """Raise where the op does not take these arguments."""
    if not _fit(x, reduce_weight, reduce_bias, expand_weight, expand_bias, residual):
        _check_tensors(x, reduce_weight, reduce_bias, expand_weight, expand_bias, residual)
    _checks.function(OP, "activation", activation, ACTIVATIONS)
    _checks.function(OP, "gate", gate, GATES)
    _checks.choice(OP, "output_activation", output_activation, OUTPUT_ACTIVATIONS)


def _fit(
    x: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    residual: Tensor | None,
) -> bool:
    """Whether the tensors of a call with two layers surely fit: found in half the time, on the way of every call."""
    if not isinstance(x, Tensor) or x.dim() != 4 or x.dtype not in _checks.FLOATING:
        return False
    dtype, device = x.dtype, x.device
    for value in (x, reduce_weight, reduce_bias, expand_weight, expand_bias, residual):
        if value is not None and not (
            isinstance(value, Tensor)
            and value.dtype is dtype
            and value.device == device
            and value.layout is torch.strided
        ):
            return False
    if reduce_weight is None or expand_weight is None or not reduce_weight.dim():
        return False
    shape, channels, hidden = x.shape, x.shape[1], reduce_weight.shape[0]
    return (
        reduce_weight.shape in ((hidden, channels, 1, 1), (hidden, channels))
        and expand_weight.shape in ((channels, hidden, 1, 1), (channels, hidden))
        and (reduce_bias is None or reduce_bias.shape == (hidden,))
        and (expand_bias is None or expand_bias.shape == (channels,))
        and (residual is None or residual.shape == shape)
    )


def _check_tensors(
    x: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    residual: Tensor | None,
) -> None:
    _checks.feature_map(OP, "x", x)
    channels = x.shape[1]
    hidden = channels
    if reduce_weight is not None:
        _checks.alike(OP, "reduce_weight", reduce_weight, x)
        hidden = reduce_weight.shape[0] if reduce_weight.dim() else 0
        allowed = (hidden, channels), (hidden, channels, 1, 1)
        names = f"[rd, {channels}] or [rd, {channels}, 1, 1]"
        _checks.shape(OP, "reduce_weight", reduce_weight, *allowed, names=names)
    if reduce_bias is not None:
        if reduce_weight is None:
            _checks.fail(OP, "reduce_bias", "None, as reduce_weight is None", _checks.shown(reduce_bias))
        _checks.alike(OP, "reduce_bias", reduce_bias, x)
        _checks.shape(OP, "reduce_bias", reduce_bias, (hidden,))
    _checks.alike(OP, "expand_weight", expand_weight, x)
    _checks.shape(OP, "expand_weight", expand_weight, (channels, hidden), (channels, hidden, 1, 1))
    if expand_bias is not None:
        _checks.alike(OP, "expand_bias", expand_bias, x)
        _checks.shape(OP, "expand_bias", expand_bias, (channels,))
    if residual is not None:
        _checks.alike(OP, "residual", residual, x)
        _checks.shape(OP, "residual", residual, x.shape)
