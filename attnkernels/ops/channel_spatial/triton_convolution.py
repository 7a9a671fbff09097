"""The Triton backend of the convolution of cbam's statistics: launchers with the operators' schemas."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from .._triton import Launch, aligned, ceil_div, on_device_of, wide
from . import triton_convolution_kernels as kernels
from .operators import NEEDS_WEIGHT, NEEDS_X

# Pixels of a program: few, as the maps are small and many programs hide the latency of the taps' loads.
_PIXELS = 256
# Pixels that a program of the weight's gradient adds at a time, and chunks of them at most: a program adds up all.
_PIXELS_OF_WEIGHT, _CHUNKS = 1024, 64
_WEIGHTS = 128


class _Call(NamedTuple):
    """What fixes the launches, which includes all that Triton specialises them on (see `Launch`)."""

    samples: int
    height: int
    width: int
    taps: int
    dtype: torch.dtype
    device: int | None
    bias: bool
    aligned: bool

    @classmethod
    def of(cls, statistics: Tensor, weight: Tensor, *others: Tensor | None) -> _Call:
        samples, _, height, width = statistics.shape
        is_aligned = aligned(statistics, weight, *others)
        bias = others[0] is not None
        return cls(samples, height, width, weight.shape[1], statistics.dtype, statistics.device.index, bias, is_aligned)

    def convolution(self, planes: int, results: int) -> Launch:
        grid = self.samples * ceil_div(self.height * self.width, _PIXELS), results
        return Launch(
            kernels.channel_spatial_convolve, grid, keep=self.aligned,
            PLANES=planes, RESULTS=results, REVERSED=planes == 1, BLOCK=_PIXELS,
        )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _plan_forward(call: _Call) -> Launch:
    return call.convolution(2, 1)


class _Backward(NamedTuple):
    statistics: Launch
    chunks: int
    steps: int
    parts: Launch
    weight: Launch


@functools.lru_cache(maxsize=4096)
def _plan_backward(call: _Call) -> _Backward:
    blocks = ceil_div(call.samples * call.height * call.width, _PIXELS_OF_WEIGHT)
    steps = max(1, ceil_div(blocks, _CHUNKS))
    chunks = ceil_div(blocks, steps)
    weights = 2 * call.taps**2
    parts = Launch(
        kernels.channel_spatial_weight_parts, (weights, chunks), keep=call.aligned,
        WIDE=wide(call.samples, call.height * call.width), BLOCK=_PIXELS_OF_WEIGHT,
    )  # fmt: skip
    weight = Launch(
        kernels.channel_spatial_weight_grad, (ceil_div(weights, _WEIGHTS),), keep=call.aligned, BLOCK=_WEIGHTS
    )
    return _Backward(call.convolution(1, 2), chunks, steps, parts, weight)


def channel_spatial_convolution(statistics: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The operator `channel_spatial_convolution` (operators.py has its schema)."""
    statistics, weight = statistics.contiguous(), weight.contiguous()
    samples, _, height, width = statistics.shape
    logits = statistics.new_empty((samples, height, width))
    with on_device_of(statistics):
        convolve = _plan_forward(_Call.of(statistics, weight, bias))
        convolve(statistics, weight, bias, logits, height, width, weight.shape[1])
    return logits


def channel_spatial_convolution_backward(
    grad_logits: Tensor, statistics: Tensor, weight: Tensor, needs: int
) -> tuple[Tensor, Tensor]:
    """The operator `channel_spatial_convolution_backward`; `needs` is a sum of the NEEDS_ bits."""
    grad, statistics, weight = grad_logits.contiguous(), statistics.contiguous(), weight.contiguous()
    samples, _, height, width = statistics.shape
    taps = weight.shape[1]
    plan = _plan_backward(_Call.of(statistics, weight, grad))
    grad_statistics = torch.empty_like(statistics) if needs & NEEDS_X else statistics.new_empty(0)
    if not needs & NEEDS_WEIGHT:
        grad_weight = statistics.new_empty(0)
    elif plan.chunks:
        grad_weight = torch.empty_like(weight)
    else:
        grad_weight = torch.zeros_like(weight)
    with on_device_of(statistics):
        if needs & NEEDS_X:
            plan.statistics(grad, weight, None, grad_statistics, height, width, taps)
        if needs & NEEDS_WEIGHT and plan.chunks:
            parts = statistics.new_empty((plan.chunks, weight.numel()))
            plan.parts(grad, statistics, parts, samples, height, width, taps, plan.steps)
            plan.weight(parts, grad_weight, weight.numel(), plan.chunks)
    return grad_statistics, grad_weight
