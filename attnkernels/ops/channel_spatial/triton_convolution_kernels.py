"""The Triton kernels of the convolution of cbam's statistics [N, 2, H, W] to logits or gates [N, H, W], and of its
gradients.

All numbers are in the accumulation dtype, but weight and bias and their gradients, which are in the map's. The weight's
planes are those of the statistics or, MEAN_FIRST, in the other order. Zeros lie around the planes: what a tap reaches
outside is masked. Sums are taken in a fixed order: no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton import sigmoid, sum_of_chunks


@triton.jit
def _shifted(plane_ptr, row, column, height, width, mask):
    """A plane's numbers at these places, 0 outside it."""
    inside = mask & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return tl.load(plane_ptr + row * width + column, mask=inside, other=0)


@triton.jit
def _grad_logit(grad, gate):
    """The gradient of a logit, by that of its sigmoid, the gate."""
    return grad * gate * (1 - gate)


# to[n, o, h, w] = bias + sum_p,i,j weight[p + o, i, j] from[n, p, h + i - k / 2, w + j - k / 2] or, REVERSED, of
# weight[p + o, k - 1 - i, k - 1 - j]; planes p of from, o of to. GATED makes it the sigmoid of that; where `gate` is
# given, the numbers taken from `from` are the gradients of its logits.                           grid (N * tiles, o)
@triton.jit(do_not_specialize=["height", "width", "taps"])
def channel_spatial_convolve(
    from_ptr, gate_ptr, weight_ptr, bias_ptr, to_ptr, height, width, taps,
    PLANES: tl.constexpr, RESULTS: tl.constexpr, REVERSED: tl.constexpr, MEAN_FIRST: tl.constexpr, GATED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    pixels = height * width
    tiles = tl.cdiv(pixels, BLOCK)
    sample, result = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(1)
    pixel = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < pixels
    row, column = pixel // width - taps // 2, pixel % width - taps // 2
    accumulation: tl.constexpr = from_ptr.dtype.element_ty
    total = tl.zeros([BLOCK], accumulation)
    if bias_ptr is not None:
        total += tl.load(bias_ptr).to(accumulation)
    for plane in tl.static_range(PLANES):
        origin = (sample * PLANES + plane) * pixels
        of_weight = plane + result
        if MEAN_FIRST:
            of_weight = 1 - of_weight
        for i in range(taps):
            for j in range(taps):
                tap = (taps - 1 - i) * taps + taps - 1 - j if REVERSED else i * taps + j
                weight = tl.load(weight_ptr + of_weight * taps * taps + tap).to(accumulation)
                value = _shifted(from_ptr + origin, row + i, column + j, height, width, mask)
                if gate_ptr is not None:
                    gate = _shifted(gate_ptr + origin, row + i, column + j, height, width, mask)
                    value = _grad_logit(value, gate)
                total += weight * value
    if GATED:
        total = sigmoid(total)
    tl.store(to_ptr + (sample * RESULTS + result) * pixels + pixel, total, mask=mask)


# parts[k, p, i, j] = sum over the pixels of the k-th chunk of all samples of dt[n, h, w] statistics[n, p, h + i - k /
# 2, w + j - k / 2], in the order of the weight's planes; dt is given, or by the gate's gradient
# grid (2 * k * k, chunks)
@triton.jit(do_not_specialize=["samples", "height", "width", "taps", "steps"])
def channel_spatial_weight_parts(
    grad_ptr, gate_ptr, statistics_ptr, parts_ptr, samples, height, width, taps, steps,
    MEAN_FIRST: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index: tl.constexpr = tl.int64 if WIDE else tl.int32  # a division of 64 bits is a call of many registers
    of_plane = taps * taps
    plane, tap = tl.program_id(0) // of_plane, tl.program_id(0) % of_plane
    if MEAN_FIRST:
        plane = 1 - plane
    up, left = tap // taps - taps // 2, tap % taps - taps // 2
    pixels = height * width
    total = tl.zeros([BLOCK], grad_ptr.dtype.element_ty)
    for step in range(steps):
        place = (tl.program_id(1).to(index) * steps + step) * BLOCK + tl.arange(0, BLOCK)
        mask = place < tl.cast(samples, index) * pixels
        sample = place // pixels
        pixel = (place - sample * pixels).to(tl.int32)
        grad = tl.load(grad_ptr + place, mask=mask, other=0)
        if gate_ptr is not None:
            grad = _grad_logit(grad, tl.load(gate_ptr + place, mask=mask, other=0))
        plane_ptr = statistics_ptr + (2 * sample + plane).to(tl.int64) * pixels
        total += grad * _shifted(plane_ptr, pixel // width + up, pixel % width + left, height, width, mask)
    at = parts_ptr + tl.program_id(1) * 2 * of_plane + tl.program_id(0)
    tl.store(at, tl.sum(total, 0))


# grad_weight[t] = sum_k parts[k, t]                                                                   grid (tiles)
@triton.jit(do_not_specialize=["weights", "chunks"])
def channel_spatial_weight_grad(parts_ptr, grad_weight_ptr, weights, chunks, BLOCK: tl.constexpr):
    weight = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = weight < weights
    total = sum_of_chunks(parts_ptr + weight, weights, chunks, mask)
    tl.store(grad_weight_ptr + weight, total.to(grad_weight_ptr.dtype.element_ty), mask=mask)
