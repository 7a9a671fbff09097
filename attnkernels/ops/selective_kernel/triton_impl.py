"""The Triton backend of selective_kernel: launchers with the operators' schemas, callable directly on tensors."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._layout import has_dense_rows, row_stride, rows_are_pixels, walk_format
from .._registry import accumulation_dtype
from .._triton import Launch, aligned, ceil_div, multiple, on_device_of, power_of_2, tile
from . import triton_kernels as kernels
from .checks import MAX_BRANCHES

# Values that a program of a finishing kernel holds: 4 for each of its 128 threads.
_BLOCK = 512


class Call(NamedTuple):
    """What fixes the launches of a call, which includes all that Triton specialises the kernels on (see `Launch`)."""

    samples: int
    channels: int
    pixels: int
    branches: int
    given: tuple[bool, ...]  # which of the gradients of branches, and of the optional tensors, there are
    sample_stride: int
    row_stride: int
    channels_last: bool
    dtype: torch.dtype
    device: int | None
    aligned: bool


class Stream(NamedTuple):
    """A launch of a kernel that streams feature maps, and how its pixels are split."""

    chunks: int
    steps: int
    launch: Launch


@functools.lru_cache(maxsize=4096)
def _stream(kernel, call: Call) -> Stream:
    tiling = tile(call.samples, call.channels, call.pixels, call.channels_last)
    row_multiple = multiple(call.row_stride)
    launch = Launch(
        kernel, (call.samples * tiling.channel_tiles, tiling.chunks), keep=call.aligned,
        M=call.branches, SAMPLE_MULTIPLE=multiple(call.sample_stride), ROW_MULTIPLE=row_multiple,
        LENGTH_MULTIPLE=multiple(call.channels if call.channels_last else call.pixels),
        CHANNELS_LAST=call.channels_last,
        WIDE=max(call.row_stride, call.pixels, call.channels) * max(call.channels, call.pixels) >= 2**31,
        BLOCK_CHANNELS=tiling.block_channels, BLOCK_PIXELS=tiling.block_pixels,
    )  # fmt: skip
    return Stream(tiling.chunks, tiling.steps, launch)


@functools.lru_cache(maxsize=4096)
def _finish_pool(call: Call) -> Launch:
    grid = (ceil_div(call.samples * call.channels, _BLOCK),)
    return Launch(kernels.selective_kernel_pool_finish, grid, keep=call.aligned, BLOCK=_BLOCK)


@functools.lru_cache(maxsize=4096)
def _finish_grad_logits(call: Call) -> Launch:
    block = power_of_2(call.channels, _BLOCK)
    grid = (call.samples, ceil_div(call.channels, block))
    return Launch(kernels.selective_kernel_grad_logits_finish, grid, keep=call.aligned, M=call.branches, BLOCK=block)


def _same_strides(branches: Sequence[Tensor], channels_last: bool) -> list[Tensor]:
    """The branches themselves where their rows are dense and equally strided, copies otherwise."""
    first = branches[0]
    if all(has_dense_rows(x, channels_last) and x.stride() == first.stride() for x in branches):
        return list(branches)
    return [x.contiguous(memory_format=walk_format(channels_last)) for x in branches]


def _call(like: Tensor, branches: Sequence[Tensor], channels_last: bool, given: tuple, *others: Tensor | None) -> Call:
    """`like` is a tensor of the branches' strides."""
    samples, channels, height, width = like.shape
    return Call(
        samples, channels, height * width, len(branches), given,
        like.stride(0), row_stride(like, channels_last), channels_last, like.dtype, like.device.index,
        aligned(*branches, *others),
    )  # fmt: skip


def _eight(branches: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    return (*branches, *(None,) * (MAX_BRANCHES - len(branches)))


def pooled_sum(branches: Sequence[Tensor]) -> Tensor:
    """The operator `pooled_sum` (schema.py has its schema): [N, C]."""
    channels_last = rows_are_pixels(branches[0])
    branches = _same_strides(branches, channels_last)
    x = branches[0]
    call = _call(x, branches, channels_last, ())
    plan = _stream(kernels.selective_kernel_pool, call)
    pooled = x.new_empty((call.samples, call.channels))
    sums = x.new_empty((plan.chunks, *pooled.shape), dtype=accumulation_dtype(x.dtype))
    with on_device_of(x):
        plan.launch(
            *_eight(branches), sums, None if plan.chunks > 1 else pooled,
            call.samples, call.channels, call.pixels, call.sample_stride, call.row_stride, plan.steps,
        )  # fmt: skip
        if plan.chunks > 1:
            _finish_pool(call)(sums, pooled, pooled.numel(), call.pixels, plan.chunks)
    return pooled


def select_branches(branches: Sequence[Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    """The operator `select_branches`: y [N, C, H, W] and the weights [N, M, C]."""
    channels_last = rows_are_pixels(branches[0])
    branches = _same_strides(branches, channels_last)
    x, logits = branches[0], logits.contiguous()
    call = _call(x, branches, channels_last, (), logits)
    plan = _stream(kernels.selective_kernel_select, call)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=walk_format(channels_last))
    weights = torch.empty_like(logits, dtype=accumulation_dtype(x.dtype))
    with on_device_of(x):
        plan.launch(
            *_eight(branches), logits, weights, y,
            call.samples, call.channels, call.pixels, call.sample_stride, call.row_stride, plan.steps,
        )  # fmt: skip
    return y, weights


def select_branches_grad_logits(grad_y: Tensor, branches: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The operator `select_branches_grad_logits`: [N, M, C] in the branches' dtype."""
    channels_last = rows_are_pixels(branches[0])
    branches = _same_strides(branches, channels_last)
    x, weights = branches[0], weights.contiguous()
    grad_y = grad_y.contiguous(memory_format=walk_format(channels_last))
    call = _call(x, branches, channels_last, (), grad_y, weights)
    plan = _stream(kernels.selective_kernel_grad_logits, call)
    grad_logits = torch.empty_like(weights, dtype=x.dtype)
    sums = weights.new_empty((plan.chunks, *weights.shape))
    with on_device_of(x):
        plan.launch(
            *_eight(branches), grad_y, weights, sums, None if plan.chunks > 1 else grad_logits,
            call.samples, call.channels, call.pixels, call.sample_stride, call.row_stride, plan.steps,
        )  # fmt: skip
        if plan.chunks > 1:
            _finish_grad_logits(call)(sums, weights, grad_logits, call.samples, call.channels, plan.chunks)
    return grad_logits


def select_branches_grad_branches(
    grad_y: Tensor, weights: Tensor, grad_pooled: Tensor | None, stacked: bool, channels_last: bool, needs: int
) -> list[Tensor]:
    """The operator `select_branches_grad_branches`: one stacked tensor, or M, [0] where bit m of `needs` is 0."""
    grad_y = grad_y.contiguous(memory_format=walk_format(channels_last))
    weights = weights.contiguous()
    grad_pooled = None if grad_pooled is None else grad_pooled.contiguous()
    count = weights.shape[1]
    samples, channels, height, width = grad_y.shape
    if stacked:
        if channels_last:
            result = grad_y.new_empty((samples, height, width, count, channels)).permute(0, 3, 4, 1, 2)
        else:
            result = grad_y.new_empty((samples, count, channels, height, width))
        grads, results = list(result.unbind(1)), [result]
    else:
        grads = [torch.empty_like(grad_y) if needs >> m & 1 else None for m in range(count)]
        results = [grad_y.new_empty(0) if grad is None else grad for grad in grads]
    wanted = [grad for grad in grads if grad is not None]
    if wanted:
        given = (*(grad is not None for grad in grads), grad_pooled is not None)
        call = _call(wanted[0], grads, channels_last, given, grad_y, weights, grad_pooled)
        plan = _stream(kernels.selective_kernel_grad_branches, call)
        with on_device_of(grad_y):
            plan.launch(
                *_eight(grads), grad_y, weights, grad_pooled,
                call.samples, call.channels, call.pixels, call.sample_stride, call.row_stride, plan.steps,
            )  # fmt: skip
    return results
