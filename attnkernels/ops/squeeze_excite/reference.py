"""Squeeze-and-excitation in plain PyTorch: the specification of `squeeze_excite` (Hu et al. 2018, arXiv:1709.01507).

    s[n, c] = mean_hw x[n, c, h, w]                          squeeze
    u[n, r] = sum_c reduce_weight[r, c] s[n, c] + reduce_bias[r]
    v[n, c] = sum_r expand_weight[c, r] activation(u[n, r]) + expand_bias[c]
    g[n, c] = gate(v[n, c])                                  excite
    y[n, c, h, w] = output_activation(x[n, c, h, w] g[n, c] + residual[n, c, h, w])

Without reduce_weight the excitation is a single layer, v = expand_weight s + expand_bias (the effective SE of VoVNet).

Backward, for dz = dy * output_activation'(y):

    dg = sum_hw dz x        dv = dg gate'(v)        du = (expand_weight^T dv) activation'(u)    ds = reduce_weight^T du
    dx = dz g + ds / (H W)                          dresidual = dz
    d expand_weight = sum_n dv activation(u)^T      d expand_bias = sum_n dv
    d reduce_weight = sum_n du s^T                  d reduce_bias = sum_n du
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from .._gate import GATE_FORMULAS, epilogue, pointwise
from .checks import OP

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu}


def _layer(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A fully connected layer on [N, C, 1, 1], the weight as of a Linear or of a 1x1 convolution."""
    if weight.dim() == 4 and weight.numel():  # conv2d refuses a weight without rows
        return F.conv2d(x, weight, bias)
    return F.linear(x.flatten(1), weight.flatten(1), bias)[:, :, None, None]


def gated(
    x: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    activation: str | Callable[[Tensor], Tensor],
    gate: str | Callable[[Tensor], Tensor],
) -> Tensor:
    """x scaled by its gates."""
    hidden = x.mean((2, 3), keepdim=True)
    if reduce_weight is not None:
        hidden = pointwise(OP, "activation", activation, ACTIVATIONS, _layer(hidden, reduce_weight, reduce_bias))
    return x * pointwise(OP, "gate", gate, GATE_FORMULAS, _layer(hidden, expand_weight, expand_bias))


def excited(
    x: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    residual: Tensor | None,
    activation: str | Callable[[Tensor], Tensor],
    gate: str | Callable[[Tensor], Tensor],
    output_activation: str | None,
) -> Tensor:
    """squeeze_excite of arguments that have been checked."""
    y = gated(x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate)
    return epilogue(y, residual, output_activation)
