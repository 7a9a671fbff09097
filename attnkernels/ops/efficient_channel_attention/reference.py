"""Efficient channel attention in plain PyTorch: the specification of efficient_channel_attention.

    m[c] = mean_p x[c, p]        v[c] = sum_j weight[j] m[c + j - k // 2]        g = gate(v)
    y = output_activation(x g + residual)

Channels that are not there have m = 0 or, circular, are those from the other end. Backward, with dz = dy where the
output activation passes it:

    dg[c] = sum_p dz x        dv = dg gate'(v)        dm[c] = sum_j weight[j] dv[c - j + k // 2]
    dx = dz g + dm / P        dweight[j] = sum_n,c dv[c] m[c + j - k // 2]        dresidual = dz
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from .._gate import GATE_FORMULAS, epilogue, pointwise
from .checks import OP


def gated(x: Tensor, weight: Tensor, circular: bool, gate: str | Callable[[Tensor], Tensor]) -> Tensor:
    """x scaled by its gates."""
    padding = weight.shape[-1] // 2
    means = x.mean((2, 3))[:, None]
    means = F.pad(means, (padding, padding), mode="circular" if circular else "constant")
    logits = F.conv1d(means, weight.view(1, 1, -1))[:, 0, :, None, None]
    return x * pointwise(OP, "gate", gate, GATE_FORMULAS, logits)


def attended(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None,
    circular: bool,
    gate: str | Callable[[Tensor], Tensor],
    output_activation: str | None,
) -> Tensor:
    """efficient_channel_attention of arguments that have been checked."""
    return epilogue(gated(x, weight, circular, gate), residual, output_activation)
