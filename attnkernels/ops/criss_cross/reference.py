"""Criss-cross attention in plain PyTorch: the specification of its functions (Huang et al. 2019, arXiv:1811.11721).

Pixel (h, w) attends to the H + W - 1 pixels of its row and its column, itself counted once:

    S(h, w) = {(h, j) for j in 0..W-1} and {(i, w) for i in 0..H-1, i != h}
    energy[k] = sum_c query[c, h, w] key[c, S(h, w)[k]]                 unscaled, as in the paper
    out[c, h, w] = sum_k softmax(energy)[k] value[c, S(h, w)[k]]

The affinity lists S(h, w) in that order: entry j < W is pixel j of the row, entry W + i is pixel i (i < h) or i + 1
(i >= h) of the column. In three dimensions S(d, h, w) holds the H + W + D - 2 distinct pixels of the three axis lines.

Backward, for probabilities p = exp(energy - log_sum_exp) and delta = sum_c grad_out out:

    grad_p[k] = sum_c grad_out[c] value[c, S[k]]        grad_energy = p (grad_p - delta)
    grad_value[c, S[k]] += p[k] grad_out[c]             grad_query[c] = sum_k grad_energy[k] key[c, S[k]]
    grad_key[c, S[k]] += grad_energy[k] query[c]

Energies and sums of half and bfloat16 inputs are held in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _accumulated(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _axes(rank: int) -> list[tuple[int, str, str]]:
    """Of each axis, the last one first: its dimension, the energies of a pixel with the pixels j of its line, and the
    sum of their values."""
    if rank == 4:
        return [(3, "nchw,nchj->nhwj", "nhwj,nchj->nchw"), (2, "nchw,ncjw->nhwj", "nhwj,ncjw->nchw")]
    return [
        (4, "ncdhw,ncdhj->ndhwj", "ndhwj,ncdhj->ncdhw"),
        (3, "ncdhw,ncdjw->ndhwj", "ndhwj,ncdjw->ncdhw"),
        (2, "ncdhw,ncjhw->ndhwj", "ndhwj,ncjhw->ncdhw"),
    ]


def _column_index(height: int, device: torch.device) -> Tensor:
    """[H-1, H]: the row of the i-th pixel of a column without pixel h."""
    i = torch.arange(height - 1, device=device)[:, None]
    return i + (i >= torch.arange(height, device=device))


def affinities(query: Tensor, key: Tensor) -> Tensor:
    """criss_cross_affinity of arguments that have been checked."""
    samples, _, height, width = query.shape
    q, k = _accumulated(query), _accumulated(key)
    row = torch.einsum("nchw,nchj->njhw", q, k)
    column = torch.einsum("nchw,ncjw->njhw", q, k)
    others = _column_index(height, query.device)[None, :, :, None].expand(samples, -1, -1, width)
    return torch.cat((row, column.gather(1, others)), 1).to(query.dtype)


def aggregated(affinity: Tensor, value: Tensor) -> Tensor:
    """criss_cross_aggregate of arguments that have been checked."""
    samples, _, height, width = value.shape
    weights, v = _accumulated(affinity), _accumulated(value)
    others = _column_index(height, value.device)[None, :, :, None].expand(samples, -1, -1, width)
    column = weights.new_zeros(samples, height, height, width).scatter(1, others, weights[:, width:])
    out = torch.einsum("njhw,nchj->nchw", weights[:, :width], v) + torch.einsum("njhw,ncjw->nchw", column, v)
    return out.to(value.dtype)


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """criss_cross_attention in what torch.jit.script compiles and both ONNX exporters know."""
    q, k, v = _accumulated(query), _accumulated(key), _accumulated(value)
    rank = q.dim()
    energies: list[Tensor] = []
    sizes: list[int] = []
    for axis, product, _ in _axes(rank):
        energy = torch.einsum(product, q, k)
        length = q.shape[axis]
        if axis != rank - 1:  # the pixel itself is counted on its row
            shape = [length if dimension == axis else 1 for dimension in range(2, rank)]
            index = torch.arange(length, device=q.device)
            own = (index[:, None] == index).view(shape + [length])
            energy = energy.masked_fill(own, -float("inf"))
        energies.append(energy)
        sizes.append(length)
    probabilities = torch.cat(energies, -1).softmax(-1).split(sizes, -1)
    parts: list[Tensor] = []
    for (_, _, weighted), probability in zip(_axes(rank), probabilities):  # noqa: B905  (strict= is not in TorchScript)
        parts.append(torch.einsum(weighted, probability, v))
    out = parts[0]
    for part in parts[1:]:
        out = out + part
    return out.to(value.dtype)
