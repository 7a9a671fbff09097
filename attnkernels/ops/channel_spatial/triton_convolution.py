"""The Triton backend of the convolution of cbam's statistics: launchers with the operators' schemas."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from .._triton import Launch, aligned, ceil_div, on_device_of, wide
from .._triton_gate import contiguous
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
    dtype: torch.dtype  # of the weight; it decides the dtype of the statistics
    device: int | None
    mean_first: bool
    given: tuple[bool, ...]  # which of the optional tensors there are
    aligned: bool

    @classmethod
    def of(cls, statistics: Tensor, weight: Tensor, mean_first: int, *others: Tensor | None) -> _Call:
        samples, _, height, width = statistics.shape
        return cls(
            samples, height, width, weight.shape[3], weight.dtype, statistics.device.index, bool(mean_first),
            tuple(tensor is not None for tensor in others), aligned(statistics, weight, *others),
        )  # fmt: skip

    def convolution(self, planes: int, results: int, gated: bool) -> Launch:
        grid = self.samples * ceil_div(self.height * self.width, _PIXELS), results
        return Launch(
            kernels.channel_spatial_convolve, grid, keep=self.aligned, PLANES=planes, RESULTS=results,
            REVERSED=planes == 1, MEAN_FIRST=self.mean_first, GATED=gated, BLOCK=_PIXELS,
        )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _plan_forward(call: _Call, gated: bool) -> Launch:
    return call.convolution(2, 1, gated)


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
        MEAN_FIRST=call.mean_first, WIDE=wide(call.samples, call.height * call.width), BLOCK=_PIXELS_OF_WEIGHT,
    )  # fmt: skip
    weight = Launch(
        kernels.channel_spatial_weight_grad, (ceil_div(weights, _WEIGHTS),), keep=call.aligned, BLOCK=_WEIGHTS
    )
    return _Backward(call.convolution(1, 2, False), chunks, steps, parts, weight)


def channel_spatial_convolution(
    statistics: Tensor, weight: Tensor, bias: Tensor | None, mean_first: int, gate: int
) -> Tensor:
    """The operator `channel_spatial_convolution` (operators.py has its schema): logits or, with `gate`, gates."""
    statistics, weight = statistics.contiguous(), weight.contiguous()
    samples, _, height, width = statistics.shape
    result = statistics.new_empty((samples, height, width))
    with on_device_of(statistics):
        convolve = _plan_forward(_Call.of(statistics, weight, mean_first, bias), bool(gate))
        convolve(statistics, None, weight, bias, result, height, width, weight.shape[3])
    return result


def channel_spatial_convolution_backward(
    grad: Tensor, statistics: Tensor, weight: Tensor, gate: Tensor | None, mean_first: int, needs: int
) -> tuple[Tensor, Tensor]:
    """The operator `channel_spatial_convolution_backward`; `needs` is a sum of the NEEDS_ bits."""
    grad, statistics, weight, gate = map(contiguous, (grad, statistics, weight, gate))
    samples, _, height, width = statistics.shape
    taps = weight.shape[3]
    plan = _plan_backward(_Call.of(statistics, weight, mean_first, grad, gate))
    grad_statistics = torch.empty_like(statistics) if needs & NEEDS_X else statistics.new_empty(0)
    if not needs & NEEDS_WEIGHT:
        grad_weight = weight.new_empty(0)
    elif plan.chunks:
        grad_weight = weight.new_empty(weight.shape)
    else:
        grad_weight = weight.new_zeros(weight.shape)
    with on_device_of(statistics):
        if needs & NEEDS_X:
            plan.statistics(grad, gate, weight, None, grad_statistics, height, width, taps)
        if needs & NEEDS_WEIGHT and plan.chunks:
            parts = statistics.new_empty((plan.chunks, weight.numel()))
            plan.parts(grad, gate, statistics, parts, samples, height, width, taps, plan.steps)
            plan.weight(parts, grad_weight, weight.numel(), plan.chunks)
    return grad_statistics, grad_weight
