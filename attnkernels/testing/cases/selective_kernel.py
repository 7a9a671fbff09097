"""Cases of pooled_sum, select_branches and selective_kernel: branches apart and stacked, of real networks' sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from .._cases import Maker, OpCase


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


def _cases(name: str, count: int, n: int, c: int, h: int, w: int, *, stacked: bool = False, small: bool = True):
    def pooled_sum(make: Maker):
        return (_branches(make, count, n, c, h, w, stacked),), {}

    def select_branches(make: Maker):
        return (_branches(make, count, n, c, h, w, stacked), make.normal(n, count, c, scale=2.0)), {}

    def selective_kernel(make: Maker):
        return (_branches(make, count, n, c, h, w, stacked),), {"attention": _attention(count)}

    functions = (pooled_sum, select_branches, selective_kernel)
    return [OpCase(function.__name__, name, function, small) for function in functions]


CASES = [
    *_cases("plain", 2, 2, 16, 5, 6),
    *_cases("three", 3, 2, 12, 7, 7),
    *_cases("eight", 8, 1, 5, 4, 3),
    *_cases("one_pixel", 2, 3, 24, 1, 1),
    *_cases("one_channel", 2, 2, 1, 9, 4),
    *_cases("stacked", 2, 2, 10, 6, 5, stacked=True),
    *_cases("stacked_four", 4, 2, 8, 7, 3, stacked=True),
    *_cases("no_samples", 2, 0, 8, 4, 4),
    *_cases("wide", 2, 2, 1024, 7, 7, small=False),
    *_cases("tall", 2, 3, 64, 56, 56, small=False),
    *_cases("odd_tall_stacked", 3, 2, 33, 57, 55, stacked=True, small=False),
]
