"""squeeze_excite against the maths of timm's SEModule in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from . import Case, Shape, Work

EPILOGUE = "residual+relu"


def make(randn, shape: Shape, variant: str):
    n, c, h, w, rd = shape
    x = randn(n, c, h, w) + randn(n, c, 1, 1)  # channel means far from zero, so that the gates differ
    weights = (randn(rd, c, 1, 1) / c**0.5, randn(rd), randn(c, rd, 1, 1) / rd**0.5, randn(c))
    kwargs = {"residual": randn(n, c, h, w), "output_activation": "relu"} if variant == EPILOGUE else {}
    return (x, *weights), kwargs


def eager(
    x: Tensor, reduce_weight, reduce_bias, expand_weight, expand_bias, residual=None, output_activation=None
) -> Tensor:
    hidden = F.relu(F.conv2d(x.mean((2, 3), keepdim=True), reduce_weight, reduce_bias))
    y = x * F.conv2d(hidden, expand_weight, expand_bias).sigmoid()
    if residual is not None:
        y = y + residual
    return F.relu(y) if output_activation else y


def work(shape: Shape, variant: str, itemsize: int) -> Work:
    n, c, h, w, rd = shape
    elements, weights = n * c * h * w, 2 * c * rd + c + rd
    # Forward: x in, y out. Backward: dy and x in, dx out. The epilogue adds: residual in; y in, dresidual out.
    epilogue = variant == EPILOGUE
    return Work(
        (elements * (3 if epilogue else 2) + weights) * itemsize,
        (elements * (5 if epilogue else 3) + 2 * weights) * itemsize,
    )


CASE = Case(
    op="squeeze_excite",
    axes="NxCxHxWxrd",
    shapes={
        # seresnet50's sites at batch 8, and mobile ones at batch 1
        "cpu": (
            "8x256x56x56x16", "8x512x28x28x32", "8x1024x14x14x64", "8x2048x7x7x128",
            "1x72x28x28x24", "1x480x14x14x120", "1x960x7x7x240",
        ),
        "cuda": (
            "8x256x56x56x16", "32x256x56x56x16", "32x2048x7x7x128", "8x512x28x28x32", "32x1024x14x14x64",
            "1x256x56x56x16", "1x72x28x28x24", "1x960x7x7x240", "32x480x14x14x120",
        ),
    },
    variants=("plain", EPILOGUE),
    make=make,
    eager=eager,
    work=work,
)  # fmt: skip
