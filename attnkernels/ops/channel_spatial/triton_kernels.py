"""The Triton kernels of the operators of cbam and scse; the symbols are those of reference.py.

x, dy, y and dx are dense in one layout: [N, C, P] or, CHANNELS_LAST, [N, P, C], with P = H * W. Numbers per channel
[N, C] and per pixel [N, P] are in the accumulation dtype, and an index or a count among `marks` is such a number too.

Every kernel over the map has the same walk: a program takes `steps` tiles [BLOCK_CHANNELS, BLOCK_PIXELS] of a sample,
along the channels (WALKS_CHANNELS) or along the pixels. What it sums or compares in that direction it holds, value by
value, until the end; in the other direction each tile gives a partial result. So sums over both axes take one read of
the map. Results over the pixels have `chunks` parts, part[j, n, c], those over the channels part[i, n, p]; where there
is one part it is the result, and else `channel_spatial_finish` puts them together in a fixed order: no atomics.
The *_MULTIPLE constants are powers of two known to divide a row's length; they are what allows wide loads. LAST_FIRST
takes the map from its end: what an earlier kernel read last is still in the L2 cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton import divisible, sigmoid, tile_of
from .operators import MERGES

_PRODUCT, _ADD = tl.constexpr(MERGES.index("product")), tl.constexpr(MERGES.index("add"))
_INTEGERS = ["samples", "channels", "pixels", "chunks", "steps"]


@triton.jit
def _channel_tiles(channels, steps, WALKS_CHANNELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):
    """Programs that share the channels of the same pixels."""
    return tl.cdiv(channels, BLOCK_CHANNELS * steps if WALKS_CHANNELS else BLOCK_CHANNELS)


@triton.jit
def _place(
    channels, chunks, steps, LAST_FIRST: tl.constexpr, WALKS_CHANNELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    """This program's sample, its place i along the channels and j along the pixels, and the channels and pixels of its
    first tile, of a grid (N * tiles * chunks)."""
    tiles = _channel_tiles(channels, steps, WALKS_CHANNELS, BLOCK_CHANNELS)
    program = tl.program_id(0)
    if LAST_FIRST:
        program = tl.num_programs(0) - 1 - program
    i, j = program % tiles, program // tiles % chunks
    channel, pixel = _indices(i, j, 0, steps, WALKS_CHANNELS, BLOCK_CHANNELS, BLOCK_PIXELS)
    return (program // tiles // chunks).to(tl.int64), i, j, channel, pixel


@triton.jit
def _indices(i, j, step, steps, WALKS_CHANNELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr):
    """The channels and the pixels of a step's tile."""
    if WALKS_CHANNELS:
        i = i * steps + step
    else:
        j = j * steps + step
    return i * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS), j * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)


@triton.jit
def _tile(
    i, j, step, steps, channels, pixels, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
    WALKS_CHANNELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    """The channels and pixels of a step's tile, its offsets into the sample, and its mask."""
    channel, pixel = _indices(i, j, step, steps, WALKS_CHANNELS, BLOCK_CHANNELS, BLOCK_PIXELS)
    block = j if WALKS_CHANNELS else j * steps + step
    at, mask = tile_of(channel, block, channels, pixels, CHANNELS_LAST, WIDE, BLOCK_PIXELS)
    return channel, pixel, at, mask


@triton.jit
def _load_row(ptr, row, i, length, OTHER: tl.constexpr, accumulation: tl.constexpr):
    """ptr[row, i] of rows of that length; OTHER past their end, and everywhere where there is no ptr."""
    if ptr is None:
        return tl.full(i.shape, OTHER, accumulation)
    else:
        return tl.load(ptr + row * length + i, mask=i < length, other=OTHER).to(accumulation)


@triton.jit
def _store_row(ptr, row, i, length, value):
    """ptr[row, i] = value, where there is a ptr: what makes values that are not stored is not compiled."""
    if ptr is not None:
        tl.store(ptr + row * length + i, value, mask=i < length)


@triton.jit
def _maximum_of(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _larger(value, mark, best, best_mark, SHARE: tl.constexpr):
    """The larger of `value` and `best`, which comes before it, and its mark; the first NaN is the largest. Of equal
    ones the mark is the first's or, SHARE, the sum. The start is -inf with mark 0: if all are -inf, the first is 0."""
    if SHARE:
        largest = _maximum_of(value, best)
        return largest, tl.where(value == largest, mark, 0) + tl.where(best == largest, best_mark, 0)
    else:
        larger = (value > best) | ((value != value) & (best == best))
        return tl.where(larger, value, best), tl.where(larger, mark, best_mark)


@triton.jit
def _maximum(value, mark, AXIS: tl.constexpr, SHARE: tl.constexpr):
    """The largest value along the axis and its mark: of equal ones the smallest mark or, SHARE, their sum."""
    best = tl.reduce(value, AXIS, _maximum_of, keep_dims=True)
    if SHARE:
        found = tl.sum(tl.where(value == best, mark, 0), AXIS)
    else:
        found = tl.min(tl.where((value == best) | (value != value), mark, float("inf")), AXIS)
    return tl.reduce(value, AXIS, _maximum_of), found


@triton.jit
def _marked(value, index, key, grad, SHARE: tl.constexpr):
    """A maximum's gradient where it goes: to the index that is `key` or, SHARE, to values equal to `key`."""
    if SHARE:
        return tl.where(value == key, grad, 0)
    else:
        return tl.where(index.to(key.dtype) == key, grad, 0)


@triton.jit
def _maximum_grad(
    grad_ptr, maxima_ptr, marks_ptr, row, sample, i, length, SHARE: tl.constexpr, accumulation: tl.constexpr
):
    """What `_marked` takes of maxima: the key and the gradient of each element. `row` is that of the first two."""
    grad = _load_row(grad_ptr, row, i, length, 0, accumulation)
    mark = _load_row(marks_ptr, sample, i, length, 1, accumulation)
    if SHARE:
        return _load_row(maxima_ptr, row, i, length, 0, accumulation), grad / mark
    else:
        return mark, grad


@triton.jit
def _sides(grad, a, b, MERGE: tl.constexpr):
    """grad u and grad v: the gradient of a merge on its way to a and to b."""
    if MERGE == _ADD:
        return grad, grad
    else:
        grad = tl.where(a == b, grad * 0.5, grad)
        return tl.where(a < b, 0, grad), tl.where(a > b, 0, grad)


@triton.jit
def _gate_of(logit, parts):
    """The gate or, if this is one of several parts of a logit, that part: `channel_spatial_finish` makes the gate."""
    if parts == 1:
        logit = sigmoid(logit)
    return logit


# a[n, c] = sum_p x / P, A[n, c] = max_p x, gs[n, p] = sigmoid(sum_c w[c] x + b)              grid (N * tiles * chunks)
@triton.jit(do_not_specialize=_INTEGERS)
def channel_spatial_pool(
    x_ptr, weight_ptr, bias_ptr, pooled_ptr, marks_ptr, gate_ptr, samples, channels, pixels, chunks, steps,
    MAXIMA: tl.constexpr, SHARE: tl.constexpr, CHANNEL_MULTIPLE: tl.constexpr, PIXEL_MULTIPLE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, LAST_FIRST: tl.constexpr, WALKS_CHANNELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    accumulation: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    ROWS: tl.constexpr = 2 if MAXIMA else 1
    channels = divisible(channels, CHANNEL_MULTIPLE)
    pixels = divisible(pixels, PIXEL_MULTIPLE)
    sample, i, j, channel, pixel = _place(
        channels, chunks, steps, LAST_FIRST, WALKS_CHANNELS, BLOCK_CHANNELS, BLOCK_PIXELS
    )
    channel_row, pixel_row = j * samples + sample, i * samples + sample
    parts = _channel_tiles(channels, steps, WALKS_CHANNELS, BLOCK_CHANNELS)
    bias = 0.0
    if bias_ptr is not None:
        bias = tl.where(i == 0, tl.load(bias_ptr).to(accumulation), 0)
    total = tl.zeros([BLOCK_CHANNELS, BLOCK_PIXELS], accumulation)
    best, best_mark = total - float("inf"), total
    weight = _load_row(weight_ptr, 0, channel, channels, 0, accumulation)
    for step in range(steps):
        channel, pixel, at, mask = _tile(
            i, j, step, steps, channels, pixels, CHANNELS_LAST, WIDE, WALKS_CHANNELS, BLOCK_CHANNELS, BLOCK_PIXELS
        )
        x = tl.load(x_ptr + sample * channels * pixels + at, mask=mask, other=0).to(accumulation)
        below = tl.where(mask, x, -float("inf"))
        mark = mask.to(accumulation) if SHARE else pixel.to(accumulation)[None, :]
        if WALKS_CHANNELS:
            weight = _load_row(weight_ptr, 0, channel, channels, 0, accumulation)
            total += x * weight[:, None]
            if pooled_ptr is not None:
                _store_row(pooled_ptr, channel_row * ROWS, channel, channels, tl.sum(x, 1) / pixels)
            if MAXIMA:
                found, mark = _maximum(below, mark, 1, SHARE)
                _store_row(pooled_ptr, channel_row * ROWS + 1, channel, channels, found)
                _store_row(marks_ptr, channel_row, channel, channels, mark)
        else:
            total += x
            best, best_mark = _larger(below, mark, best, best_mark, SHARE)
            if gate_ptr is not None:
                _store_row(gate_ptr, pixel_row, pixel, pixels, _gate_of(tl.sum(x * weight[:, None], 0) + bias, parts))
    if WALKS_CHANNELS:
        _store_row(gate_ptr, pixel_row, pixel, pixels, _gate_of(tl.sum(total, 0) + bias, parts))
    else:
        if pooled_ptr is not None:
            _store_row(pooled_ptr, channel_row * ROWS, channel, channels, tl.sum(total, 1) / pixels)
        if MAXIMA:
            found, mark = _maximum(best, best_mark, 1, SHARE)
            _store_row(pooled_ptr, channel_row * ROWS + 1, channel, channels, found)
            _store_row(marks_ptr, channel_row, channel, channels, mark)


# z = x gc, M[n, p] = max_c z, m[n, p] = sum_c z / C; along the channels                       grid (N * tiles * chunks)
@triton.jit(do_not_specialize=_INTEGERS)
def channel_spatial_statistics(
    x_ptr, channel_gate_ptr, statistics_ptr, marks_ptr, samples, channels, pixels, chunks, steps,
    SHARE: tl.constexpr, CHANNEL_MULTIPLE: tl.constexpr, PIXEL_MULTIPLE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr, LAST_FIRST: tl.constexpr, WALKS_CHANNELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    accumulation: tl.constexpr = statistics_ptr.dtype.element_ty
    channels = divisible(channels, CHANNEL_MULTIPLE)
    pixels = divisible(pixels, PIXEL_MULTIPLE)
    sample, i, j, channel, pixel = _place(
        channels, chunks, steps, LAST_FIRST, WALKS_CHANNELS, BLOCK_CHANNELS, BLOCK_PIXELS
    )
    total = tl.zeros([BLOCK_CHANNELS, BLOCK_PIXELS], accumulation)
    best, best_mark = total - float("inf"), total
    for step in range(steps):
        channel, pixel, at, mask = _tile(
            i, j, step, steps, channels, pixels, CHANNELS_LAST, WIDE, WALKS_CHANNELS, BLOCK_CHANNELS, BLOCK_PIXELS
        )
        z = tl.load(x_ptr + sample * channels * pixels + at, mask=mask, other=0).to(accumulation)
        z *= _load_row(channel_gate_ptr, sample, channel, channels, 1, accumulation)[:, None]
        total += z
        mark = mask.to(accumulation) if SHARE else channel.to(accumulation)[:, None]
        best, best_mark = _larger(tl.where(mask, z, -float("inf")), mark, best, best_mark, SHARE)
    found, mark = _maximum(best, best_mark, 0, SHARE)
    row = i * samples + sample
    _store_row(statistics_ptr, row * 2, pixel, pixels, found)
    _store_row(statistics_ptr, row * 2 + 1, pixel, pixels, tl.sum(total, 0) / channels)
    _store_row(marks_ptr, row, pixel, pixels, mark)


# out[n, r, i] = sum_k parts[k, n, r, i] in row r = SUMS, or its sigmoid, GATED; max_k in row r = MAXIMA (-1: none), and
# its mark # grid (tiles of N * I)
@triton.jit(do_not_specialize=["samples", "length", "parts"])
def channel_spatial_finish(
    parts_ptr, part_marks_ptr, out_ptr, marks_ptr, samples, length, parts, ROWS: tl.constexpr, SUMS: tl.constexpr,
    MAXIMA: tl.constexpr, GATED: tl.constexpr, SHARE: tl.constexpr, BLOCK_PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    accumulation: tl.constexpr = parts_ptr.dtype.element_ty
    count = tl.cast(samples, tl.int64) * length
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    in_count = at < count
    row = at // length * (ROWS * length) + at % length
    part = tl.arange(0, BLOCK_PARTS)
    total = tl.zeros([BLOCK_PARTS, BLOCK], accumulation)
    best, best_mark = total - float("inf"), total
    for first in range(0, parts, BLOCK_PARTS):
        mask = (first + part < parts)[:, None] & in_count[None, :]
        origin = (first + part)[:, None] * count
        here = parts_ptr + origin * ROWS + row[None, :]
        total += tl.load(here + SUMS * length, mask=mask, other=0)
        if MAXIMA >= 0:
            value = tl.load(here + MAXIMA * length, mask=mask, other=-float("inf"))
            mark = best_mark
            if part_marks_ptr is not None:
                mark = tl.load(part_marks_ptr + origin + at[None, :], mask=mask, other=0)
            best, best_mark = _larger(value, mark, best, best_mark, SHARE)
    result = tl.sum(total, 0)
    if GATED:
        result = sigmoid(result)
    tl.store(out_ptr + row + SUMS * length, result.to(out_ptr.dtype.element_ty), mask=in_count)
    if MAXIMA >= 0:
        found, mark = _maximum(best, best_mark, 0, SHARE)
        tl.store(out_ptr + row + MAXIMA * length, found, mask=in_count)
        if marks_ptr is not None:
            tl.store(marks_ptr + at, mark, mask=in_count)


# y = x gc gs, x gc + x gs or max(x gc, x gs), and + x with SKIP; no gate is 1                 grid (N * tiles * chunks)
@triton.jit(do_not_specialize=_INTEGERS)
def channel_spatial_scale(
    x_ptr, channel_gate_ptr, spatial_gate_ptr, y_ptr, samples, channels, pixels, chunks, steps,
    MERGE: tl.constexpr, SKIP: tl.constexpr, CHANNEL_MULTIPLE: tl.constexpr, PIXEL_MULTIPLE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, LAST_FIRST: tl.constexpr, WALKS_CHANNELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    accumulation: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    channels = divisible(channels, CHANNEL_MULTIPLE)
    pixels = divisible(pixels, PIXEL_MULTIPLE)
    sample, i, j, channel, pixel = _place(
        channels, chunks, steps, LAST_FIRST, WALKS_CHANNELS, BLOCK_CHANNELS, BLOCK_PIXELS
    )
    origin = sample * channels * pixels
    channel_gate = _load_row(channel_gate_ptr, sample, channel, channels, 1, accumulation)
    spatial_gate = _load_row(spatial_gate_ptr, sample, pixel, pixels, 1, accumulation)
    for step in range(steps):
        channel, pixel, at, mask = _tile(
            i, j, step, steps, channels, pixels, CHANNELS_LAST, WIDE, WALKS_CHANNELS, BLOCK_CHANNELS, BLOCK_PIXELS
        )
        if WALKS_CHANNELS:
            channel_gate = _load_row(channel_gate_ptr, sample, channel, channels, 1, accumulation)
        else:
            spatial_gate = _load_row(spatial_gate_ptr, sample, pixel, pixels, 1, accumulation)
        x = tl.load(x_ptr + origin + at, mask=mask, other=0).to(accumulation)
        if MERGE == _PRODUCT:
            y = x * channel_gate[:, None] * spatial_gate[None, :]
        elif MERGE == _ADD:
            y = x * (channel_gate[:, None] + spatial_gate[None, :])
        else:
            y = _maximum_of(x * channel_gate[:, None], x * spatial_gate[None, :])
        if SKIP:
            y += x
        tl.store(y_ptr + origin + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _numbers_of_pixels(
    spatial_gate_ptr, grad_statistics_ptr, statistics_ptr, marks_ptr, grad_gate_ptr, sample, pixel, channels, pixels,
    SHARE: tl.constexpr, accumulation: tl.constexpr,
):  # fmt: skip
    """What a gradient takes of each pixel: gs, dm / C, key and gradient of M, and dt = dgs gs (1 - gs)."""
    gate = _load_row(spatial_gate_ptr, sample, pixel, pixels, 1, accumulation)
    mean = _load_row(grad_statistics_ptr, 2 * sample + 1, pixel, pixels, 0, accumulation) / channels
    key, grad = _maximum_grad(
        grad_statistics_ptr, statistics_ptr, marks_ptr, 2 * sample, sample, pixel, pixels, SHARE, accumulation
    )
    grad_logit = _load_row(grad_gate_ptr, sample, pixel, pixels, 0, accumulation) * gate * (1 - gate)
    return gate[None, :], mean[None, :], key[None, :], grad[None, :], grad_logit[None, :]


@triton.jit
def _numbers_of_channels(
    channel_gate_ptr, grad_pooled_ptr, pooled_ptr, marks_ptr, weight_ptr, sample, channel, channels, pixels,
    SHARE: tl.constexpr, accumulation: tl.constexpr,
):  # fmt: skip
    """What a gradient takes of each channel: gc, da / P, key and gradient of A, and w."""
    ROWS: tl.constexpr = 1 if marks_ptr is None else 2
    gate = _load_row(channel_gate_ptr, sample, channel, channels, 1, accumulation)
    mean = _load_row(grad_pooled_ptr, ROWS * sample, channel, channels, 0, accumulation) / pixels
    key, grad = _maximum_grad(
        grad_pooled_ptr, pooled_ptr, marks_ptr, ROWS * sample + ROWS - 1, sample, channel, channels, SHARE, accumulation
    )
    weight = _load_row(weight_ptr, 0, channel, channels, 0, accumulation)
    return gate[:, None], mean[:, None], key[:, None], grad[:, None], weight[:, None]


# MERGE product: dz = dy gs + dm / C + dM [c in M], dx = dz gc, dgc[n, c] = sum_p x dz, dgs[n, p] = sum_c dy x gc
# others: dx = dy (gc u + gs v), dgc = sum_p dy x u, dgs = sum_c dy x v
# and dx + da / P + dA [p in A] + dt w, + dy with SKIP; where grad_gate (dgs of dt) is given, dw[n, c] = sum_p dt x in
# dgc's place
# Each result where it has a ptr; a gate that is not there is 1.                               grid (N * tiles * chunks)
@triton.jit(do_not_specialize=_INTEGERS)
def channel_spatial_grads(
    grad_y_ptr, x_ptr, channel_gate_ptr, spatial_gate_ptr, grad_statistics_ptr, statistics_ptr, marks_ptr,
    grad_pooled_ptr, pooled_ptr, pool_marks_ptr, grad_gate_ptr, weight_ptr,
    grad_x_ptr, grad_channel_ptr, grad_spatial_ptr, samples, channels, pixels, chunks, steps,
    MERGE: tl.constexpr, SKIP: tl.constexpr, SHARE: tl.constexpr, CHANNEL_MULTIPLE: tl.constexpr,
    PIXEL_MULTIPLE: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, LAST_FIRST: tl.constexpr,
    WALKS_CHANNELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    accumulation: tl.constexpr = tl.float64 if grad_y_ptr.dtype.element_ty == tl.float64 else tl.float32
    channels = divisible(channels, CHANNEL_MULTIPLE)
    pixels = divisible(pixels, PIXEL_MULTIPLE)
    sample, i, j, channel, pixel = _place(
        channels, chunks, steps, LAST_FIRST, WALKS_CHANNELS, BLOCK_CHANNELS, BLOCK_PIXELS
    )
    origin = sample * channels * pixels
    channel_row, pixel_row = j * samples + sample, i * samples + sample
    channel_gate, pool_mean, pool_key, pool_maximum, weight = _numbers_of_channels(
        channel_gate_ptr, grad_pooled_ptr, pooled_ptr, pool_marks_ptr, weight_ptr, sample, channel, channels, pixels,
        SHARE, accumulation,
    )  # fmt: skip
    spatial_gate, mean, key, maximum, grad_logit = _numbers_of_pixels(
        spatial_gate_ptr, grad_statistics_ptr, statistics_ptr, marks_ptr, grad_gate_ptr, sample, pixel, channels,
        pixels, SHARE, accumulation,
    )  # fmt: skip
    total = tl.zeros([BLOCK_CHANNELS, BLOCK_PIXELS], accumulation)
    for step in range(steps):
        channel, pixel, at, mask = _tile(
            i, j, step, steps, channels, pixels, CHANNELS_LAST, WIDE, WALKS_CHANNELS, BLOCK_CHANNELS, BLOCK_PIXELS
        )
        if WALKS_CHANNELS:
            channel_gate, pool_mean, pool_key, pool_maximum, weight = _numbers_of_channels(
                channel_gate_ptr, grad_pooled_ptr, pooled_ptr, pool_marks_ptr, weight_ptr, sample, channel, channels,
                pixels, SHARE, accumulation,
            )  # fmt: skip
        else:
            spatial_gate, mean, key, maximum, grad_logit = _numbers_of_pixels(
                spatial_gate_ptr, grad_statistics_ptr, statistics_ptr, marks_ptr, grad_gate_ptr, sample, pixel,
                channels, pixels, SHARE, accumulation,
            )  # fmt: skip
        grad_y = tl.load(grad_y_ptr + origin + at, mask=mask, other=0).to(accumulation)
        x = grad_y  # of which nothing is taken, where there is no x_ptr
        if x_ptr is not None:
            x = tl.load(x_ptr + origin + at, mask=mask, other=0).to(accumulation)
        if MERGE == _PRODUCT:
            grad_z = grad_y * spatial_gate
            if grad_statistics_ptr is not None:
                grad_z += mean + _marked(x * channel_gate, channel[:, None], key, maximum, SHARE)
            grad_x, to_channel, to_pixel = grad_z * channel_gate, x * grad_z, grad_y * x * channel_gate
        else:
            a, b = x * channel_gate, x * spatial_gate
            to_channel, to_pixel = _sides(grad_y * x, a, b, MERGE)
            grad_a, grad_b = _sides(grad_y, a, b, MERGE)
            grad_x = grad_a * channel_gate + grad_b * spatial_gate
        if grad_gate_ptr is not None:
            to_channel = grad_logit * x
        if grad_x_ptr is not None:
            if grad_pooled_ptr is not None:
                grad_x += pool_mean
            if pool_marks_ptr is not None:
                grad_x += _marked(x, pixel[None, :], pool_key, pool_maximum, SHARE)
            if grad_gate_ptr is not None:
                grad_x += grad_logit * weight
            if SKIP:
                grad_x += grad_y
            tl.store(grad_x_ptr + origin + at, grad_x.to(grad_x_ptr.dtype.element_ty), mask=mask)
        if WALKS_CHANNELS:
            total += to_pixel
            if grad_channel_ptr is not None:
                _store_row(grad_channel_ptr, channel_row, channel, channels, tl.sum(to_channel, 1))
        else:
            total += to_channel
            if grad_spatial_ptr is not None:
                _store_row(grad_spatial_ptr, pixel_row, pixel, pixels, tl.sum(to_pixel, 0))
    if WALKS_CHANNELS:
        if grad_spatial_ptr is not None:
            _store_row(grad_spatial_ptr, pixel_row, pixel, pixels, tl.sum(total, 0))
    elif grad_channel_ptr is not None:
        _store_row(grad_channel_ptr, channel_row, channel, channels, tl.sum(total, 1))
