"""What the ops share that scale a map by a gate: y = output_activation(x * gate + residual)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks
from ._autograd import reference_backward

# In the order of the integers that stand for them in the schemas; csrc/common/gate.h has the same.
GATES = ("sigmoid", "hard_sigmoid")
OUTPUT_ACTIVATIONS = (None, "relu")


def _hard_sigmoid(x: Tensor) -> Tensor:
    """F.hardsigmoid has no second derivative, and 1/6 rounded to float32 in the first one, for float64 too."""
    return F.relu6(x + 3) / 6


GATE_FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": Tensor.sigmoid, "hard_sigmoid": _hard_sigmoid}


def pointwise(
    op: str, argument: str, function: str | Callable[[Tensor], Tensor], names: dict[str, Callable], x: Tensor
) -> Tensor:
    """The function of this name, or a callable, of x."""
    if isinstance(function, str):
        return names[function](x)
    result = function(x)
    if isinstance(x, Tensor):  # and no tracer's proxy of one
        _checks.same_shape(op, argument, result, x)
    return result


def epilogue(y: Tensor, residual: Tensor | None, output_activation: str | None) -> Tensor:
    """output_activation(y + residual)"""
    if residual is not None:
        y = y + residual
    return F.relu(y) if output_activation == "relu" else y


def formula_backward(
    gated: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    y: Tensor | None,
    grad_y: Tensor,
    output_activation: str | None,
) -> list[Tensor | None]:
    """The gradients of the inputs and, last, of the residual, which is not saved.

    Of it, as of y, only where the activation is open counts, which has no derivative.

    Args:
        gated: x * gate, as a function of the inputs.
        inputs: all but the residual.
        y: the result, where there is an activation.
        grad_y: its gradient.
        output_activation: the activation.
    """
    grad_z = torch.ops.aten.threshold_backward(grad_y, y.detach(), 0) if output_activation else grad_y
    return [*reference_backward(gated, inputs, grad_z), grad_z]
