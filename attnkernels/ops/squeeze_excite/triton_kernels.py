"""The Triton kernels of squeeze_excite; the symbols are those of reference.py.

The passes over the map that it shares with other gates are in _triton_gate_kernels.py, which also says what x and y
are. `saved` [N, columns] holds s | u | g and `grads`, of the same shape, their gradients ds P | du | dv, all in the
accumulation dtype; without reduce_weight there is no u. Partial sums are added in a fixed order: no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton import divisible, part_of_program, sum_of_chunks
from .._triton_gate_kernels import gate_grad, gate_of, scale_chunk
from .._triton_layers import IDENTITY, activation, activation_grad, layer_place, load_weight, product_tile

_IDENTITY = tl.constexpr(IDENTITY)


@triton.jit
def _sum_of_chunks(sums_ptr, sample, channel, mask, samples, channels, chunks):
    """Sum over the chunks of sums [chunks, N, C], in order, at [sample, channel]."""
    at = sums_ptr + sample.to(tl.int64)[:, None] * channels + channel[None, :]
    return sum_of_chunks(at, tl.cast(samples, tl.int64) * channels, chunks, mask)


# out[n, o] = f(sum_i weight[o, i] in[n, i] + bias[o])                        grid (sample tiles * output tiles)
# in is the mean, from sums (kept in column 0 of saved), or activation(u), from saved; f is the gate or the identity.
@triton.jit(
    do_not_specialize=["samples", "inputs", "outputs", "pixels", "chunks", "columns", "in_column", "out_column"]
)
def squeeze_excite_layer(
    sums_ptr, saved_ptr, weight_ptr, bias_ptr,
    samples, inputs, outputs, pixels, chunks, columns, in_column, out_column,
    INPUT_MULTIPLE: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr, GATE: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, BLOCK_INPUTS: tl.constexpr,
):  # fmt: skip
    accumulation: tl.constexpr = saved_ptr.dtype.element_ty
    inputs = divisible(inputs, INPUT_MULTIPLE)
    sample, output_tile, output = layer_place(outputs, BLOCK_SAMPLES, BLOCK_OUTPUTS)
    row = saved_ptr + sample.to(tl.int64)[:, None] * columns
    total = tl.zeros([BLOCK_SAMPLES, BLOCK_OUTPUTS, BLOCK_INPUTS], accumulation)
    for start in range(0, inputs, BLOCK_INPUTS):
        i = start + tl.arange(0, BLOCK_INPUTS)
        mask = (sample < samples)[:, None] & (i < inputs)[None, :]
        if sums_ptr is not None:
            value = _sum_of_chunks(sums_ptr, sample, i, mask, samples, inputs, chunks) / pixels
            tl.store(row + i[None, :], value, mask=mask & (output_tile == 0))
        else:
            value = activation(tl.load(row + in_column + i[None, :], mask=mask, other=0), ACTIVATION)
        weight = load_weight(weight_ptr, output, i, outputs, inputs, accumulation)
        total += value[:, None, :] * weight[None, :, :]
    result = tl.sum(total, 2)
    if bias_ptr is not None:
        result += tl.load(bias_ptr + output, mask=output < outputs, other=0).to(accumulation)[None, :]
    if GATED:
        result = gate_of(result, GATE)
    tl.store(row + out_column + output[None, :], result, mask=(sample < samples)[:, None] & (output < outputs)[None, :])


# g[n, c] = gate(sum_r expand_weight[c, r] activation(u[n, r]) + expand_bias[c]), which the first chunk keeps in saved;
# y = output_activation(x g + residual)                                                        grid (N * tiles, chunks)
@triton.jit(do_not_specialize=["samples", "channels", "hidden", "pixels", "steps"])
def squeeze_excite_scale(
    x_ptr, residual_ptr, y_ptr, saved_ptr, expand_weight_ptr, expand_bias_ptr, samples, channels, hidden, pixels, steps,
    CHANNEL_MULTIPLE: tl.constexpr, HIDDEN_MULTIPLE: tl.constexpr, PIXEL_MULTIPLE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, GATE: tl.constexpr, OUTPUT_RELU: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
):  # fmt: skip
    accumulation: tl.constexpr = saved_ptr.dtype.element_ty
    channels = divisible(channels, CHANNEL_MULTIPLE)
    hidden = divisible(hidden, HIDDEN_MULTIPLE)
    pixels = divisible(pixels, PIXEL_MULTIPLE)
    sample, channel, chunk = part_of_program(samples, channels, True, BLOCK_CHANNELS)
    in_channels = channel < channels
    row = saved_ptr + sample * (2 * channels + hidden)
    total = tl.zeros([BLOCK_CHANNELS, BLOCK_HIDDEN], accumulation)
    for start in range(0, hidden, BLOCK_HIDDEN):
        h = start + tl.arange(0, BLOCK_HIDDEN)
        value = activation(tl.load(row + channels + h, mask=h < hidden, other=0), ACTIVATION)
        total += value[None, :] * load_weight(expand_weight_ptr, channel, h, channels, hidden, accumulation)
    gate = tl.sum(total, 1)
    if expand_bias_ptr is not None:
        gate += tl.load(expand_bias_ptr + channel, mask=in_channels, other=0).to(accumulation)
    gate = gate_of(gate, GATE)
    tl.store(row + channels + hidden + channel, gate, mask=in_channels & (chunk == 0))
    scale_chunk(
        x_ptr, residual_ptr, y_ptr, gate, sample, channel, chunk, channels, pixels, steps,
        CHANNELS_LAST, WIDE, OUTPUT_RELU, BLOCK_PIXELS,
    )  # fmt: skip


# dv[n, c] = gate'(v) sum_k sums[k, n, c];  dh[n, r] = activation'(u) sum_c expand_weight[c, r] dv[n, c]
# grid (sample tiles * hidden tiles); without a hidden layer dh is ds P.
@triton.jit(do_not_specialize=["samples", "channels", "hidden", "chunks", "columns", "hidden_column"])
def squeeze_excite_hidden_grad(
    sums_ptr, expand_weight_ptr, saved_ptr, grads_ptr, samples, channels, hidden, chunks, columns, hidden_column,
    HIDDEN_MULTIPLE: tl.constexpr, ACTIVATION: tl.constexpr, GATE: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
):  # fmt: skip
    accumulation: tl.constexpr = saved_ptr.dtype.element_ty
    hidden = divisible(hidden, HIDDEN_MULTIPLE)
    sample, hidden_tile, h = layer_place(hidden, BLOCK_SAMPLES, BLOCK_HIDDEN)
    row = sample.to(tl.int64)[:, None] * columns
    gates = row + columns - channels
    total = tl.zeros([BLOCK_SAMPLES, BLOCK_CHANNELS, BLOCK_HIDDEN], accumulation)
    for start in range(0, channels, BLOCK_CHANNELS):
        channel = start + tl.arange(0, BLOCK_CHANNELS)
        mask = (sample < samples)[:, None] & (channel < channels)[None, :]
        grad_gate = _sum_of_chunks(sums_ptr, sample, channel, mask, samples, channels, chunks)
        gate = tl.load(saved_ptr + gates + channel[None, :], mask=mask, other=0)
        grad_v = grad_gate * gate_grad(gate, GATE)
        tl.store(grads_ptr + gates + channel[None, :], grad_v, mask=mask & (hidden_tile == 0))
        weight = load_weight(expand_weight_ptr, channel, h, channels, hidden, accumulation)
        total += grad_v[:, :, None] * weight[None, :, :]
    mask = (sample < samples)[:, None] & (h < hidden)[None, :]
    at = row + hidden_column + h[None, :]
    u = tl.load(saved_ptr + at, mask=mask, other=0)
    tl.store(grads_ptr + at, tl.sum(total, 1) * activation_grad(u, ACTIVATION), mask=mask)


# d expand_weight[c, r] = sum_n dv[n, c] activation(u[n, r])   d expand_bias[c] = sum_n dv[n, c]   expand_tiles programs
# d reduce_weight[r, c] = sum_n du[n, r] s[n, c]               d reduce_bias[r] = sum_n du[n, r]   reduce_tiles programs
# ds[n, c] P = sum_r du[n, r] reduce_weight[r, c]                                                  the other programs
@triton.jit(
    do_not_specialize=["samples", "channels", "hidden", "columns", "hidden_column", "expand_tiles", "reduce_tiles"]
)
def squeeze_excite_weight_grads(
    reduce_weight_ptr, saved_ptr, grads_ptr,
    grad_expand_weight_ptr, grad_expand_bias_ptr, grad_reduce_weight_ptr, grad_reduce_bias_ptr,
    samples, channels, hidden, columns, hidden_column, expand_tiles, reduce_tiles,
    ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_TERMS: tl.constexpr,
):  # fmt: skip
    accumulation: tl.constexpr = saved_ptr.dtype.element_ty
    program = tl.program_id(0)
    grad_u_ptr = grads_ptr + hidden_column
    if grad_expand_weight_ptr is not None:  # noqa: SIM102  (decided when compiling; the inner one when running)
        if program < expand_tiles:
            product_tile(
                grads_ptr + columns - channels, columns, 1, saved_ptr + hidden_column, columns,
                grad_expand_weight_ptr, hidden, grad_expand_bias_ptr, program, channels, hidden, samples,
                ACTIVATION, BLOCK, BLOCK_TERMS, accumulation,
            )  # fmt: skip
    if grad_reduce_weight_ptr is not None:  # noqa: SIM102
        if (program >= expand_tiles) & (program < expand_tiles + reduce_tiles):
            product_tile(
                grad_u_ptr, columns, 1, saved_ptr, columns,
                grad_reduce_weight_ptr, channels, grad_reduce_bias_ptr,
                program - expand_tiles, hidden, channels, samples, _IDENTITY, BLOCK, BLOCK_TERMS, accumulation,
            )  # fmt: skip
    if reduce_weight_ptr is not None:  # noqa: SIM102
        if program >= expand_tiles + reduce_tiles:
            product_tile(
                grad_u_ptr, 1, columns, reduce_weight_ptr, channels,
                grads_ptr, columns, None, program - expand_tiles - reduce_tiles, samples, channels, hidden,
                _IDENTITY, BLOCK, BLOCK_TERMS, accumulation,
            )  # fmt: skip
