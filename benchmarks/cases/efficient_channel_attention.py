"""efficient_channel_attention against the maths of timm's EcaModule in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from . import Case, Shape, Work

EPILOGUE = "residual+relu"


def make(randn, shape: Shape, variant: str):
    n, c, h, w, k = shape
    x = randn(n, c, h, w) + randn(n, c, 1, 1)  # channel means far from zero, so that the gates differ
    kwargs = {"residual": randn(n, c, h, w), "output_activation": "relu"} if variant == EPILOGUE else {}
    return (x, randn(1, 1, k) / k**0.5), kwargs


def eager(x: Tensor, weight: Tensor, residual=None, output_activation=None) -> Tensor:
    logits = F.conv1d(x.mean((2, 3)).view(x.shape[0], 1, -1), weight, padding=weight.shape[-1] // 2)
    y = x * logits.sigmoid().view(x.shape[0], -1, 1, 1)
    if residual is not None:
        y = y + residual
    return F.relu(y) if output_activation else y


def work(shape: Shape, variant: str, itemsize: int) -> Work:
    n, c, h, w, _ = shape
    elements = n * c * h * w
    # Forward: x in, y out. Backward: dy and x in, dx out. The epilogue adds: residual in; y in, dresidual out.
    epilogue = variant == EPILOGUE
    return Work(elements * (3 if epilogue else 2) * itemsize, elements * (5 if epilogue else 3) * itemsize)


CASE = Case(
    op="efficient_channel_attention",
    axes="NxCxHxWxk",
    shapes={  # ecaresnet50d's sites
        "cpu": ("8x256x56x56x5", "8x512x28x28x5", "8x1024x14x14x5", "8x2048x7x7x7", "1x256x56x56x5", "1x2048x7x7x7"),
        "cuda": (
            "8x256x56x56x5", "32x256x56x56x5", "8x512x28x28x5", "32x1024x14x14x5", "32x2048x7x7x7", "1x256x56x56x5",
        ),
    },
    variants=("plain", EPILOGUE),
    make=make,
    eager=eager,
    work=work,
)  # fmt: skip
