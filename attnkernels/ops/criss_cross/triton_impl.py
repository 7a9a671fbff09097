"""The Triton backend of criss_cross: launchers with the operators' schemas, callable directly on tensors.

The kernels read channels_last maps: there a line's pixels are rows of a matrix whichever way the line runs. Contiguous
maps are copied to channels_last, and results back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from .._layout import channels_last_format, is_channels_last
from .._registry import accumulation_dtype
from .._triton import Launch, aligned, ceil_div, multiple, on_device_of, power_of_2
from . import triton_kernels as kernels
from .schema import NEEDS_AFFINITY, NEEDS_AGGREGATED, NEEDS_KEY, NEEDS_QUERY, NEEDS_VALUE

# tl.dot takes no less than 16 rows, columns and terms.
_LEAST = 16


class Axis(NamedTuple):
    """The lines along one axis; csrc/criss_cross/criss_cross.h has the same numbering."""

    length: int
    step: int
    skips_itself: bool


class Call(NamedTuple):
    """What fixes the launches of a call, which includes all that Triton specialises the kernels on (see `Launch`)."""

    samples: int
    extent: tuple[int, ...]  # (D,) H, W
    a_channels: int
    b_channels: int
    dtype: torch.dtype
    device: int | None
    aligned: bool

    @property
    def pixels(self) -> int:
        pixels = 1
        for size in self.extent:
            pixels *= size
        return pixels


def _axes(extent: tuple[int, ...]) -> list[Axis]:
    """The passes in order: the row last; axes of length 1 other than it have no keys."""
    axes, step = [], 1
    for position, size in enumerate(reversed(extent)):
        if position == 0 or size > 1:
            axes.append(Axis(size, step, position > 0))
        step *= size
    return axes[::-1]


class Blocks(NamedTuple):
    rows: int
    columns: int
    terms: int
    channels: int
    warps: int


@functools.lru_cache(maxsize=4096)
def _blocks(dtype: torch.dtype, length: int, channels: int) -> Blocks:
    """Block sizes of a matrix product along lines of `length` pixels.

    16-bit types run on tensor cores: 64 x 64 energies and 64 x 128 results are 96 registers for each of 128 threads.
    float32 without tensor cores, and float64, hold a quarter of that, as their operands take up registers too.
    """
    wide = dtype.itemsize == 2
    rows = max(_LEAST, power_of_2(length, 64 if wide else 32))
    return Blocks(
        rows, rows, 32 if wide else _LEAST, max(_LEAST, power_of_2(channels, 128 if wide else 32)), 4,
    )  # fmt: skip


def _as_channels_last(x: Tensor) -> Tensor:
    """x with its channels innermost."""
    return x.contiguous(memory_format=channels_last_format(x.dim()))


def _empty_channels_last(shape, like: Tensor, dtype: torch.dtype) -> Tensor:
    memory_format = channels_last_format(len(shape))
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format)


def _in_layout(x: Tensor, channels_last: bool) -> Tensor:
    """A result in the layout that the schema asks for."""
    return x if channels_last else x.contiguous()


def _call(a: Tensor, b: Tensor, *others: Tensor) -> Call:
    samples, channels, *extent = a.shape
    return Call(
        samples, tuple(extent), channels, b.shape[1], a.dtype, a.device.index, aligned(a, b, *others)
    )  # fmt: skip


class Place(NamedTuple):
    """Where a pass stands in its call: an axis, and whether another pass went before or follows."""

    axis: Axis
    first: bool
    last: bool


@functools.lru_cache(maxsize=4096)
def _places(extent: tuple[int, ...]) -> list[Place]:
    axes = _axes(extent)
    return [Place(axis, i == 0, i == len(axes) - 1) for i, axis in enumerate(axes)]


def _grid(call: Call, axis: Axis, rows: int, rest: int) -> tuple[int, int, int]:
    return call.samples * (call.pixels // axis.length), ceil_div(axis.length, rows), rest


@functools.lru_cache(maxsize=4096)
def _attention_launch(call: Call, place: Place) -> Launch:
    axis = place.axis
    blocks = _blocks(call.dtype, axis.length, call.b_channels)
    return Launch(
        kernels.criss_cross_attention_pass,
        _grid(call, axis, blocks.rows, ceil_div(call.b_channels, blocks.channels)),
        keep=call.aligned, warps=blocks.warps,
        QUERY_MULTIPLE=multiple(call.a_channels), VALUE_MULTIPLE=multiple(call.b_channels),
        SKIPS_ITSELF=axis.skips_itself, BLOCK_QUERIES=blocks.rows, BLOCK_KEYS=blocks.columns,
        BLOCK_TERMS=blocks.terms, BLOCK_CHANNELS=blocks.channels,
    )  # fmt: skip


def criss_cross_attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The operator `criss_cross_attention` (schema.py has its schema): out and log_sum_exp."""
    channels_last = is_channels_last(value)
    query, key, value = map(_as_channels_last, (query, key, value))
    call = _call(query, value, key)
    places = _places(call.extent)
    accumulation = accumulation_dtype(value.dtype)
    out = torch.empty_like(value)
    log_sum_exp = value.new_empty((call.samples, *call.extent), dtype=accumulation)
    count = log_sum_exp.numel()
    partial = _empty_channels_last(value.shape, value, accumulation) if len(places) > 1 else None
    before = None
    with on_device_of(value):
        for place in places:
            after = None if place.last else log_sum_exp.new_empty((2, count))
            _attention_launch(call, place)(
                query, key, value, before, after, partial, out if place.last else None, log_sum_exp,
                call.pixels, place.axis.length, place.axis.step, call.a_channels, call.b_channels, count,
            )  # fmt: skip
            before = after
    return _in_layout(out, channels_last), log_sum_exp


@functools.lru_cache(maxsize=4096)
def _delta_launch(call: Call) -> Launch:
    block = power_of_2(
        call.b_channels, 128
    )  # a row of 16-bit channels is two cache lines; 32 rows are 32 values a thread
    return Launch(
        kernels.criss_cross_delta, (ceil_div(call.samples * call.pixels, 32),), keep=call.aligned,
        MULTIPLE=multiple(call.b_channels), BLOCK_PIXELS=32, BLOCK_CHANNELS=block,
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _grad_launch(call: Call, place: Place, query_rows: bool, derivative: bool) -> Launch:
    axis = place.axis
    channels = call.a_channels if derivative else call.b_channels
    blocks = _blocks(call.dtype, axis.length, channels)
    return Launch(
        kernels.criss_cross_grad_pass,
        _grid(call, axis, blocks.rows, ceil_div(channels, blocks.channels)),
        keep=call.aligned, warps=blocks.warps,
        A_MULTIPLE=multiple(call.a_channels), B_MULTIPLE=multiple(call.b_channels),
        SKIPS_ITSELF=axis.skips_itself, FIRST=place.first, QUERY_ROWS=query_rows, DERIVATIVE=derivative,
        BLOCK_ROWS=blocks.rows, BLOCK_COLUMNS=blocks.columns, BLOCK_TERMS=blocks.terms, BLOCK_CHANNELS=blocks.channels,
    )  # fmt: skip


def _accumulated(like: Tensor, places: list[Place], launch_of: Callable[[Place], Any]) -> Tensor:
    """Runs `launch_of(place)(partial, result or None)` along every axis and returns the result, shaped like `like`."""
    result = torch.empty_like(like)
    accumulation = accumulation_dtype(like.dtype)
    partial = _empty_channels_last(like.shape, like, accumulation) if len(places) > 1 else None
    for place in places:
        launch_of(place)(partial, result if place.last else None)
    return result


def criss_cross_attention_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, log_sum_exp: Tensor, needs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `criss_cross_attention_backward`; `needs` is a sum of the NEEDS_ bits."""
    channels_last = is_channels_last(value)
    grad_out, query, key, value, out = map(_as_channels_last, (grad_out, query, key, value, out))
    log_sum_exp = log_sum_exp.contiguous()
    call = _call(query, value, key, grad_out, out, log_sum_exp)
    places = _places(call.extent)

    def grad(like, row_a, column_a, row_b, column_b, delta, query_rows, derivative):
        def launch_of(place):
            def launch(partial, result):
                _grad_launch(call, place, query_rows, derivative)(
                    row_a, column_a, row_b, column_b, log_sum_exp, delta, partial, result,
                    call.pixels, place.axis.length, place.axis.step, call.a_channels, call.b_channels,
                )  # fmt: skip

            return launch

        return _in_layout(_accumulated(like, places, launch_of), channels_last)

    grads = [value.new_empty(0)] * 3
    with on_device_of(value):
        if needs & (NEEDS_QUERY | NEEDS_KEY):
            delta = torch.empty_like(log_sum_exp)
            _delta_launch(call)(grad_out, out, delta, delta.numel(), call.b_channels)
            if needs & NEEDS_QUERY:
                grads[0] = grad(query, query, key, grad_out, value, delta, True, True)
            if needs & NEEDS_KEY:
                grads[1] = grad(key, key, query, value, grad_out, delta, False, True)
        if needs & NEEDS_VALUE:
            grads[2] = grad(value, key, query, None, grad_out, None, False, False)
    return tuple(grads)


@functools.lru_cache(maxsize=4096)
def _scores_launch(call: Call, place: Place) -> Launch:
    axis = place.axis
    blocks = _blocks(call.dtype, axis.length, call.a_channels)
    return Launch(
        kernels.criss_cross_scores_pass,
        _grid(call, axis, blocks.rows, ceil_div(axis.length, blocks.columns)),
        keep=call.aligned, warps=blocks.warps,
        MULTIPLE=multiple(call.a_channels), IS_COLUMN=axis.skips_itself, accumulation=_triton_type(call.dtype),
        BLOCK_QUERIES=blocks.rows, BLOCK_KEYS=blocks.columns, BLOCK_TERMS=blocks.terms,
    )  # fmt: skip


def _triton_type(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype is torch.float64 else tl.float32


def _scores(a: Tensor, b: Tensor, channels_last: bool) -> Tensor:
    """[N, H + W - 1, H, W]: dot products of a's pixels with those of b on their row and column."""
    call = _call(a, b)
    height, width = call.extent
    affinity = _empty_channels_last((call.samples, height + width - 1, height, width), a, a.dtype)
    with on_device_of(a):
        for place in _places(call.extent):
            _scores_launch(call, place)(
                a, b, affinity, call.pixels, place.axis.length, place.axis.step, call.a_channels, width, height
            )
    return _in_layout(affinity, channels_last)


@functools.lru_cache(maxsize=4096)
def _apply_launch(call: Call, place: Place, query_rows: bool) -> Launch:
    axis = place.axis
    blocks = _blocks(call.dtype, axis.length, call.a_channels)
    return Launch(
        kernels.criss_cross_apply_pass,
        _grid(call, axis, blocks.rows, ceil_div(call.a_channels, blocks.channels)),
        keep=call.aligned, warps=blocks.warps,
        MULTIPLE=multiple(call.a_channels), IS_COLUMN=axis.skips_itself, FIRST=place.first, QUERY_ROWS=query_rows,
        accumulation=_triton_type(call.dtype),
        BLOCK_ROWS=blocks.rows, BLOCK_COLUMNS=blocks.columns, BLOCK_CHANNELS=blocks.channels,
    )  # fmt: skip


def _apply(affinity: Tensor, x: Tensor, query_rows: bool, channels_last: bool) -> Tensor:
    """Sums of x's pixels weighted by the affinity: over the keys of each query or, not query_rows, the reverse."""
    call = _call(x, x, affinity)
    height, width = call.extent

    def launch_of(place):
        def launch(partial, result):
            _apply_launch(call, place, query_rows)(
                affinity, x, partial, result,
                call.pixels, place.axis.length, place.axis.step, call.a_channels, width, height,
            )  # fmt: skip

        return launch

    with on_device_of(x):
        return _in_layout(_accumulated(x, _places(call.extent), launch_of), channels_last)


def criss_cross_affinity(query: Tensor, key: Tensor) -> Tensor:
    """The operator `criss_cross_affinity`: [N, H + W - 1, H, W]."""
    return _scores(_as_channels_last(query), _as_channels_last(key), is_channels_last(query))


def criss_cross_affinity_backward(
    grad_affinity: Tensor, query: Tensor, key: Tensor, needs: int
) -> tuple[Tensor, Tensor]:
    """The operator `criss_cross_affinity_backward`; `needs` is a sum of the NEEDS_ bits."""
    channels_last = is_channels_last(query)
    grad_affinity = _as_channels_last(grad_affinity)
    grad_query = grad_key = query.new_empty(0)
    if needs & NEEDS_QUERY:
        grad_query = _apply(grad_affinity, _as_channels_last(key), True, channels_last)
    if needs & NEEDS_KEY:
        grad_key = _apply(grad_affinity, _as_channels_last(query), False, channels_last)
    return grad_query, grad_key


def criss_cross_aggregate(affinity: Tensor, value: Tensor) -> Tensor:
    """The operator `criss_cross_aggregate`: [N, C, H, W]."""
    return _apply(_as_channels_last(affinity), _as_channels_last(value), True, is_channels_last(value))


def criss_cross_aggregate_backward(
    grad_out: Tensor, affinity: Tensor, value: Tensor, needs: int
) -> tuple[Tensor, Tensor]:
    """The operator `criss_cross_aggregate_backward`; `needs` is a sum of the NEEDS_ bits."""
    channels_last = is_channels_last(value)
    grad_out = _as_channels_last(grad_out)
    grad_affinity = grad_value = value.new_empty(0)
    if needs & NEEDS_AFFINITY:
        grad_affinity = _scores(grad_out, _as_channels_last(value), channels_last)
    if needs & NEEDS_AGGREGATED:
        grad_value = _apply(_as_channels_last(affinity), grad_out, False, channels_last)
    return grad_affinity, grad_value
