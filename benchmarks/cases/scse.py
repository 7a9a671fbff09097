"""scse against the maths of segmentation_models_pytorch's SCSEModule (add) and of ai-med's (max), in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import Case, Shape, Work


def make(randn, shape: Shape, variant: str):
    n, c, h, w, rd = shape
    x = randn(n, c, h, w) + randn(n, c, 1, 1)  # channel means far from zero, so that the gates differ
    layers = randn(rd, c, 1, 1) / c**0.5, randn(rd), randn(c, rd, 1, 1) / rd**0.5, randn(c)
    return (x, *layers, randn(1, c, 1, 1) / c**0.5, randn(1)), {"merge": variant}


def eager(
    x: Tensor, reduce_weight, reduce_bias, expand_weight, expand_bias, spatial_weight, spatial_bias, merge
) -> Tensor:
    hidden = F.relu(F.conv2d(F.adaptive_avg_pool2d(x, 1), reduce_weight, reduce_bias))
    by_channel = x * F.conv2d(hidden, expand_weight, expand_bias).sigmoid()
    by_pixel = x * F.conv2d(x, spatial_weight, spatial_bias).sigmoid()
    return by_channel + by_pixel if merge == "add" else torch.max(by_channel, by_pixel)


def work(shape: Shape, variant: str, itemsize: int) -> Work:
    n, c, h, w, rd = shape
    elements, weights = n * c * h * w, 2 * c * rd + rd + 2 * c + 1
    # Forward: x in, y out. Backward: dy and x in, dx out.
    return Work((elements * 2 + weights) * itemsize, (elements * 3 + 2 * weights) * itemsize)


CASE = Case(
    op="scse",
    axes="NxCxHxWxrd",
    shapes={  # the decoder of a U-Net on a ResNet-34, at 512 x 512
        "cpu": ("1x768x32x32x48", "1x384x64x64x24", "1x192x128x128x12", "1x128x256x256x8", "1x32x512x512x2"),
        "cuda": (
            "8x768x32x32x48", "8x384x64x64x24", "8x192x128x128x12", "8x128x256x256x8", "8x32x512x512x2",
            "1x768x32x32x48", "1x128x256x256x8",
        ),
    },
    variants=("add", "max"),
    make=make,
    eager=eager,
    work=work,
)  # fmt: skip
