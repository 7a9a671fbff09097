"""The Triton kernels of the fully connected layers of cbam's and scse's channel gate, and of their gradients.

s [N, K, C] are the pools, h [N, K, R] the hidden layer after its ReLU, g [N, C] the gates. These and their gradients
are in the accumulation dtype, the layers and theirs in the map's. The last layer is linear, so it is applied to the sum
over the pools; without a hidden layer that is the sum of s. Sums are taken in a fixed order: no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton import divisible, relu, sigmoid
from .._triton_layers import IDENTITY, layer_place, load_weight, product_tile

_IDENTITY = tl.constexpr(IDENTITY)


# out[n, o] = f(sum_i weight[o, i] sum_k in[n, k, i] + K bias[o])                  grid (sample tiles * output tiles)
# f is the sigmoid or, not GATED, the ReLU: of the hidden layer, which takes each pool as a sample, and so one of each.
@triton.jit(do_not_specialize=["samples", "inputs", "outputs"])
def channel_spatial_layer(
    in_ptr, weight_ptr, bias_ptr, out_ptr, samples, inputs, outputs,
    POOLS: tl.constexpr, INPUT_MULTIPLE: tl.constexpr, GATED: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, BLOCK_INPUTS: tl.constexpr,
):  # fmt: skip
    accumulation: tl.constexpr = out_ptr.dtype.element_ty
    inputs = divisible(inputs, INPUT_MULTIPLE)
    sample, _, output = layer_place(outputs, BLOCK_SAMPLES, BLOCK_OUTPUTS)
    in_samples, in_outputs = (sample < samples)[:, None], output < outputs
    row = in_ptr + sample.to(tl.int64)[:, None] * (POOLS * inputs)
    total = tl.zeros([BLOCK_SAMPLES, BLOCK_OUTPUTS, BLOCK_INPUTS], accumulation)
    for start in range(0, inputs, BLOCK_INPUTS):
        i = start + tl.arange(0, BLOCK_INPUTS)
        value = tl.zeros([BLOCK_SAMPLES, BLOCK_INPUTS], accumulation)
        for k in tl.static_range(POOLS):
            value += tl.load(row + k * inputs + i[None, :], mask=in_samples & (i < inputs)[None, :], other=0)
        weight = load_weight(weight_ptr, output, i, outputs, inputs, accumulation)
        total += value[:, None, :] * weight[None, :, :]
    result = tl.sum(total, 2)
    if bias_ptr is not None:
        result += POOLS * tl.load(bias_ptr + output, mask=in_outputs, other=0).to(accumulation)[None, :]
    result = sigmoid(result) if GATED else relu(result)
    at = sample.to(tl.int64)[:, None] * outputs + output[None, :]
    tl.store(out_ptr + at, result, mask=in_samples & in_outputs[None, :])


# dv[n, c] = dg g (1 - g);  dh[n, r] = sum_c weight[c, r] dv[n, c], and du[n, k, r] = dh[n, r] where h[n, k, r] is not
# 0; without a hidden layer du = dh is ds. Either result where it has a ptr.        grid (sample tiles * hidden tiles)
@triton.jit(do_not_specialize=["samples", "channels", "hidden"])
def channel_spatial_hidden_grad(
    grad_gate_ptr, gate_ptr, hidden_ptr, weight_ptr, grad_v_ptr, grad_u_ptr, samples, channels, hidden,
    POOLS: tl.constexpr, HIDDEN_MULTIPLE: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
):  # fmt: skip
    accumulation: tl.constexpr = gate_ptr.dtype.element_ty
    hidden = divisible(hidden, HIDDEN_MULTIPLE)
    sample, hidden_tile, h = layer_place(hidden, BLOCK_SAMPLES, BLOCK_HIDDEN)
    in_samples = (sample < samples)[:, None]
    total = tl.zeros([BLOCK_SAMPLES, BLOCK_CHANNELS, BLOCK_HIDDEN], accumulation)
    for start in range(0, channels, BLOCK_CHANNELS):
        channel = start + tl.arange(0, BLOCK_CHANNELS)
        mask = in_samples & (channel < channels)[None, :]
        at = sample.to(tl.int64)[:, None] * channels + channel[None, :]
        gate = tl.load(gate_ptr + at, mask=mask, other=0)
        grad_v = tl.load(grad_gate_ptr + at, mask=mask, other=0) * gate * (1 - gate)
        if grad_v_ptr is not None:
            tl.store(grad_v_ptr + at, grad_v, mask=mask & (hidden_tile == 0))
        if grad_u_ptr is not None:
            weight = load_weight(weight_ptr, channel, h, channels, hidden, accumulation)
            total += grad_v[:, :, None] * weight[None, :, :]
    if grad_u_ptr is not None:
        grad_h = tl.sum(total, 1)
        mask = in_samples & (h < hidden)[None, :]
        for k in tl.static_range(POOLS):
            at = (sample.to(tl.int64) * POOLS + k)[:, None] * hidden + h[None, :]
            grad_u = grad_h
            if hidden_ptr is not None:
                grad_u = tl.where(tl.load(hidden_ptr + at, mask=mask, other=0) <= 0, 0, grad_h)
            tl.store(grad_u_ptr + at, grad_u, mask=mask)


# d expand_weight[c, r] = sum_n,k dv[n, c] h[n, k, r]     d expand_bias[c] = sum_n,k dv[n, c]     expand_tiles programs
# d reduce_weight[r, c] = sum_n,k du[n, k, r] s[n, k, c]  d reduce_bias[r] = sum_n,k du[n, k, r]  reduce_tiles programs
# ds[n, k, c] = sum_r du[n, k, r] reduce_weight[r, c]                                                the other programs
# Without a hidden layer `hidden` is s. Each result where it has a ptr.
@triton.jit(do_not_specialize=["samples", "channels", "hidden", "expand_tiles", "reduce_tiles"])
def channel_spatial_weight_grads(
    pooled_ptr, hidden_ptr, reduce_weight_ptr, grad_v_ptr, grad_u_ptr, grad_pooled_ptr,
    grad_reduce_weight_ptr, grad_reduce_bias_ptr, grad_expand_weight_ptr, grad_expand_bias_ptr,
    samples, channels, hidden, expand_tiles, reduce_tiles,
    POOLS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_TERMS: tl.constexpr,
):  # fmt: skip
    accumulation: tl.constexpr = hidden_ptr.dtype.element_ty
    rows = samples * POOLS
    program = tl.program_id(0)
    if grad_expand_weight_ptr is not None:  # noqa: SIM102  (decided when compiling; the inner one when running)
        if program < expand_tiles:
            product_tile(
                grad_v_ptr, channels, 1, hidden_ptr, hidden, grad_expand_weight_ptr, hidden, grad_expand_bias_ptr,
                program, channels, hidden, rows, _IDENTITY, BLOCK, BLOCK_TERMS, accumulation, POOLS,
            )  # fmt: skip
    if grad_reduce_weight_ptr is not None:  # noqa: SIM102
        if (program >= expand_tiles) & (program < expand_tiles + reduce_tiles):
            product_tile(
                grad_u_ptr, hidden, 1, pooled_ptr, channels, grad_reduce_weight_ptr, channels, grad_reduce_bias_ptr,
                program - expand_tiles, hidden, channels, rows, _IDENTITY, BLOCK, BLOCK_TERMS, accumulation,
            )  # fmt: skip
    if grad_pooled_ptr is not None:  # noqa: SIM102
        if program >= expand_tiles + reduce_tiles:
            product_tile(
                grad_u_ptr, 1, hidden, reduce_weight_ptr, channels, grad_pooled_ptr, channels, None,
                program - expand_tiles - reduce_tiles, rows, channels, hidden,
                _IDENTITY, BLOCK, BLOCK_TERMS, accumulation,
            )  # fmt: skip
