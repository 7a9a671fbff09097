"""What efficient_channel_attention and its reference ask of their arguments."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .. import _checks
from .._gate import GATES, OUTPUT_ACTIVATIONS

OP = "efficient_channel_attention"
MOST_TAPS = 255  # csrc/efficient_channel_attention/efficient_channel_attention.h has the same


def check(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None,
    circular: bool,
    gate: str | Callable[[Tensor], Tensor],
    output_activation: str | None,
) -> None:
    """Raise where the op does not take these arguments."""
    _checks.feature_map(OP, "x", x)
    _checks.alike(OP, "weight", weight, x)
    taps = weight.shape[-1] if weight.dim() else 0
    _checks.shape(OP, "weight", weight, (taps,), (1, 1, taps), names="[k] or [1, 1, k]")
    if taps % 2 == 0 or taps > MOST_TAPS:
        _checks.fail(OP, "weight", f"an odd number of taps k, at most {MOST_TAPS}", str(taps))
    _checks.flag(OP, "circular", circular)
    if circular and taps // 2 > x.shape[1]:
        _checks.fail(OP, "weight", f"at most {2 * x.shape[1] + 1} taps around {x.shape[1]} channels", str(taps))
    if residual is not None:
        _checks.alike(OP, "residual", residual, x)
        _checks.shape(OP, "residual", residual, x.shape)
    _checks.function(OP, "gate", gate, GATES)
    _checks.choice(OP, "output_activation", output_activation, OUTPUT_ACTIVATIONS)
