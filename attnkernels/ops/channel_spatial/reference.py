"""Channel and spatial gates in plain PyTorch: the specification of `cbam` (Woo et al. 2018, arXiv:1807.06521) and of
`scse` (Roy et al. 2018, arXiv:1803.02579), step by step as the kernels take them.

cbam, with the gates gc [N, C] and gs [N, H, W], p counting pixels and P of them:

    a[c] = mean_p x[c, p]        A[c] = max_p x[c, p]                gc = sigmoid(mlp(a) + mlp(A))
    z[c, p] = x[c, p] gc[c]      m[p] = mean_c z[c, p]               M[p] = max_c z[c, p]
    gs = sigmoid(norm(conv([M, m])))
    y = z gs (+ x)

scse, with a pointwise convolution w:

    gc = sigmoid(mlp(a))         t[p] = sum_c w[c] x[c, p] + b       gs = sigmoid(t)
    y = max(x gc, x gs)  or  y = x gc + x gs

Backward of cbam, where [c in M] marks the channel that gave the maximum (the first one, or all of them, each with its
share), and neither z nor its gradient is stored:

    dgs[p] = sum_c dy z          (dM, dm) by the convolution         dz = dy gs + dm / C + dM [c in M]
    dgc[c] = sum_p dz x          (dA, da) by the fully connected layers
    dx = dz gc + da / P + dA [p in A] (+ dy)

Backward of scse, u and v being what the merge passes to either side, 1 each in a sum; in a maximum 1 to the larger side
and 1/2 to each of equal ones, of which a map after a ReLU is full:

    dgc[c] = sum_p dy x u        dgs[p] = sum_c dy x v               dt = dgs gs (1 - gs)
    dx = dy (gc u + gs v) + da / P + dt w                            dw[c] = sum_n,p dt x

In reads and writes of the map: cbam 4 forward, 6 backward; scse 3 and 5. Numbers per channel and per pixel are held in
the accumulation dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._registry import accumulation_dtype


def wide(x: Tensor) -> Tensor:
    """x in the dtype in which sums are held."""
    return x.to(accumulation_dtype(x.dtype))


def _maximum(x: Tensor, dims: tuple[int, ...], ties: str) -> Tensor:
    """The maximum over adjacent dimensions, whose gradient goes to the first of equal ones or is shared by them."""
    if ties == "share":
        return x.amax(dims)
    return x.flatten(dims[0], dims[-1]).max(dims[0]).values


def pooled(x: Tensor, maximum: bool, ties: str) -> Tensor:
    """[N, 1, C], the means over the pixels; with `maximum` [N, 2, C], the maxima after them."""
    x = wide(x)
    means = x.mean((2, 3))
    return torch.stack([means, _maximum(x, (2, 3), ties)], 1) if maximum else means[:, None]


def projected(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """t [N, H, W]"""
    weight, bias = wide(weight).view(1, -1, 1, 1), None if bias is None else wide(bias)
    return F.conv2d(wide(x), weight, bias)[:, 0]


def _broadcast(gate: Tensor) -> Tensor:
    """A gate as it multiplies the map: [N, C, 1, 1] or [N, 1, H, W]."""
    return gate[:, :, None, None] if gate.dim() == 2 else gate[:, None]


def statistics(x: Tensor, channel_gate: Tensor | None, ties: str) -> Tensor:
    """[N, 2, H, W], the maxima over the channels of x gc and the means."""
    z = wide(x)
    if channel_gate is not None:
        z = z * _broadcast(channel_gate)
    return torch.stack([_maximum(z, (1,), ties), z.mean(1)], 1)


def scaled(x: Tensor, channel_gate: Tensor | None, spatial_gate: Tensor | None, merge: str, skip: bool) -> Tensor:
    """x scaled by its gates, one of which may be None; with `skip` x is added."""
    wide_x = wide(x)
    gates = [_broadcast(gate) for gate in (channel_gate, spatial_gate) if gate is not None]
    if merge == "product" or len(gates) == 1:
        y = wide_x * gates[0]
        y = y * gates[1] if len(gates) == 2 else y
    elif merge == "add":
        y = wide_x * (gates[0] + gates[1])
    else:
        y = torch.maximum(wide_x * gates[0], wide_x * gates[1])
    return (y + wide_x if skip else y).to(x.dtype)
