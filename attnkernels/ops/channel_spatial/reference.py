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
the accumulation dtype, and so are the layers and the convolution on them: in the 16-bit formats kernels round only y,
and what a normalisation takes and gives (the formula t as well: its convolution would take a copy of the map).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _checks
from .._registry import accumulation_dtype


def wide(x: Tensor) -> Tensor:
    """x in the dtype in which sums are held."""
    dtype = accumulation_dtype(x.dtype)
    return x if x.dtype is dtype else x.to(dtype)


# ---- the passes over the map


def _maximum(x: Tensor, dims: tuple[int, ...], ties: str) -> Tensor:
    """The maximum over adjacent dimensions, whose gradient goes to the first of equal ones or is shared by them."""
    if ties == "share":
        return x.amax(dims)
    # One dimension after the other finds the same element as all of them flattened, whose gradient inductor of PyTorch
    # 2.10 computes wrong where a convolution follows.
    for dim in reversed(dims):
        x = x.max(dim).values
    return x


# The means and the maxima are the kernels'; the others, which nobody has been seen to use, are torch's everywhere.
_POOLS: dict[str, Callable[[Tensor, str], Tensor]] = {
    "avg": lambda x, ties: x.mean((2, 3)),
    "max": lambda x, ties: _maximum(x, (2, 3), ties),
    "lp": lambda x, ties: F.lp_pool2d(x, 2.0, x.shape[2:]).flatten(1),
    "lse": lambda x, ties: x.logsumexp((2, 3)),
}


def pooled(x: Tensor, pool_types: Sequence[str], ties: str) -> Tensor:
    """[N, K, C]: each channel over its pixels, by K pools."""
    x = wide(x)
    return torch.stack([_POOLS[name](x, ties) for name in pool_types], 1)


def projected(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """t [N, H, W]"""
    t = wide(F.conv2d(x, weight.view(1, -1, 1, 1))[:, 0])
    return t if bias is None else t + wide(bias)


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


# ---- what lies between them


def channel_gate(
    pooled: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
) -> Tensor:
    """gc [N, C] from [N, K, C]: the layers, the same for each pool, and the sigmoid of the sum of their results."""
    single = pooled.shape[1] == 1
    hidden = pooled[:, 0] if single else pooled
    if reduce_weight is not None:
        hidden = _layer(hidden, reduce_weight, reduce_bias).relu()
    logits = _layer(hidden, expand_weight, expand_bias)
    return (logits if single else logits.sum(1)).sigmoid()


def _layer(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A fully connected layer, the weight as of a Linear or of a 1x1 convolution."""
    weight = weight.flatten(1) if weight.dim() == 4 else weight
    return F.linear(x, wide(weight), None if bias is None else wide(bias))


def convolved(statistics: Tensor, weight: Tensor, bias: Tensor | None, mean_first: bool) -> Tensor:
    """[N, H, W] from [N, 2, H, W]; weight [1, 2, k, k] has planes for the maxima and the means, or the means first."""
    weight = wide(weight)
    if mean_first:
        weight = weight.flip(1)
    bias = None if bias is None else wide(bias)
    return F.conv2d(statistics, weight, bias, padding=weight.shape[-1] // 2)[:, 0]


def normalised(logits: Tensor, norm: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
    """The logits [N, H, W] by a normalisation, in the map's dtype."""
    given = logits[:, None].to(dtype)
    normed = norm(given)
    if isinstance(given, Tensor):  # and no tracer's proxy of one
        _checks.same_shape("cbam", "spatial_norm", normed, given)
    return normed[:, 0].to(logits.dtype)


# ---- the ops, of arguments that have been checked


def attended(
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
) -> Tensor:
    """cbam"""
    by_channel = by_pixel = None
    if expand_weight is not None:
        layers = reduce_weight, reduce_bias, expand_weight, expand_bias
        by_channel = channel_gate(pooled(x, pool_types, ties), *layers)
    if spatial_weight is not None:
        found = statistics(x, by_channel, ties)
        logits = convolved(found, spatial_weight, spatial_bias, spatial_order[0] == "mean")
        by_pixel = (logits if spatial_norm is None else normalised(logits, spatial_norm, x.dtype)).sigmoid()
    return scaled(x, by_channel, by_pixel, "product", skip)


def excited(
    x: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    spatial_weight: Tensor,
    spatial_bias: Tensor | None,
    merge: str,
) -> Tensor:
    """scse"""
    by_channel = None
    if expand_weight is not None:
        by_channel = channel_gate(pooled(x, ("avg",), "first"), reduce_weight, reduce_bias, expand_weight, expand_bias)
    return scaled(x, by_channel, projected(x, spatial_weight, spatial_bias).sigmoid(), merge, False)
