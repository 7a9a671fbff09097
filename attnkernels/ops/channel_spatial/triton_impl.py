"""The Triton backend of the operators of cbam and scse: launchers with the operators' schemas, callable directly.

Each is one pass over the map, followed by `channel_spatial_finish` for results that the pass left in parts.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._layout import dense, empty
from .._registry import accumulation_dtype
from .._triton import Launch, aligned, ceil_div, multiple, on_device_of, power_of_2, tile, tile_along_channels, wide
from .._triton_gate import contiguous
from . import triton_kernels as kernels
from .operators import (
    MEANS_AND_MAXIMA,
    MEANS_AND_SHARED_MAXIMA,
    MERGES,
    NEEDS_CHANNEL,
    NEEDS_SPATIAL,
    NEEDS_WEIGHT,
    NEEDS_X,
    TIES,
    UNMARKED,
)
from .triton_convolution import channel_spatial_convolution as channel_spatial_convolution
from .triton_convolution import channel_spatial_convolution_backward as channel_spatial_convolution_backward
from .triton_layers import channel_spatial_layers as channel_spatial_layers
from .triton_layers import channel_spatial_layers_backward as channel_spatial_layers_backward

_PRODUCT, _MAX = MERGES.index("product"), MERGES.index("max")
_PLANES = torch.contiguous_format
# The optional tensors of `channel_spatial_grads`, in the order of its arguments.
_GIVEN = (
    "channel_gate", "spatial_gate", "grad_statistics", "statistics", "marks", "grad_pooled", "pooled", "pool_marks",
    "grad_spatial_gate", "weight",
)  # fmt: skip
# Values of a tile. Three tiles of accumulators, or two maps and the numbers of each pixel, leave room for no more.
_VALUES = 2048
# Values that a program of the finishing kernel holds of each row, and parts that it reads at a time.
_FINISH_VALUES, _FINISH_PARTS = 1024, 64


class Call(NamedTuple):
    """What fixes the launches of a call, which includes all that Triton specialises the kernels on (see `Launch`)."""

    samples: int
    channels: int
    pixels: int
    channels_last: bool
    dtype: torch.dtype
    device: int | None
    given: tuple[bool, ...]  # which of the optional tensors, and of the results, there are
    aligned: bool

    @classmethod
    def of(cls, x: Tensor, layout: torch.memory_format, *tensors: Tensor | None) -> Call:
        """The call on x, dense in that layout; `tensors` are all others that the kernel reads or writes."""
        samples, channels, height, width = x.shape
        return cls(
            samples, channels, height * width, layout is not _PLANES, x.dtype, x.device.index,
            tuple(tensor is not None for tensor in tensors), aligned(x, *tensors),
        )  # fmt: skip


class Pass(NamedTuple):
    """A launch over the map, and in how many parts it leaves what it sums over either axis."""

    launch: Launch
    over_pixels: int
    over_channels: int
    integers: tuple[int, ...]

    def __call__(self, *tensors: Tensor | None) -> None:
        self.launch(*tensors, *self.integers)


@functools.lru_cache(maxsize=4096)
def _pass(
    kernel: Any, call: Call, along_channels: bool, reduced: bool, last_first: bool, values: int = _VALUES,
    **constants: int,
) -> Pass:  # fmt: skip
    """The plan of a kernel that goes along that axis; `reduced` as in `tile_along_channels`."""
    of = call[:4]
    tiling = tile_along_channels(*of, values, reduced) if along_channels else tile(*of, values)
    launch = Launch(
        kernel, (call.samples * tiling.channel_tiles * tiling.chunks,), keep=call.aligned, **constants,
        CHANNEL_MULTIPLE=multiple(call.channels), PIXEL_MULTIPLE=multiple(call.pixels),
        CHANNELS_LAST=call.channels_last, WIDE=wide(call.channels, call.pixels), LAST_FIRST=last_first,
        WALKS_CHANNELS=along_channels, BLOCK_CHANNELS=tiling.block_channels, BLOCK_PIXELS=tiling.block_pixels,
    )  # fmt: skip
    integers = (*call[:3], tiling.chunks, tiling.steps)
    return Pass(launch, tiling.chunks, tiling.channel_tiles, integers)


@functools.lru_cache(maxsize=4096)
def _finishing(
    count: int, parts: int, rows: int, sums: int, gated: bool, marks: bool, share: bool, dtypes: tuple,
    device: int | None,
) -> Launch:  # fmt: skip
    """The plan of `_finish` for results of `count` numbers a row; all its tensors are new, so aligned."""
    block_parts = power_of_2(parts, _FINISH_PARTS)
    block = power_of_2(count, _FINISH_VALUES // block_parts)
    return Launch(
        kernels.channel_spatial_finish, (ceil_div(count, block),), ROWS=rows, SUMS=sums,
        MAXIMA=1 - sums if rows == 2 else -1, GATED=gated, SHARE=share, BLOCK_PARTS=block_parts, BLOCK=block,
    )  # fmt: skip


def _parts(result: Tensor | None, count: int) -> Tensor | None:
    """Where a pass leaves a result in so many parts: in the result itself, where there is one."""
    return result if result is None or count == 1 else result.new_empty((count, *result.shape))


def _finish(
    parts: Tensor | None, result: Tensor | None, part_marks: Tensor | None = None, marks: Tensor | None = None,
    rows: int = 1, sums: int = 0, gated: bool = False, share: bool = False,
) -> None:  # fmt: skip
    """Put parts [K, N, ...] together, of which row `sums` holds sums, to be made gates if they are `gated`, and the
    other one of two maxima."""
    if parts is None or parts is result:
        return
    count, samples, length = parts.shape[0], parts.shape[1], math.prod(parts.shape[2:]) // rows
    dtypes = parts.dtype, result.dtype
    device = parts.device.index
    launch = _finishing(samples * length, count, rows, sums, gated, marks is not None, share, dtypes, device)
    launch(parts, part_marks, result, marks, samples, length, count)


def _numbers(x: Tensor, *shape: int, wanted: bool | int = True) -> Tensor | None:
    return x.new_empty(shape, dtype=accumulation_dtype(x.dtype)) if wanted else None


def _or_empty(x: Tensor, *results: Tensor | None) -> tuple[Tensor, ...]:
    """Results as operators return them: [0] for None."""
    return tuple(x.new_empty(0, dtype=accumulation_dtype(x.dtype)) if each is None else each for each in results)


def channel_spatial_pool(
    x: Tensor, spatial_weight: Tensor | None, spatial_bias: Tensor | None, pools: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `channel_spatial_pool` (operators.py has its schema): means and maxima, marks, gate."""
    x, layout = dense(x)
    spatial_weight = contiguous(spatial_weight)
    samples, channels, height, width = x.shape
    rows = min(pools, MEANS_AND_MAXIMA)
    pooled = _numbers(x, samples, rows, channels)
    marks = _numbers(x, samples, channels, wanted=pools in (MEANS_AND_MAXIMA, MEANS_AND_SHARED_MAXIMA))
    gate = _numbers(x, samples, height, width, wanted=spatial_weight is not None)
    call = Call.of(x, layout, spatial_weight, spatial_bias, pooled if rows else None, marks, gate)
    along_channels = gate is not None and not (rows and call.channels_last)
    share = pools == MEANS_AND_SHARED_MAXIMA
    plan = _pass(kernels.channel_spatial_pool, call, along_channels, True, False, MAXIMA=rows == 2, SHARE=share)
    pooled_parts, marks_parts = _parts(pooled if rows else None, plan.over_pixels), _parts(marks, plan.over_pixels)
    gate_parts = _parts(gate, plan.over_channels)
    with on_device_of(x):
        plan(x, spatial_weight, spatial_bias, pooled_parts, marks_parts, gate_parts)
        _finish(pooled_parts, pooled, marks_parts, marks, rows=rows, share=share)
        _finish(gate_parts, gate, gated=True)
    return _or_empty(x, pooled, marks, gate)


def channel_spatial_statistics(x: Tensor, channel_gate: Tensor | None, ties: int) -> tuple[Tensor, Tensor]:
    """The operator `channel_spatial_statistics`: maxima and means over the channels, and marks."""
    x, layout = dense(x)
    channel_gate = contiguous(channel_gate)
    samples, _, height, width = x.shape
    statistics = _numbers(x, samples, 2, height, width)
    marks = _numbers(x, samples, height, width, wanted=ties != UNMARKED)
    share = ties == TIES.index("share")
    call = Call.of(x, layout, channel_gate, marks)
    last_first = channel_gate is not None  # after a pool
    plan = _pass(kernels.channel_spatial_statistics, call, True, True, last_first, SHARE=share)
    statistics_parts, marks_parts = _parts(statistics, plan.over_channels), _parts(marks, plan.over_channels)
    with on_device_of(x):
        plan(x, channel_gate, statistics_parts, marks_parts)
        _finish(statistics_parts, statistics, marks_parts, marks, rows=2, sums=1, share=share)
    return _or_empty(x, statistics, marks)


def channel_spatial_scale(
    x: Tensor, channel_gate: Tensor | None, spatial_gate: Tensor | None, merge: int, skip: int
) -> Tensor:
    """The operator `channel_spatial_scale`: y."""
    x, layout = dense(x)
    channel_gate, spatial_gate = contiguous(channel_gate), contiguous(spatial_gate)
    y = torch.empty_like(x, memory_format=layout)
    call = Call.of(x, layout, channel_gate, spatial_gate)
    merge = merge if all(call.given) else _PRODUCT
    last_first = merge != _PRODUCT or not all(call.given)  # after one pass over x, not two
    plan = _pass(
        kernels.channel_spatial_scale, call, not call.channels_last, False, last_first, 2 * _VALUES,
        MERGE=merge, SKIP=bool(skip),
    )  # fmt: skip
    with on_device_of(x):
        plan(x, channel_gate, spatial_gate, y)
    return y


def _grads(
    grad_y: Tensor, x: Tensor, layout: torch.memory_format, along_channels: bool, last_first: bool,
    results: tuple[Tensor | None, Tensor | None, Tensor | None], *, merge: int = _PRODUCT, skip: int = 0,
    share: int = 0, read_x: bool = True, **given: Tensor | None,
) -> None:  # fmt: skip
    """Launch `channel_spatial_grads`.

    Args:
        grad_y, x, layout: the maps, x dense in that layout.
        along_channels, last_first: the direction, and whether it begins at the end.
        results: the gradients of x; of each channel, [N, C] or the weight's [C]; and of each pixel.
        merge, skip, share: the options.
        read_x: whether anything is computed from x.
        given: the optional tensors, by their names in _GIVEN.
    """
    grad_y, read = grad_y.contiguous(memory_format=layout), x if read_x else None
    grad_x, grad_channel, grad_spatial = results
    optional = [contiguous(given.get(name)) for name in _GIVEN]
    call = Call.of(x, layout, grad_y, read, *optional, *results)
    plan = _pass(
        kernels.channel_spatial_grads, call, along_channels, grad_spatial is not None, last_first,
        MERGE=merge, SKIP=bool(skip), SHARE=bool(share),
    )  # fmt: skip
    if grad_channel is not None and grad_channel.dim() == 1:  # summed over the samples too
        channel_parts = _numbers(x, plan.over_pixels * call.samples, 1, call.channels)
    else:
        channel_parts = _parts(grad_channel, plan.over_pixels)
    spatial_parts = _parts(grad_spatial, plan.over_channels)
    with on_device_of(x):
        plan(grad_y, read, *optional, grad_x, channel_parts, spatial_parts)
        _finish(channel_parts, grad_channel)
        _finish(spatial_parts, grad_spatial)


def channel_spatial_grad_gates(
    grad_y: Tensor, x: Tensor, channel_gate: Tensor | None, spatial_gate: Tensor | None, merge: int, needs: int
) -> tuple[Tensor, Tensor]:
    """The operator `channel_spatial_grad_gates`; `needs` is a sum of NEEDS_CHANNEL and NEEDS_SPATIAL."""
    x, layout = dense(x)
    samples, channels, height, width = x.shape
    grad_channel = _numbers(x, samples, channels, wanted=needs & NEEDS_CHANNEL)
    grad_spatial = _numbers(x, samples, height, width, wanted=needs & NEEDS_SPATIAL)
    if needs:
        both = needs == NEEDS_CHANNEL | NEEDS_SPATIAL
        _grads(
            grad_y, x, layout, layout is _PLANES if both else needs == NEEDS_SPATIAL, False,
            (None, grad_channel, grad_spatial), channel_gate=channel_gate, spatial_gate=spatial_gate,
            merge=_PRODUCT if channel_gate is None or spatial_gate is None else merge,
        )  # fmt: skip
    return _or_empty(x, grad_channel, grad_spatial)


def channel_spatial_grad_channel_gate(
    grad_y: Tensor, x: Tensor, channel_gate: Tensor, spatial_gate: Tensor,
    grad_statistics: Tensor, statistics: Tensor, marks: Tensor, share: int,
) -> Tensor:  # fmt: skip
    """The operator `channel_spatial_grad_channel_gate`: [N, C]."""
    x, layout = dense(x)
    grad = _numbers(x, *x.shape[:2])
    _grads(
        grad_y, x, layout, layout is _PLANES, True, (None, grad, None), share=share,
        channel_gate=channel_gate, spatial_gate=spatial_gate,
        grad_statistics=grad_statistics, statistics=statistics, marks=marks,
    )  # fmt: skip
    return grad


def channel_spatial_grad_x(
    grad_y: Tensor, x: Tensor, channel_gate: Tensor | None, spatial_gate: Tensor | None,
    grad_statistics: Tensor | None, statistics: Tensor | None, marks: Tensor | None,
    grad_pooled: Tensor | None, pooled: Tensor | None, pool_marks: Tensor | None, skip: int, share: int,
) -> Tensor:  # fmt: skip
    """The operator `channel_spatial_grad_x`; x itself is read only to find maxima that share their gradient."""
    x, layout = dense(x)
    grad_x = torch.empty_like(x, memory_format=layout)
    last_first = channel_gate is None or marks is None  # after one pass over the maps, not two
    _grads(
        grad_y, x, layout, layout is _PLANES, last_first, (grad_x, None, None), skip=skip, share=share,
        read_x=bool(share) and not (marks is None and pool_marks is None),
        channel_gate=channel_gate, spatial_gate=spatial_gate,
        grad_statistics=grad_statistics, statistics=statistics, marks=marks,
        grad_pooled=grad_pooled, pooled=pooled, pool_marks=pool_marks,
    )  # fmt: skip
    return grad_x


def channel_spatial_grad_concurrent(
    grad_y: Tensor, x: Tensor, channel_gate: Tensor | None, spatial_gate: Tensor, grad_means: Tensor | None,
    grad_spatial_gate: Tensor, spatial_weight: Tensor, merge: int, needs: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The operator `channel_spatial_grad_concurrent`; `needs` is a sum of NEEDS_X and NEEDS_WEIGHT."""
    x, layout = dense(x)
    grad_x = empty(x.shape, x, x, needs & NEEDS_X)
    grad_weight = x.new_empty(x.shape[1] if needs & NEEDS_WEIGHT else 0)
    merge = _PRODUCT if channel_gate is None else merge
    if needs:
        results = grad_x if needs & NEEDS_X else None, grad_weight if needs & NEEDS_WEIGHT else None, None
        _grads(
            grad_y, x, layout, layout is _PLANES, True, results, merge=merge,
            read_x=bool(needs & NEEDS_WEIGHT) or merge == _MAX,
            channel_gate=channel_gate, spatial_gate=spatial_gate,
            grad_pooled=grad_means, grad_spatial_gate=grad_spatial_gate, weight=spatial_weight,
        )  # fmt: skip
    return grad_x, grad_weight
