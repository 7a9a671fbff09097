"""The Triton kernels that every channel gate has: the passes over its map, and the gates' functions.

With gates g[n, c] computed from the means of x, y = output_activation(x g + residual). x, y, the residual and their
gradients are dense in one layout: [N, C, P] or, CHANNELS_LAST, [N, P, C], with P = H * W. `saved` [N, columns] ends in
the gates and `grads` [N, grad_columns] begins with the gradients of the means, both in the accumulation dtype. What
lies between the passes is the op's own. Partial sums are added in a fixed order: no atomics.
The *_MULTIPLE constants are powers of two known to divide a row's length; they are what allows wide loads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._gate import GATES
from ._triton import divisible, part_of_program, relu, sigmoid, tile_of

_SIGMOID = tl.constexpr(GATES.index("sigmoid"))


@triton.jit
def gate_of(v, GATE: tl.constexpr):
    if GATE == _SIGMOID:
        return sigmoid(v)
    else:
        g = v / 6 + 0.5
        return tl.where(g < 0, 0, tl.where(g > 1, 1, g))


@triton.jit
def gate_grad(g, GATE: tl.constexpr):
    """gate'(v), by g = gate(v)."""
    if GATE == _SIGMOID:
        return g * (1 - g)
    else:
        return tl.where((g > 0) & (g < 1), 1.0, 0.0).to(g.dtype) / 6


@triton.jit
def _load_grad_z(grad_y_ptr, y_ptr, origin, at, mask, accumulation: tl.constexpr):
    """dz = dy, where the output activation passes it; y is given where there is one."""
    grad_z = tl.load(grad_y_ptr + origin + at, mask=mask, other=0).to(accumulation)
    if y_ptr is not None:
        grad_z = tl.where(tl.load(y_ptr + origin + at, mask=mask, other=0) <= 0, 0, grad_z)
    return grad_z


# sums[k, n, c] = sum over chunk k of the pixels of x[n, c, p], or of dz x grad_y is given   grid (N * tiles, chunks)
@triton.jit(do_not_specialize=["samples", "channels", "pixels", "steps"])
def gate_sums(
    x_ptr, grad_y_ptr, y_ptr, sums_ptr, samples, channels, pixels, steps,
    CHANNEL_MULTIPLE: tl.constexpr, PIXEL_MULTIPLE: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    accumulation: tl.constexpr = sums_ptr.dtype.element_ty
    channels = divisible(channels, CHANNEL_MULTIPLE)
    pixels = divisible(pixels, PIXEL_MULTIPLE)
    sample, channel, chunk = part_of_program(samples, channels, False, BLOCK_CHANNELS)
    origin = sample * channels * pixels
    total = tl.zeros([BLOCK_CHANNELS, BLOCK_PIXELS], accumulation)
    for step in range(steps):
        at, mask = tile_of(channel, chunk * steps + step, channels, pixels, CHANNELS_LAST, WIDE, BLOCK_PIXELS)
        value = tl.load(x_ptr + origin + at, mask=mask, other=0).to(accumulation)
        if grad_y_ptr is not None:
            value *= _load_grad_z(grad_y_ptr, y_ptr, origin, at, mask, accumulation)
        total += value
    tl.store(sums_ptr + (chunk * samples + sample) * channels + channel, tl.sum(total, 1), mask=channel < channels)


@triton.jit
def scale_chunk(
    x_ptr, residual_ptr, y_ptr, gate, sample, channel, chunk, channels, pixels, steps,
    CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, OUTPUT_RELU: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    """y = output_activation(x g + residual) at the channels and the chunk of pixels of a program, by its gates."""
    origin = sample * channels * pixels
    for step in range(steps):
        at, mask = tile_of(channel, chunk * steps + step, channels, pixels, CHANNELS_LAST, WIDE, BLOCK_PIXELS)
        y = tl.load(x_ptr + origin + at, mask=mask, other=0).to(gate.dtype) * gate[:, None]
        if residual_ptr is not None:
            y += tl.load(residual_ptr + origin + at, mask=mask, other=0).to(gate.dtype)
        if OUTPUT_RELU:
            y = relu(y)
        tl.store(y_ptr + origin + at, y.to(y_ptr.dtype.element_ty), mask=mask)


# y = output_activation(x g + residual)                                                        grid (N * tiles, chunks)
@triton.jit(do_not_specialize=["samples", "channels", "pixels", "columns", "steps"])
def gate_scale(
    x_ptr, residual_ptr, y_ptr, saved_ptr, samples, channels, pixels, columns, steps,
    CHANNEL_MULTIPLE: tl.constexpr, PIXEL_MULTIPLE: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
    OUTPUT_RELU: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    channels = divisible(channels, CHANNEL_MULTIPLE)
    pixels = divisible(pixels, PIXEL_MULTIPLE)
    sample, channel, chunk = part_of_program(samples, channels, True, BLOCK_CHANNELS)
    gate = tl.load(saved_ptr + (sample + 1) * columns - channels + channel, mask=channel < channels, other=0)
    scale_chunk(
        x_ptr, residual_ptr, y_ptr, gate, sample, channel, chunk, channels, pixels, steps,
        CHANNELS_LAST, WIDE, OUTPUT_RELU, BLOCK_PIXELS,
    )  # fmt: skip


# dx[n, c, p] = dz g[n, c] + dm[n, c] / P;  dresidual = dz                                     grid (N * tiles, chunks)
@triton.jit(do_not_specialize=["samples", "channels", "pixels", "columns", "grad_columns", "steps"])
def gate_input_grads(
    grad_y_ptr, y_ptr, saved_ptr, grads_ptr, grad_x_ptr, grad_residual_ptr,
    samples, channels, pixels, columns, grad_columns, steps,
    CHANNEL_MULTIPLE: tl.constexpr, PIXEL_MULTIPLE: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    accumulation: tl.constexpr = saved_ptr.dtype.element_ty
    channels = divisible(channels, CHANNEL_MULTIPLE)
    pixels = divisible(pixels, PIXEL_MULTIPLE)
    sample, channel, chunk = part_of_program(samples, channels, True, BLOCK_CHANNELS)
    in_channels = channel < channels
    if grad_x_ptr is not None:
        gate = tl.load(saved_ptr + (sample + 1) * columns - channels + channel, mask=in_channels, other=0)[:, None]
        grad_mean = tl.load(grads_ptr + sample * grad_columns + channel, mask=in_channels, other=0)[:, None] / pixels
    origin = sample * channels * pixels
    for step in range(steps):
        at, mask = tile_of(channel, chunk * steps + step, channels, pixels, CHANNELS_LAST, WIDE, BLOCK_PIXELS)
        grad_z = _load_grad_z(grad_y_ptr, y_ptr, origin, at, mask, accumulation)
        if grad_x_ptr is not None:
            tl.store(grad_x_ptr + origin + at, (grad_z * gate + grad_mean).to(grad_x_ptr.dtype.element_ty), mask=mask)
        if grad_residual_ptr is not None:
            tl.store(grad_residual_ptr + origin + at, grad_z.to(grad_residual_ptr.dtype.element_ty), mask=mask)
