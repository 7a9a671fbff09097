"""cbam against the maths of the modules that projects have, in plain PyTorch.

With rd = 0 it is the module of ultralytics: a single layer on the average alone. The plain variant has no normalisation
in the spatial gate, as most copies; the other one has a batch normalisation, as the official code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import Case, Shape, Work

NORMALISED = "normalised"


def _normalised(logits: Tensor) -> Tensor:
    return F.batch_norm(logits, None, None, training=True)


def make(randn, shape: Shape, variant: str):
    n, c, h, w, rd, k = shape
    x = randn(n, c, h, w) + randn(n, c, 1, 1)  # channel means far from zero, so that the gates differ
    width = rd or c
    reduce_weight = randn(rd, c, 1, 1) / c**0.5 if rd else None
    expand_bias = None if rd else randn(c)
    layers = reduce_weight, None, randn(c, width, 1, 1) / width**0.5, expand_bias
    kwargs = {"pool_types": ("avg", "max") if rd else ("avg",), "spatial_order": ("mean", "max")}
    if variant == NORMALISED:
        kwargs["spatial_norm"] = _normalised
    return (x, *layers, randn(1, 2, k, k) / k), kwargs


def eager(
    x: Tensor, reduce_weight, reduce_bias, expand_weight, expand_bias, spatial_weight, pool_types, spatial_order,
    spatial_norm=None,
) -> Tensor:  # fmt: skip
    pools = [F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)][: len(pool_types)]
    if reduce_weight is not None:
        pools = [F.relu(F.conv2d(pool, reduce_weight)) for pool in pools]
    x = x * sum(F.conv2d(pool, expand_weight, expand_bias) for pool in pools).sigmoid()
    statistics = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
    logits = F.conv2d(statistics, spatial_weight, padding=spatial_weight.shape[-1] // 2)
    return x * (logits if spatial_norm is None else spatial_norm(logits)).sigmoid()


def work(shape: Shape, variant: str, itemsize: int) -> Work:
    n, c, h, w, rd, k = shape
    elements, weights = n * c * h * w, 2 * c * rd + 2 * k * k if rd else c * c + c + 2 * k * k
    # Forward: x in, y out. Backward: dy and x in, dx out.
    return Work((elements * 2 + weights) * itemsize, (elements * 3 + 2 * weights) * itemsize)


CASE = Case(
    op="cbam",
    axes="NxCxHxWxrdxk",
    shapes={  # a ResNet-50's sites, then those of YOLO at 640 x 640
        "cpu": (
            "8x256x56x56x16x7", "8x512x28x28x32x7", "8x1024x14x14x64x7", "8x2048x7x7x128x7", "1x256x56x56x16x7",
            "1x128x80x80x0x7", "1x256x40x40x0x7", "1x512x20x20x0x7",
        ),
        "cuda": (
            "8x256x56x56x16x7", "32x256x56x56x16x7", "32x512x28x28x32x7", "32x1024x14x14x64x7", "32x2048x7x7x128x7",
            "16x128x80x80x0x7", "16x256x40x40x0x7", "16x512x20x20x0x7", "1x128x80x80x0x7",
        ),
    },
    variants=("plain", NORMALISED),
    make=make,
    eager=eager,
    work=work,
)  # fmt: skip
