"""Cases of pooled_sum, select_branches and selective_kernel: branches apart and stacked, of real networks' sizes."""

from __future__ import annotations

import functools
import random

import torch
from torch import Tensor

from .._budgeted import FORMATS, BudgetedCall, TrafficCall
from .._cases import Maker, OpCase, RandomCases


def _branches(make: Maker, count: int, n: int, c: int, h: int, w: int, stacked: bool) -> list[Tensor] | Tensor:
    if not stacked:
        return [make.feature_map(n, c, h, w, shift=0.3 * m) for m in range(count)]
    return make.feature_map(n, count * c, h, w, shift=0.3).view(n, count, c, h, w)  # as of one convolution


def _attention(count: int):
    """A network without parameters from pooled [N, C] to logits [N, M, C] in which every channel sees all others.

    Its logits are small: in the 16-bit formats pooled and logits are rounded on the way, which is the caller's choice
    and no error of the op, and must not show beside the one rounding of the result.
    """

    def attention(pooled: Tensor) -> Tensor:
        mixed = torch.tanh(pooled + pooled.sum(1, keepdim=True) / max(pooled.shape[1], 1))
        return torch.stack([(m - 0.5) / 32 * mixed for m in range(count)], 1)

    return attention


def _cases(
    name: str,
    count: int,
    n: int,
    c: int,
    h: int,
    w: int,
    *,
    stacked: bool = False,
    small: bool = True,
    logits_scale: float = 2.0,
    through_output: tuple[int, ...] = (),
) -> dict[str, OpCase]:
    """The case of each of the three functions."""

    def pooled_sum(make: Maker):
        return (_branches(make, count, n, c, h, w, stacked),), {}

    def select_branches(make: Maker):
        return (_branches(make, count, n, c, h, w, stacked), make.normal(n, count, c, scale=logits_scale)), {}

    def selective_kernel(make: Maker):
        return (_branches(make, count, n, c, h, w, stacked),), {"attention": _attention(count)}

    return {
        "pooled_sum": OpCase("pooled_sum", name, pooled_sum, small),
        "select_branches": OpCase("select_branches", name, select_branches, small, through_output),
        "selective_kernel": OpCase("selective_kernel", name, selective_kernel, small),
    }


CASES = [
    *_cases("plain", 2, 2, 16, 5, 6).values(),
    *_cases("three", 3, 2, 12, 7, 7).values(),
    *_cases("eight", 8, 1, 5, 4, 3).values(),
    *_cases("one_pixel", 2, 3, 24, 1, 1).values(),
    *_cases("one_channel", 2, 2, 1, 9, 4).values(),
    *_cases("stacked", 2, 2, 10, 6, 5, stacked=True).values(),
    *_cases("stacked_four", 4, 2, 8, 7, 3, stacked=True).values(),
    *_cases("no_samples", 2, 0, 8, 4, 4).values(),
    *_cases("wide", 2, 2, 1024, 7, 7, small=False).values(),
    *_cases("tall", 2, 3, 64, 56, 56, small=False).values(),
    *_cases("odd_tall_stacked", 3, 2, 33, 57, 55, stacked=True, small=False).values(),
]


def _random(op: str, draw: random.Random, largest: int) -> OpCase:
    count, n = draw.randint(2, 8), draw.randint(0, 3)
    sizes = (draw.randint(1, largest) for _ in range(3))
    stacked = draw.choice((False, True))
    # The gradient to the logits is a difference of terms as large as the branches' gradients.
    logits = 1 if stacked else count
    return _cases(
        "random", count, n, *sizes, stacked=stacked,
        logits_scale=draw.choice((0.1, 2.0)), through_output=(logits,),
    )[op]  # fmt: skip


RANDOM = {op: RandomCases(functools.partial(_random, op), largest=60) for op in ("pooled_sum", "select_branches")}

# The first and last stages of skresnet50.
COMPILED = [
    BudgetedCall(name, _cases(name, 2, *sizes, small=False)["selective_kernel"], layout)
    for name, sizes, layout in (
        ("nchw", (32, 128, 56, 56), "contiguous"),
        ("nhwc", (32, 128, 56, 56), "channels_last"),
        ("nchw_7x7", (1, 1024, 7, 7), "contiguous"),
    )
]

# Planes that end on 128-bit boundaries.
TRAFFIC = [
    TrafficCall(
        name, _cases("traffic", 2, 2, 64, 16, 16)["selective_kernel"], layout,
        inputs=("branch 0", "branch 1"), grads=("grad 0", "grad 1"),
    )
    for name, layout in FORMATS.items()
]  # fmt: skip
