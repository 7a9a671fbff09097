"""The Triton kernels of selective_kernel; the symbols are those of reference.py.

A branch U_m is [N, C, P] or, CHANNELS_LAST, [N, P, C], with P = H * W, of free strides: from sample to sample, and from
row to row, a row being a plane [P] or a pixel [C]. All branches of a call have the same strides. dV, V and the
gradients that are not stacked are dense. Partial sums are added in a fixed order: no atomics.
The *_MULTIPLE constants are powers of two known to divide a length or a stride; they are what allows wide loads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton import divisible, part_of_program, strided_tile_of, sum_of_chunks, tile_of


@triton.jit
def _store_grad_logits(totals, weights_ptr, grad_logits_ptr, sample, channel, mask, channels, M: tl.constexpr):
    """dz[n, m, c] = a[m] (da[m] - sum_k a[k] da[k]), where totals[m] is da[m]."""
    row = sample * M * channels + channel
    mean = totals[0] * 0
    for m in tl.static_range(M):
        mean += totals[m] * tl.load(weights_ptr + row + m * channels, mask=mask, other=0)
    for m in tl.static_range(M):
        weight = tl.load(weights_ptr + row + m * channels, mask=mask, other=0)
        grad = weight * (totals[m] - mean)
        tl.store(grad_logits_ptr + row + m * channels, grad.to(grad_logits_ptr.dtype.element_ty), mask=mask)


# s[n, c] = sum_m sum_p U_m[n, c, p] / P, or the sum over chunk k of the pixels as sums[k, n, c]
# grid (N * tiles, chunks)
@triton.jit(do_not_specialize=["samples", "channels", "pixels", "sample_stride", "row_stride", "steps"])
def selective_kernel_pool(
    b0, b1, b2, b3, b4, b5, b6, b7, sums_ptr, pooled_ptr,
    samples, channels, pixels, sample_stride, row_stride, steps,
    M: tl.constexpr, SAMPLE_MULTIPLE: tl.constexpr, ROW_MULTIPLE: tl.constexpr, LENGTH_MULTIPLE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    branches = (b0, b1, b2, b3, b4, b5, b6, b7)
    accumulation = sums_ptr.dtype.element_ty
    channels = divisible(channels, LENGTH_MULTIPLE if CHANNELS_LAST else 1)
    pixels = divisible(pixels, 1 if CHANNELS_LAST else LENGTH_MULTIPLE)
    sample, channel, chunk = part_of_program(samples, channels, False, BLOCK_CHANNELS)
    origin = sample * divisible(sample_stride, SAMPLE_MULTIPLE)
    row_stride = divisible(row_stride, ROW_MULTIPLE)
    total = tl.zeros([BLOCK_CHANNELS, BLOCK_PIXELS], accumulation)
    for step in range(steps):
        at, mask = strided_tile_of(
            channel, chunk * steps + step, channels, pixels, row_stride, CHANNELS_LAST, WIDE, BLOCK_PIXELS
        )
        for m in tl.static_range(M):
            total += tl.load(branches[m] + origin + at, mask=mask, other=0).to(accumulation)
    result = tl.sum(total, 1)
    if pooled_ptr is not None:
        mean = (result / pixels).to(pooled_ptr.dtype.element_ty)
        tl.store(pooled_ptr + sample * channels + channel, mean, mask=channel < channels)
    else:
        tl.store(sums_ptr + (chunk * samples + sample) * channels + channel, result, mask=channel < channels)


# s[i] = sum_k sums[k, i] / P                                                                      grid (tiles of N * C)
@triton.jit(do_not_specialize=["count", "pixels", "chunks"])
def selective_kernel_pool_finish(sums_ptr, pooled_ptr, count, pixels, chunks, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = sum_of_chunks(sums_ptr + i, count, chunks, i < count)
    tl.store(pooled_ptr + i, (total / pixels).to(pooled_ptr.dtype.element_ty), mask=i < count)


# a[n, :, c] = softmax(z[n, :, c]);  V[n, c, p] = sum_m a[n, m, c] U_m[n, c, p]                 grid (N * tiles, chunks)
@triton.jit(do_not_specialize=["samples", "channels", "pixels", "sample_stride", "row_stride", "steps"])
def selective_kernel_select(
    b0, b1, b2, b3, b4, b5, b6, b7, logits_ptr, weights_ptr, y_ptr,
    samples, channels, pixels, sample_stride, row_stride, steps,
    M: tl.constexpr, SAMPLE_MULTIPLE: tl.constexpr, ROW_MULTIPLE: tl.constexpr, LENGTH_MULTIPLE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    branches = (b0, b1, b2, b3, b4, b5, b6, b7)
    accumulation = weights_ptr.dtype.element_ty
    channels = divisible(channels, LENGTH_MULTIPLE if CHANNELS_LAST else 1)
    pixels = divisible(pixels, 1 if CHANNELS_LAST else LENGTH_MULTIPLE)
    sample, channel, chunk = part_of_program(samples, channels, True, BLOCK_CHANNELS)
    in_channels = channel < channels
    row = sample * M * channels + channel
    largest = tl.load(logits_ptr + row, mask=in_channels, other=0).to(accumulation)
    for m in tl.static_range(1, M):
        logit = tl.load(logits_ptr + row + m * channels, mask=in_channels, other=0).to(accumulation)
        largest = tl.maximum(largest, logit, propagate_nan=tl.PropagateNan.ALL)
    total = largest * 0
    for m in tl.static_range(M):
        total += tl.exp(tl.load(logits_ptr + row + m * channels, mask=in_channels, other=0).to(accumulation) - largest)
    origin = sample * divisible(sample_stride, SAMPLE_MULTIPLE)
    row_stride = divisible(row_stride, ROW_MULTIPLE)
    for m in tl.static_range(M):
        logit = tl.load(logits_ptr + row + m * channels, mask=in_channels, other=0).to(accumulation)
        tl.store(weights_ptr + row + m * channels, tl.exp(logit - largest) / total, mask=in_channels & (chunk == 0))
    for step in range(steps):
        at, mask = strided_tile_of(
            channel, chunk * steps + step, channels, pixels, row_stride, CHANNELS_LAST, WIDE, BLOCK_PIXELS
        )
        y = tl.zeros([BLOCK_CHANNELS, BLOCK_PIXELS], accumulation)
        for m in tl.static_range(M):
            # The weight again rather than M of them in registers: the logits are in the L1 cache.
            logit = tl.load(logits_ptr + row + m * channels, mask=in_channels, other=0).to(accumulation)
            weight = tl.exp(logit - largest) / total
            y += tl.load(branches[m] + origin + at, mask=mask, other=0).to(accumulation) * weight[:, None]
        at, mask = tile_of(channel, chunk * steps + step, channels, pixels, CHANNELS_LAST, WIDE, BLOCK_PIXELS)
        tl.store(y_ptr + sample * channels * pixels + at, y.to(y_ptr.dtype.element_ty), mask=mask)


# da[n, m, c] = sum_p dV[n, c, p] U_m[n, c, p], or over chunk k as sums[k, n, m, c];  dz_m = a_m (da_m - sum_k a_k da_k)
# grid (N * tiles, chunks)
@triton.jit(do_not_specialize=["samples", "channels", "pixels", "sample_stride", "row_stride", "steps"])
def selective_kernel_grad_logits(
    b0, b1, b2, b3, b4, b5, b6, b7, grad_y_ptr, weights_ptr, sums_ptr, grad_logits_ptr,
    samples, channels, pixels, sample_stride, row_stride, steps,
    M: tl.constexpr, SAMPLE_MULTIPLE: tl.constexpr, ROW_MULTIPLE: tl.constexpr, LENGTH_MULTIPLE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    branches = (b0, b1, b2, b3, b4, b5, b6, b7)
    accumulation = weights_ptr.dtype.element_ty
    channels = divisible(channels, LENGTH_MULTIPLE if CHANNELS_LAST else 1)
    pixels = divisible(pixels, 1 if CHANNELS_LAST else LENGTH_MULTIPLE)
    sample, channel, chunk = part_of_program(samples, channels, False, BLOCK_CHANNELS)
    in_channels = channel < channels
    origin = sample * divisible(sample_stride, SAMPLE_MULTIPLE)
    row_stride = divisible(row_stride, ROW_MULTIPLE)
    # Two tiles of sums fit in the registers; of more branches each tile's sum is taken at once.
    HELD: tl.constexpr = M == 2
    totals = (tl.zeros([BLOCK_CHANNELS, BLOCK_PIXELS] if HELD else [BLOCK_CHANNELS], accumulation),) * M
    for step in range(steps):
        at, mask = tile_of(channel, chunk * steps + step, channels, pixels, CHANNELS_LAST, WIDE, BLOCK_PIXELS)
        grad_y = tl.load(grad_y_ptr + sample * channels * pixels + at, mask=mask, other=0).to(accumulation)
        at, mask = strided_tile_of(
            channel, chunk * steps + step, channels, pixels, row_stride, CHANNELS_LAST, WIDE, BLOCK_PIXELS
        )
        added = ()
        for m in tl.static_range(M):
            value = tl.load(branches[m] + origin + at, mask=mask, other=0).to(accumulation)
            product = grad_y * value
            added = added + (totals[m] + (product if HELD else tl.sum(product, 1)),)
        totals = added
    reduced = ()
    for m in tl.static_range(M):
        reduced = reduced + (tl.sum(totals[m], 1) if HELD else totals[m],)
    if grad_logits_ptr is not None:
        _store_grad_logits(reduced, weights_ptr, grad_logits_ptr, sample, channel, in_channels, channels, M)
    else:
        for m in tl.static_range(M):
            at_sum = ((chunk * samples + sample) * M + m) * channels + channel
            tl.store(sums_ptr + at_sum, reduced[m], mask=in_channels)


# dz_m = a_m (da_m - sum_k a_k da_k) with da[n, m, c] = sum_k sums[k, n, m, c]                      grid (N, tiles of C)
@triton.jit(do_not_specialize=["samples", "channels", "chunks"])
def selective_kernel_grad_logits_finish(
    sums_ptr, weights_ptr, grad_logits_ptr, samples, channels, chunks, M: tl.constexpr, BLOCK: tl.constexpr
):
    sample = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = channel < channels
    totals = ()
    for m in tl.static_range(M):
        at = sums_ptr + (sample * M + m) * channels + channel
        totals = totals + (sum_of_chunks(at, tl.cast(samples, tl.int64) * M * channels, chunks, mask),)
    _store_grad_logits(totals, weights_ptr, grad_logits_ptr, sample, channel, mask, channels, M)


# dU_m[n, c, p] = a[n, m, c] dV[n, c, p] + ds[n, c] / P                                         grid (N * tiles, chunks)
@triton.jit(do_not_specialize=["samples", "channels", "pixels", "sample_stride", "row_stride", "steps"])
def selective_kernel_grad_branches(
    g0, g1, g2, g3, g4, g5, g6, g7, grad_y_ptr, weights_ptr, grad_pooled_ptr,
    samples, channels, pixels, sample_stride, row_stride, steps,
    M: tl.constexpr, SAMPLE_MULTIPLE: tl.constexpr, ROW_MULTIPLE: tl.constexpr, LENGTH_MULTIPLE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    grads = (g0, g1, g2, g3, g4, g5, g6, g7)
    accumulation = weights_ptr.dtype.element_ty
    channels = divisible(channels, LENGTH_MULTIPLE if CHANNELS_LAST else 1)
    pixels = divisible(pixels, 1 if CHANNELS_LAST else LENGTH_MULTIPLE)
    sample, channel, chunk = part_of_program(samples, channels, True, BLOCK_CHANNELS)
    in_channels = channel < channels
    origin = sample * divisible(sample_stride, SAMPLE_MULTIPLE)
    row_stride = divisible(row_stride, ROW_MULTIPLE)
    mean = tl.zeros([BLOCK_CHANNELS], accumulation)
    if grad_pooled_ptr is not None:
        mean = (
            tl.load(grad_pooled_ptr + sample * channels + channel, mask=in_channels, other=0).to(accumulation) / pixels
        )
    for step in range(steps):
        at, mask = tile_of(channel, chunk * steps + step, channels, pixels, CHANNELS_LAST, WIDE, BLOCK_PIXELS)
        grad_y = tl.load(grad_y_ptr + sample * channels * pixels + at, mask=mask, other=0).to(accumulation)
        at, mask = strided_tile_of(
            channel, chunk * steps + step, channels, pixels, row_stride, CHANNELS_LAST, WIDE, BLOCK_PIXELS
        )
        for m in tl.static_range(M):
            if grads[m] is not None:
                weight = tl.load(weights_ptr + (sample * M + m) * channels + channel, mask=in_channels, other=0)
                grad = grad_y * weight[:, None] + mean[:, None]
                tl.store(grads[m] + origin + at, grad.to(grads[m].dtype.element_ty), mask=mask)
