"""The Triton kernels of criss_cross; the symbols are those of reference.py.

Every map is channels_last, [N, P, channels] with P pixels. A pass runs along one axis: pixel i of a line is
start + i * step, the lines of a sample being numbered as in csrc/criss_cross/criss_cross.h. Passes follow each other,
each continuing from what the one before left in `partial`, in the accumulation dtype: no atomics.
The *_MULTIPLE constants are powers of two known to divide a number of channels; they are what allows wide loads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton import divisible


@triton.jit
def _pixels(line, i, length, step, pixels):
    """Positions in [N, P] of the pixels `i` of a line, the lines of all samples being numbered through."""
    lines = pixels // length
    sample = (line // lines).to(tl.int64)
    local = line % lines
    start = local // step * step * length + local % step
    return sample * pixels + start + i.to(tl.int64) * step


@triton.jit
def _product(
    a_ptr, a_pixel, a_mask, b_ptr, b_pixel, b_mask, channels,
    BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_TERMS: tl.constexpr, accumulation: tl.constexpr,
):  # fmt: skip
    """[a, b]: the dot products of pixels' channels."""
    total = tl.zeros([BLOCK_A, BLOCK_B], accumulation)
    for start in range(0, channels, BLOCK_TERMS):
        c = start + tl.arange(0, BLOCK_TERMS)
        a = tl.load(
            a_ptr + a_pixel[:, None] * channels + c[None, :], mask=a_mask[:, None] & (c < channels)[None, :], other=0
        )
        b = tl.load(
            b_ptr + b_pixel[None, :] * channels + c[:, None], mask=b_mask[None, :] & (c < channels)[:, None], other=0
        )
        total = tl.dot(a, b, total, input_precision="ieee", out_dtype=accumulation)
    return total


# out[p] = sum_k exp(e[k] - m) value[k] over the keys k of this and the earlier axes; the LAST pass divides by their sum
# e[k] = sum_c query[p] key[k]; m is the largest so far. grid (N * lines, query blocks, tiles of C)
@triton.jit(do_not_specialize=["pixels", "length", "step", "query_channels", "value_channels"])
def criss_cross_attention_pass(
    query_ptr, key_ptr, value_ptr, before_ptr, after_ptr, partial_ptr, out_ptr, log_sum_exp_ptr,
    pixels, length, step, query_channels, value_channels, count,
    QUERY_MULTIPLE: tl.constexpr, VALUE_MULTIPLE: tl.constexpr, SKIPS_ITSELF: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_TERMS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    # before, after: [2, N P] largest energy and sum of exponentials of the earlier passes, and with this one
    accumulation: tl.constexpr = log_sum_exp_ptr.dtype.element_ty
    query_channels = divisible(query_channels, QUERY_MULTIPLE)
    value_channels = divisible(value_channels, VALUE_MULTIPLE)
    i = tl.program_id(1) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    in_line = i < length
    pixel = _pixels(tl.program_id(0), i, length, step, pixels)
    c = tl.program_id(2) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    at = pixel[:, None] * value_channels + c[None, :]
    mask = in_line[:, None] & (c < value_channels)[None, :]
    if before_ptr is not None:
        largest = tl.load(before_ptr + pixel, mask=in_line, other=0)
        total = tl.load(before_ptr + count + pixel, mask=in_line, other=0)
        out = tl.load(partial_ptr + at, mask=mask, other=0)
    else:
        largest = tl.full([BLOCK_QUERIES], -float("inf"), accumulation)
        total = tl.zeros([BLOCK_QUERIES], accumulation)
        out = tl.zeros([BLOCK_QUERIES, BLOCK_CHANNELS], accumulation)
    for start in range(0, length, BLOCK_KEYS):
        j = start + tl.arange(0, BLOCK_KEYS)
        key_mask = j < length
        key_pixel = _pixels(tl.program_id(0), j, length, step, pixels)
        energy = _product(
            query_ptr, pixel, in_line, key_ptr, key_pixel, key_mask, query_channels,
            BLOCK_QUERIES, BLOCK_KEYS, BLOCK_TERMS, accumulation,
        )  # fmt: skip
        keys = key_mask[None, :]
        if SKIPS_ITSELF:
            keys = keys & (i[:, None] != j[None, :])
        energy = tl.where(keys, energy, -float("inf"))
        now = tl.maximum(largest, tl.max(energy, 1))
        base = tl.where(
            now == -float("inf"), 0, now
        )  # no key yet, or none that counts: exp(-inf - 0) is 0, as it must be
        weight = tl.exp(energy - base[:, None])
        rescale = tl.exp(largest - base)
        total = total * rescale + tl.sum(weight, 1)
        value = tl.load(
            value_ptr + key_pixel[:, None] * value_channels + c[None, :],
            mask=key_mask[:, None] & (c < value_channels)[None, :], other=0,
        )  # fmt: skip
        out = tl.dot(
            weight.to(value.dtype), value, out * rescale[:, None], input_precision="ieee", out_dtype=accumulation
        )
        largest = now
    first_tile = in_line & (tl.program_id(2) == 0)
    if out_ptr is not None:
        tl.store(out_ptr + at, (out / total[:, None]).to(out_ptr.dtype.element_ty), mask=mask)
        tl.store(log_sum_exp_ptr + pixel, largest + tl.log(total), mask=first_tile)
    else:
        tl.store(partial_ptr + at, out, mask=mask)
        tl.store(after_ptr + pixel, largest, mask=first_tile)
        tl.store(after_ptr + count + pixel, total, mask=first_tile)


# delta[p] = sum_c grad_out[p, c] out[p, c]                                                   grid (blocks of N P)
@triton.jit(do_not_specialize=["count", "channels"])
def criss_cross_delta(
    grad_out_ptr, out_ptr, delta_ptr, count, channels,
    MULTIPLE: tl.constexpr, BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    accumulation = delta_ptr.dtype.element_ty
    channels = divisible(channels, MULTIPLE)
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    total = tl.zeros([BLOCK_PIXELS, BLOCK_CHANNELS], accumulation)
    for start in range(0, channels, BLOCK_CHANNELS):
        c = start + tl.arange(0, BLOCK_CHANNELS)
        at = pixel[:, None] * channels + c[None, :]
        mask = (pixel < count)[:, None] & (c < channels)[None, :]
        grad_out = tl.load(grad_out_ptr + at, mask=mask, other=0).to(accumulation)
        total += grad_out * tl.load(out_ptr + at, mask=mask, other=0).to(accumulation)
    tl.store(delta_ptr + pixel, tl.sum(total, 1), mask=pixel < count)


# QUERY_ROWS: grad_query[p] = sum_k grad_energy[p, k] key[k]; otherwise grad_key[k] = sum_p grad_energy[p, k] query[p]
# or, without DERIVATIVE, grad_value[k] = sum_p probability[p, k] grad_out[p]
# probability = exp(e - log_sum_exp), grad_energy = probability (grad_out[p] . value[k] - delta[p])
# a, b: the two sides' maps whose products are the energies, and the derivatives; rows of the result are `row` pixels.
# grid (N * lines, row blocks, tiles of the result's channels)
@triton.jit(do_not_specialize=["pixels", "length", "step", "a_channels", "b_channels"])
def criss_cross_grad_pass(
    row_a_ptr, column_a_ptr, row_b_ptr, column_b_ptr, log_sum_exp_ptr, delta_ptr, partial_ptr, grad_ptr,
    pixels, length, step, a_channels, b_channels,
    A_MULTIPLE: tl.constexpr, B_MULTIPLE: tl.constexpr, SKIPS_ITSELF: tl.constexpr, FIRST: tl.constexpr,
    QUERY_ROWS: tl.constexpr, DERIVATIVE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_TERMS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    accumulation: tl.constexpr = log_sum_exp_ptr.dtype.element_ty
    a_channels = divisible(a_channels, A_MULTIPLE)
    b_channels = divisible(b_channels, B_MULTIPLE)
    channels = a_channels if DERIVATIVE else b_channels
    factor_ptr = column_a_ptr if DERIVATIVE else column_b_ptr
    i = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    in_rows = i < length
    row = _pixels(tl.program_id(0), i, length, step, pixels)
    c = tl.program_id(2) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    at = row[:, None] * channels + c[None, :]
    mask = in_rows[:, None] & (c < channels)[None, :]
    grad = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], accumulation)
    if not FIRST:
        grad += tl.load(partial_ptr + at, mask=mask, other=0)
    for start in range(0, length, BLOCK_COLUMNS):
        j = start + tl.arange(0, BLOCK_COLUMNS)
        in_columns = j < length
        column = _pixels(tl.program_id(0), j, length, step, pixels)
        energy = _product(
            row_a_ptr, row, in_rows, column_a_ptr, column, in_columns, a_channels,
            BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_TERMS, accumulation,
        )  # fmt: skip
        if QUERY_ROWS:
            log_sum_exp = tl.load(log_sum_exp_ptr + row, mask=in_rows, other=0)[:, None]
        else:
            log_sum_exp = tl.load(log_sum_exp_ptr + column, mask=in_columns, other=0)[None, :]
        pairs = in_rows[:, None] & in_columns[None, :]
        if SKIPS_ITSELF:
            pairs = pairs & (i[:, None] != j[None, :])
        weight = tl.where(pairs, tl.exp(energy - log_sum_exp), 0)
        if DERIVATIVE:
            derivative = _product(
                row_b_ptr, row, in_rows, column_b_ptr, column, in_columns, b_channels,
                BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_TERMS, accumulation,
            )  # fmt: skip
            if QUERY_ROWS:
                delta = tl.load(delta_ptr + row, mask=in_rows, other=0)[:, None]
            else:
                delta = tl.load(delta_ptr + column, mask=in_columns, other=0)[None, :]
            weight *= derivative - delta
        factor = tl.load(
            factor_ptr + column[:, None] * channels + c[None, :],
            mask=in_columns[:, None] & (c < channels)[None, :], other=0,
        )  # fmt: skip
        grad = tl.dot(weight.to(factor.dtype), factor, grad, input_precision="ieee", out_dtype=accumulation)
    if grad_ptr is not None:
        tl.store(grad_ptr + at, grad.to(grad_ptr.dtype.element_ty), mask=mask)
    else:
        tl.store(partial_ptr + at, grad, mask=mask)


@triton.jit
def _entries(query_pixel, query, key, width, height, IS_COLUMN: tl.constexpr):
    """Where the affinity [N, P, H + W - 1] holds the pair of a query and a key of its line."""
    entry = key
    if IS_COLUMN:
        entry = width + key - (key > query).to(key.dtype)
    return query_pixel * (height + width - 1) + entry


# affinity[p, entry of k] = sum_c a[p, c] b[k, c]                             grid (N * lines, query blocks, key blocks)
@triton.jit(do_not_specialize=["pixels", "length", "step", "channels", "width", "height"])
def criss_cross_scores_pass(
    a_ptr, b_ptr, affinity_ptr, pixels, length, step, channels, width, height,
    MULTIPLE: tl.constexpr, IS_COLUMN: tl.constexpr, accumulation: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_TERMS: tl.constexpr,
):  # fmt: skip
    channels = divisible(channels, MULTIPLE)
    i = tl.program_id(1) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    j = tl.program_id(2) * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    row = _pixels(tl.program_id(0), i, length, step, pixels)
    column = _pixels(tl.program_id(0), j, length, step, pixels)
    score = _product(
        a_ptr,
        row,
        i < length,
        b_ptr,
        column,
        j < length,
        channels,
        BLOCK_QUERIES,
        BLOCK_KEYS,
        BLOCK_TERMS,
        accumulation,
    )
    mask = (i < length)[:, None] & (j < length)[None, :]
    if IS_COLUMN:
        mask = mask & (i[:, None] != j[None, :])
    at = _entries(row[:, None], i[:, None], j[None, :], width, height, IS_COLUMN)
    tl.store(affinity_ptr + at, score.to(affinity_ptr.dtype.element_ty), mask=mask)


# QUERY_ROWS: out[p] = sum_k affinity[p, entry of k] map[k]     otherwise out[k] = sum_p affinity[p, entry of k] map[p]
# grid (N * lines, row blocks, tiles of channels)
@triton.jit(do_not_specialize=["pixels", "length", "step", "channels", "width", "height"])
def criss_cross_apply_pass(
    affinity_ptr, map_ptr, partial_ptr, out_ptr, pixels, length, step, channels, width, height,
    MULTIPLE: tl.constexpr, IS_COLUMN: tl.constexpr, FIRST: tl.constexpr, QUERY_ROWS: tl.constexpr,
    accumulation: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    channels = divisible(channels, MULTIPLE)
    i = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    in_rows = i < length
    row = _pixels(tl.program_id(0), i, length, step, pixels)
    c = tl.program_id(2) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    at = row[:, None] * channels + c[None, :]
    mask = in_rows[:, None] & (c < channels)[None, :]
    out = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], accumulation)
    if not FIRST:
        out += tl.load(partial_ptr + at, mask=mask, other=0)
    for start in range(0, length, BLOCK_COLUMNS):
        j = start + tl.arange(0, BLOCK_COLUMNS)
        in_columns = j < length
        column = _pixels(tl.program_id(0), j, length, step, pixels)
        pairs = in_rows[:, None] & in_columns[None, :]
        if IS_COLUMN:
            pairs = pairs & (i[:, None] != j[None, :])
        if QUERY_ROWS:
            entry = _entries(row[:, None], i[:, None], j[None, :], width, height, IS_COLUMN)
        else:
            entry = _entries(column[None, :], j[None, :], i[:, None], width, height, IS_COLUMN)
        weight = tl.load(affinity_ptr + entry, mask=pairs, other=0)
        factor = tl.load(
            map_ptr + column[:, None] * channels + c[None, :],
            mask=in_columns[:, None] & (c < channels)[None, :], other=0,
        )  # fmt: skip
        out = tl.dot(weight, factor, out, input_precision="ieee", out_dtype=accumulation)
    if out_ptr is not None:
        tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        tl.store(partial_ptr + at, out, mask=mask)
