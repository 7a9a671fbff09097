"""selective_kernel against timm's SelectiveKernel: the branches stacked, summed, and weighted by a softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import Case, Shape, Work

REDUCED = 32  # timm's and the paper's least width of the attention network


def make(randn, shape: Shape, variant: str):
    m, n, c, h, w = shape
    reduce, select = randn(REDUCED, c) / c**0.5, randn(m * c, REDUCED) / REDUCED**0.5
    weights = {t: (reduce.to(t), select.to(t)) for t in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}

    def attention(pooled: Tensor) -> Tensor:
        first, second = weights[pooled.dtype]
        return F.linear(F.relu(F.linear(pooled, first)), second).unflatten(1, (m, c))

    # Channel means far from zero, so that the weights of the branches differ.
    return ([randn(n, c, h, w) + randn(n, c, 1, 1) for _ in range(m)], attention), {}


def eager(branches: list[Tensor], attention) -> Tensor:
    stacked = torch.stack(branches, 1)
    weights = torch.softmax(attention(stacked.sum(1).mean((2, 3))), 1)
    return (stacked * weights[:, :, :, None, None]).sum(1)


def unstacked(branches: list[Tensor], attention) -> Tensor:
    """The same without a stack, which no channels_last branch survives."""
    pooled = sum(branch.mean((2, 3)) for branch in branches)
    weights = torch.softmax(attention(pooled), 1)
    return sum(branch * weights[:, m, :, None, None] for m, branch in enumerate(branches))


def work(shape: Shape, variant: str, itemsize: int) -> Work:
    m, n, c, h, w = shape
    elements = n * c * h * w * itemsize
    # Forward: M branches in, one map out. Backward: dy and the branches in, M gradients out.
    return Work(elements * (m + 1), elements * (2 * m + 1))


CASE = Case(
    op="selective_kernel",
    axes="MxNxCxHxW",
    shapes={
        # skresnet50's sites at batch 8 and, on a GPU, 32
        "cpu": ("2x8x128x56x56", "2x8x256x28x28", "2x8x512x14x14", "2x1x128x56x56"),
        "cuda": ("2x32x128x56x56", "2x32x256x28x28", "2x8x128x56x56", "2x1x128x56x56"),
    },
    variants=("plain",),
    make=make,
    eager=eager,
    work=work,
    alternatives={"unstacked": unstacked},
)
