"""criss_cross_attention against the official formulation, mmcv's, and the best one that PyTorch has."""

from __future__ import annotations

import torch
from torch import Tensor

from . import Case, Shape, Work


def make(randn, shape: Shape, variant: str):
    n, h, w, cq, c = shape
    # Energies of standard deviation 1: a softmax over scaled-up noise would attend to single pixels.
    return (randn(n, cq, h, w) / cq**0.25, randn(n, cq, h, w) / cq**0.25, randn(n, c, h, w)), {}


def eager(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The official form: batches of columns and of rows, copied together, and matrix products of each."""
    n, _, h, w = query.shape

    def columns(x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2).reshape(n * w, -1, h)

    def rows(x: Tensor) -> Tensor:
        return x.permute(0, 2, 1, 3).reshape(n * h, -1, w)

    itself = torch.eye(h, dtype=torch.bool, device=query.device)
    column = torch.bmm(columns(query).transpose(1, 2), columns(key)).masked_fill(itself, float("-inf"))
    row = torch.bmm(rows(query).transpose(1, 2), rows(key)).view(n, h, w, w)
    weights = torch.softmax(torch.cat((column.view(n, w, h, h).transpose(1, 2), row), -1), -1)
    to_column = weights[..., :h].transpose(1, 2).reshape(n * w, h, h)
    to_row = weights[..., h:].reshape(n * h, w, w)
    from_column = torch.bmm(columns(value), to_column.transpose(1, 2)).view(n, w, -1, h).permute(0, 2, 3, 1)
    from_row = torch.bmm(rows(value), to_row.transpose(1, 2)).view(n, h, -1, w).permute(0, 2, 1, 3)
    return from_column + from_row


def einsum(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The form that mmcv took in place of its CUDA kernels."""
    height = query.shape[2]
    itself = torch.eye(height, dtype=torch.bool, device=query.device)[None, :, None, :]
    column = torch.einsum("nchw,ncgw->nhwg", query, key).masked_fill(itself, float("-inf"))
    row = torch.einsum("nchw,nchg->nhwg", query, key)
    weights = torch.softmax(torch.cat((column, row), -1), -1)
    from_column = torch.einsum("nhwg,ncgw->nchw", weights[..., :height], value)
    return from_column + torch.einsum("nhwg,nchg->nchw", weights[..., height:], value)


def batched(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The best that PyTorch can do: pixels of contiguous channels, and matrix products on views of them."""
    query, key, value = (x.permute(0, 2, 3, 1).contiguous() for x in (query, key, value))
    height = query.shape[1]
    itself = torch.eye(height, dtype=torch.bool, device=query.device)
    column = query.transpose(1, 2) @ key.permute(0, 2, 3, 1)  # [N, W, H, H]
    row = query @ key.transpose(2, 3)  # [N, H, W, W]
    weights = torch.softmax(torch.cat((column.masked_fill(itself, float("-inf")).transpose(1, 2), row), -1), -1)
    from_column = weights[..., :height].transpose(1, 2) @ value.transpose(1, 2)  # [N, W, H, C]
    return (from_column.transpose(1, 2) + weights[..., height:] @ value).permute(0, 3, 1, 2)


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
        "cpu": ("1x33x33x64x512", "1x65x65x64x512", "1x97x97x64x512", "1x129x129x64x512", "1x192x192x64x512"),
        "cuda": ("1x97x97x64x512", "4x97x97x64x512", "1x129x257x64x512"),
    },
    variants=("plain",),
    make=make,
    eager=eager,
    work=work,
    alternatives={"einsum": einsum, "batched": batched},
)
