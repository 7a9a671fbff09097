"""The Triton kernels of efficient_channel_attention between its passes over the map; the symbols are reference.py's.

`saved` [N, 2 C] holds m | g, `grads` [N, C] dm, and `parts` what each program adds to the gradient of the weight, all
in the accumulation dtype. The convolution is a product with a band of a matrix, whose entries are loaded where a tap
lies: so a program adds the chunks of a channel's sum once, not once a tap. What lies outside the band is left out, not
multiplied by 0, which would spread NaN and infinity. Sums are taken in a fixed order: no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton import sum_of_chunks
from .._triton_gate_kernels import gate_grad, gate_of


@triton.jit
def _outputs_of_program(channels, BLOCK_OUTPUTS: tl.constexpr):
    """The sample and the first channel of this program of a grid (N * tiles)."""
    tiles = tl.cdiv(channels, BLOCK_OUTPUTS)
    return (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles * BLOCK_OUTPUTS


@triton.jit
def _channel_at(i, channels, CIRCULAR: tl.constexpr):
    """The channel at position i, which may lie up to C before the first, and whether there is one."""
    if CIRCULAR:
        return (i + channels) % channels, i < 2 * channels
    else:
        return i, (i >= 0) & (i < channels)


@triton.jit
def _band_product(value, there, tap, weight_ptr, taps):
    """weight[tap[o, i]] value[i] where position i is a tap of output o, 0 elsewhere."""
    in_band = there[None, :] & (tap >= 0) & (tap < taps)
    weight = tl.load(weight_ptr + tap, mask=in_band, other=0).to(value.dtype)
    return tl.where(in_band, weight * value[None, :], 0)


@triton.jit
def _grad_v(sums_ptr, saved_ptr, sample, channel, mask, samples, channels, chunks, GATE: tl.constexpr):
    """dv[n, c] = gate'(v) sum_k sums[k, n, c]"""
    at = sums_ptr + sample * channels + channel
    grad_gate = sum_of_chunks(at, tl.cast(samples, tl.int64) * channels, chunks, mask)
    gate = tl.load(saved_ptr + (2 * sample + 1) * channels + channel, mask=mask, other=0)
    return grad_gate * gate_grad(gate, GATE)


# m[n, c] = sum_k sums[k, n, c] / P;  g[n, c] = gate(sum_j weight[j] m[n, c + j - taps // 2])           grid (N * tiles)
@triton.jit(do_not_specialize=["samples", "channels", "pixels", "taps", "chunks"])
def efficient_channel_attention_gates(
    sums_ptr, weight_ptr, saved_ptr, samples, channels, pixels, taps, chunks,
    CIRCULAR: tl.constexpr, GATE: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, BLOCK_INPUTS: tl.constexpr,
):  # fmt: skip
    sample, first = _outputs_of_program(channels, BLOCK_OUTPUTS)
    output = first + tl.arange(0, BLOCK_OUTPUTS)
    end = tl.minimum(first + BLOCK_OUTPUTS, channels)
    reach = taps // 2
    row = saved_ptr + sample * 2 * channels
    total = tl.zeros([BLOCK_OUTPUTS, BLOCK_INPUTS], saved_ptr.dtype.element_ty)
    for start in range(first - reach, end + reach, BLOCK_INPUTS):
        i = start + tl.arange(0, BLOCK_INPUTS)
        channel, there = _channel_at(i, channels, CIRCULAR)
        at = sums_ptr + sample * channels + channel
        mean = sum_of_chunks(at, tl.cast(samples, tl.int64) * channels, chunks, there) / pixels
        tl.store(row + i, mean, mask=(i >= first) & (i < end))
        total += _band_product(mean, there, i[None, :] - output[:, None] + reach, weight_ptr, taps)
    tl.store(row + channels + output, gate_of(tl.sum(total, 1), GATE), mask=output < channels)


# dm[n, c] = sum_j weight[j] dv[n, c - j + taps // 2], where grads is given                             grid (N * tiles)
# parts[j, program] = sum_c dv[n, c] m[n, c + j - taps // 2] over the program's channels c, where parts is given
@triton.jit(do_not_specialize=["samples", "channels", "taps", "chunks"])
def efficient_channel_attention_gate_grads(
    sums_ptr, weight_ptr, saved_ptr, grads_ptr, parts_ptr, samples, channels, taps, chunks,
    CIRCULAR: tl.constexpr, GATE: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr, BLOCK_INPUTS: tl.constexpr, BLOCK_TAPS: tl.constexpr,
):  # fmt: skip
    sample, first = _outputs_of_program(channels, BLOCK_OUTPUTS)
    output = first + tl.arange(0, BLOCK_OUTPUTS)
    in_channels = output < channels
    end = tl.minimum(first + BLOCK_OUTPUTS, channels)
    reach = taps // 2
    if grads_ptr is not None:
        total = tl.zeros([BLOCK_OUTPUTS, BLOCK_INPUTS], saved_ptr.dtype.element_ty)
        for start in range(first - reach, end + reach, BLOCK_INPUTS):
            i = start + tl.arange(0, BLOCK_INPUTS)
            channel, there = _channel_at(i, channels, CIRCULAR)
            grad_v = _grad_v(sums_ptr, saved_ptr, sample, channel, there, samples, channels, chunks, GATE)
            total += _band_product(grad_v, there, output[:, None] - i[None, :] + reach, weight_ptr, taps)
        tl.store(grads_ptr + sample * channels + output, tl.sum(total, 1), mask=in_channels)
    if parts_ptr is not None:
        grad_v = _grad_v(sums_ptr, saved_ptr, sample, output, in_channels, samples, channels, chunks, GATE)
        for first_tap in range(0, taps, BLOCK_TAPS):
            tap = first_tap + tl.arange(0, BLOCK_TAPS)
            channel, there = _channel_at(output[:, None] + tap[None, :] - reach, channels, CIRCULAR)
            mask = there & in_channels[:, None] & (tap < taps)[None, :]
            mean = tl.load(saved_ptr + sample * 2 * channels + channel, mask=mask, other=0)
            part = tl.sum(grad_v[:, None] * mean, 0)
            at = tap.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
            tl.store(parts_ptr + at, part, mask=tap < taps)


# dweight[j] = sum_i parts[j, i]                                                                             grid (taps)
@triton.jit(do_not_specialize=["count"])
def efficient_channel_attention_weight_grad(parts_ptr, grad_weight_ptr, count, BLOCK: tl.constexpr):
    tap = tl.program_id(0)
    row = parts_ptr + tap.to(tl.int64) * count
    total = tl.zeros([BLOCK], parts_ptr.dtype.element_ty)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(row + i, mask=i < count, other=0)
    tl.store(grad_weight_ptr + tap, tl.sum(total, 0).to(grad_weight_ptr.dtype.element_ty))
