"""The records of the criss-cross functions: their operators and what else the library knows of them.

Layouts. The affinity operators work in the layout of `query`, the aggregate and attention operators in that of `value`
(channels_last or channels_last_3d where it is dense in that order and not contiguous, contiguous otherwise). Every
result has that layout; `log_sum_exp` is contiguous. Inputs may have any strides: a backend copies those it cannot read.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from .._autocast import matrix_product
from .._layout import empty
from .._op import FusedOp
from .._registry import Operator, Shape, accumulation_dtype
from . import reference
from .checks import check_affinity, check_aggregate, check_attention

# Bits of `needs` in the backward operators: of affinity_backward, attention_backward and aggregate_backward.
# csrc/criss_cross/criss_cross.h has the same.
NEEDS_QUERY, NEEDS_KEY, NEEDS_VALUE = 0b001, 0b010, 0b100
NEEDS_AFFINITY, NEEDS_AGGREGATED = 0b01, 0b10

LONGEST_LINE = 128  # that the CUDA kernels take as a whole


def _affinity_fake(query, key):
    samples, _, height, width = query.shape
    return empty((samples, height + width - 1, height, width), query, query)


def _affinity_backward_fake(grad_affinity, query, key, needs):
    return (
        empty(query.shape, query, query, needs & NEEDS_QUERY),
        empty(key.shape, query, query, needs & NEEDS_KEY),
    )


def _aggregate_fake(affinity, value):
    return empty(value.shape, value, value)


def _aggregate_backward_fake(grad_out, affinity, value, needs):
    return (
        empty(affinity.shape, value, value, needs & NEEDS_AFFINITY),
        empty(value.shape, value, value, needs & NEEDS_AGGREGATED),
    )


def _attention_fake(query, key, value):
    pixels = (value.shape[0], *value.shape[2:])
    return empty(value.shape, value, value), value.new_empty(pixels, dtype=accumulation_dtype(value.dtype))


def _attention_backward_fake(grad_out, query, key, value, out, log_sum_exp, needs):
    return (
        empty(query.shape, value, value, needs & NEEDS_QUERY),
        empty(key.shape, value, value, needs & NEEDS_KEY),
        empty(value.shape, value, value, needs & NEEDS_VALUE),
    )


def _line_products(channels: int, x: Shape) -> int:
    """Operations of a product over `channels` for each pixel of x with each pixel of its lines, itself on each."""
    return 2 * x[0] * channels * prod(x[2:]) * sum(x[2:])


def _affinity_flops(query: Shape, key: Shape, **out: Any) -> int:
    return _line_products(query[1], query)


def _affinity_backward_flops(grad: Shape, query: Shape, key: Shape, needs: int, **out: Any) -> int:
    return needs.bit_count() * _line_products(query[1], query)


def _aggregate_flops(affinity: Shape, value: Shape, **out: Any) -> int:
    return _line_products(value[1], value)


def _aggregate_backward_flops(grad: Shape, affinity: Shape, value: Shape, needs: int, **out: Any) -> int:
    return needs.bit_count() * _line_products(value[1], value)


def _attention_flops(query: Shape, key: Shape, value: Shape, **out: Any) -> int:
    return _line_products(query[1] + value[1], value)


def _attention_backward_flops(
    grad: Shape, query: Shape, key: Shape, value: Shape, result: Shape, log_sum_exp: Shape, needs: int, **out: Any
) -> int:
    of_energies = (needs & (NEEDS_QUERY | NEEDS_KEY)).bit_count()
    of_values = bool(needs & NEEDS_VALUE) + bool(of_energies)  # to the energies by way of the weights
    return of_energies * _line_products(query[1], value) + of_values * _line_products(value[1], value)


def _on_gpu(x: Tensor) -> tuple[str, ...]:
    """On an H100, 97 x 97, 64 and 512 channels, channels_last, forward of the attention by tiles: bfloat16 54 us by
    Triton, 77 by CUDA C++; float32, outside the tensor cores, 1179 and 228."""
    return ("triton", "cuda") if x.dtype.itemsize == 2 else ("cuda", "triton")


def _attention_on_gpu(value: Tensor) -> tuple[str, ...]:
    """As above, bfloat16: forward 29 us by CUDA C++, which takes whole lines, and 48 by Triton; backward 67 and 148.
    Lines of 129 and 257 pixels: forward 359 and 273."""
    if value.dtype.itemsize == 2 and max(value.shape[2:], default=0) <= LONGEST_LINE:
        return ("cuda", "triton")
    return _on_gpu(value)


def _example(*channels: int):
    def example(device: str) -> tuple[tuple, dict]:
        return tuple(torch.zeros(1, count, 4, 4, device=device) for count in channels), {}

    return example


# query, key [N, Cq, H, W] -> [N, H + W - 1, H, W]
AFFINITY = FusedOp(
    forward=Operator(
        "criss_cross_affinity(Tensor query, Tensor key) -> Tensor affinity", _affinity_fake, _affinity_flops
    ),
    backward=Operator(
        "criss_cross_affinity_backward(Tensor grad_affinity, Tensor query, Tensor key, int needs)"
        " -> (Tensor grad_query, Tensor grad_key)",
        _affinity_backward_fake,
        _affinity_backward_flops,
    ),
    formula=reference.affinities,
    check=check_affinity,
    autocast=matrix_product,
    on_gpu=_on_gpu,
    example=_example(8, 8),
)

# affinity [N, H + W - 1, H, W], value [N, C, H, W] -> [N, C, H, W]
AGGREGATE = FusedOp(
    forward=Operator(
        "criss_cross_aggregate(Tensor affinity, Tensor value) -> Tensor out", _aggregate_fake, _aggregate_flops
    ),
    backward=Operator(
        "criss_cross_aggregate_backward(Tensor grad_out, Tensor affinity, Tensor value, int needs)"
        " -> (Tensor grad_affinity, Tensor grad_value)",
        _aggregate_backward_fake,
        _aggregate_backward_flops,
    ),
    formula=reference.aggregated,
    check=check_aggregate,
    leader=1,
    autocast=matrix_product,
    on_gpu=_on_gpu,
    example=_example(7, 8),
)

# query, key [N, Cq, H, W], value [N, C, H, W], or all three [N, ., D, H, W];
# log_sum_exp [N, H, W] or [N, D, H, W] of the energies, in the accumulation dtype
ATTENTION = FusedOp(
    forward=Operator(
        "criss_cross_attention(Tensor query, Tensor key, Tensor value) -> (Tensor out, Tensor log_sum_exp)",
        _attention_fake,
        _attention_flops,
    ),
    backward=Operator(
        "criss_cross_attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out,"
        " Tensor log_sum_exp, int needs) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)",
        _attention_backward_fake,
        _attention_backward_flops,
    ),
    formula=reference.attended,
    check=check_attention,
    leader=2,
    autocast=matrix_product,
    on_gpu=_attention_on_gpu,
    example=_example(8, 8, 16),
)
