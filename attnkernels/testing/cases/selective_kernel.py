"""Cases of pooled_sum, select_branches and selective_kernel: branches apart and stacked, of real networks' sizes."""

from __future__ import annotations

import dataclasses
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
    name: str, count: int, n: int, c: int, h: int, w: int,
    *, stacked: bool = False, small: bool = True, any_alignment: bool = False, logits_scale: float = 2.0,
) -> dict[str, OpCase]:  # fmt: skip
    """The case of each of the three functions."""

    def pooled_sum(make: Maker):
        return (_branches(make, count, n, c, h, w, stacked),), {}

    def select_branches(make: Maker):
        return (_branches(make, count, n, c, h, w, stacked), make.normal(n, count, c, scale=logits_scale)), {}

    def selective_kernel(make: Maker):
        return (_branches(make, count, n, c, h, w, stacked),), {"attention": _attention(count)}

    return {
        "pooled_sum": OpCase("pooled_sum", name, pooled_sum, small),
        "select_branches": OpCase("select_branches", name, select_branches, small),
        "selective_kernel": OpCase("selective_kernel", name, selective_kernel, small, any_alignment=any_alignment),
    }


CASES = [
    *_cases("plain", 2, 2, 16, 5, 6, any_alignment=True).values(),
    *_cases("three", 3, 2, 12, 7, 7, any_alignment=True).values(),
    *_cases("eight", 8, 1, 5, 4, 3).values(),
    *_cases("one_pixel", 2, 3, 24, 1, 1).values(),
    *_cases("one_channel", 2, 2, 1, 9, 4).values(),
    *_cases("stacked", 2, 2, 10, 6, 5, stacked=True).values(),
    *_cases("stacked_four", 4, 2, 8, 7, 3, stacked=True, any_alignment=True).values(),
    *_cases("several_programs", 2, 1, 70, 17, 31).values(),
    *_cases("stacked_several_programs", 2, 2, 24, 9, 7, stacked=True).values(),
    *_cases("no_samples", 2, 0, 8, 4, 4).values(),
    *_cases("wide", 2, 2, 1024, 7, 7, small=False).values(),
    *_cases("tall", 2, 3, 64, 56, 56, small=False).values(),
    *_cases("odd_tall_stacked", 3, 2, 33, 57, 55, stacked=True, small=False).values(),
]


def _random(op: str, draw: random.Random, largest: int) -> OpCase:
    count, n = draw.randint(2, 8), draw.randint(0, 3)
    sizes = (draw.randint(1, largest) for _ in range(3))
    stacked, logits_scale = draw.choice((False, True)), draw.choice((0.1, 2.0))
    case = _cases("random", count, n, *sizes, stacked=stacked, logits_scale=logits_scale)[op]
    # The gradient to the logits is a difference of terms as large as the branches' gradients.
    return dataclasses.replace(case, through_output=(1 if stacked else count,))


# selective_kernel itself is left to fixed cases: a network between the two rounds on its own account.
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
        # Two passes forward, and two backward, of which the last needs no branch.
        reads={"branch 0": 2 + 1, "branch 1": 2 + 1, "grad_y": 2}, writes={"y": 1, "grad 0": 1, "grad 1": 1},
    )
    for name, layout in FORMATS.items()
]  # fmt: skip
