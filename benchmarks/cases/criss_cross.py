"""criss_cross_attention against the einsum form that mmcv took in place of its CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from . import Case, Shape, Work


def make(randn, shape: Shape, variant: str):
    n, h, w, cq, c = shape
    # Energies of standard deviation 1: a softmax over scaled-up noise would attend to single pixels.
    return (randn(n, cq, h, w) / cq**0.25, randn(n, cq, h, w) / cq**0.25, randn(n, c, h, w)), {}


def eager(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    height = query.shape[2]
    itself = torch.eye(height, dtype=torch.bool, device=query.device)[None, :, None, :]
    column = torch.einsum("nchw,ncgw->nhwg", query, key).masked_fill(itself, float("-inf"))
    row = torch.einsum("nchw,nchg->nhwg", query, key)
    weights = torch.softmax(torch.cat((column, row), -1), -1)
    from_column = torch.einsum("nhwg,ncgw->nchw", weights[..., :height], value)
    return from_column + torch.einsum("nhwg,nchg->nchw", weights[..., height:], value)


def work(shape: Shape, variant: str, itemsize: int) -> Work:
    n, h, w, cq, c = shape
    pixels, pairs = n * h * w, n * h * w * (h + w)
    # Forward: q, k, v in, y out. Backward: those and dy in, dq, dk, dv out; computed: energies, dv, d weights, dq, dk.
    return Work(
        pixels * (2 * cq + 2 * c) * itemsize,
        pixels * (4 * cq + 4 * c) * itemsize,
        2 * pairs * (cq + c),
        2 * pairs * (3 * cq + 2 * c),
    )


CASE = Case(
    op="criss_cross_attention",
    axes="NxHxWxCqxC",
    shapes={
        # the feature maps of CCNet: 97 for crops of 769 pixels at stride 8
        "cpu": ("1x33x33x64x512", "1x65x65x64x512", "1x97x97x64x512"),
        "cuda": ("1x97x97x64x512", "4x97x97x64x512", "1x129x257x64x512"),
    },
    variants=("plain",),
    make=make,
    eager=eager,
    work=work,
)
