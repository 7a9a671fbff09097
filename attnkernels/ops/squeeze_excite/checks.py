"""What squeeze_excite and its reference ask of their arguments."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .. import _checks, _fully_connected
from .._fully_connected import ACTIVATIONS
from .._gate import GATES, OUTPUT_ACTIVATIONS

OP = "squeeze_excite"


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
    layers = reduce_weight, reduce_bias, expand_weight, expand_bias
    if expand_weight is None or not _fully_connected.fit(x, layers, (residual,)):
        _checks.feature_map(OP, "x", x)
        _fully_connected.check(OP, x, *layers)
    if residual is not None:
        _checks.alike(OP, "residual", residual, x)
        _checks.shape(OP, "residual", residual, x.shape)
    _checks.function(OP, "activation", activation, ACTIVATIONS)
    _checks.function(OP, "gate", gate, GATES)
    _checks.choice(OP, "output_activation", output_activation, OUTPUT_ACTIVATIONS)
