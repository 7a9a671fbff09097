"""The Triton backend of squeeze_excite: launchers with the operators' schemas, callable directly on tensors.

Forward: sums (x read once), hidden layer, scale (x read again, mostly from the L2 cache, y written); the gates are
computed by the scale kernel, or by a launch of their own where that reads fewer weights. Backward: dots of dz and x,
gradient of the hidden layer, gradients of the weights and means, gradient of x.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from .._layout import dense
from .._registry import accumulation_dtype
from .._triton import Launch, aligned, ceil_div, multiple, on_device_of, power_of_2, tile, wide
from . import triton_kernels as kernels
from .schema import NEEDS_RESIDUAL, NEEDS_WEIGHTS, NEEDS_X, saved_columns

# Products a program of a fully connected layer holds: 32 for each of its 128 threads.
_PRODUCTS = 4096
# Samples that share one read of a weight. More would leave too few products for the reduction.
_SAMPLES = 4
# Rows and columns of a tile of weight gradients, 8 a thread, and the samples that it sums per step: 16 is the least
# that a matrix product takes, and 32 doubled the registers.
_BLOCK, _BLOCK_TERMS = 32, 16
# Weights that an H100's L2 cache delivers during one kernel launch, about 2 us at 4-5 TB/s: reading no more than these
# again is cheaper than launching the gates' own kernel.
_BYTES_PER_LAUNCH = 8 << 20


class Call(NamedTuple):
    """What fixes the launches of a call, which includes all that Triton specialises the kernels on (see `Launch`)."""

    samples: int
    channels: int
    hidden: int | None  # None: the excitation has no hidden layer
    pixels: int
    channels_last: bool
    dtype: torch.dtype
    device: int | None
    given: tuple[bool, ...]  # which of the optional tensors there are
    activation: int
    gate: int
    output_activation: int
    aligned: bool

    @property
    def hidden_activation(self) -> int:
        return kernels.IDENTITY if self.hidden is None else self.activation

    @property
    def hidden_column(self) -> int:
        """Where in a row of `saved` the input of the expand layer begins: the pre-activations, or the means."""
        return 0 if self.hidden is None else self.channels

    @property
    def hidden_width(self) -> int:
        return self.channels if self.hidden is None else self.hidden


class Forward(NamedTuple):
    chunks: int  # of the pixels, each with its own partial sum
    steps: int  # tiles in a chunk
    sums: Launch
    hidden_layer: Launch | None  # None: there is no hidden layer
    gates: Launch | None  # None: `scale` computes them
    scale: Launch


class Backward(NamedTuple):
    chunks: int
    steps: int
    dots: Launch
    hidden_grad: Launch
    expand_tiles: int  # of the gradient of expand_weight, in `weight_grads`
    reduce_tiles: int  # of the gradient of reduce_weight
    weight_grads: Launch
    input_grads: Launch


def _feature_map(call: Call) -> tuple[tuple[int, int], int, dict[str, int | bool]]:
    """Grid, steps and constants of a kernel that streams the feature map."""
    tiling = tile(call.samples, call.channels, call.pixels, call.channels_last)
    constants = {
        "CHANNEL_MULTIPLE": multiple(call.channels),
        "PIXEL_MULTIPLE": multiple(call.pixels),
        "CHANNELS_LAST": call.channels_last,
        "WIDE": wide(call.channels, call.pixels),
        "BLOCK_CHANNELS": tiling.block_channels,
        "BLOCK_PIXELS": tiling.block_pixels,
    }
    return (call.samples * tiling.channel_tiles, tiling.chunks), tiling.steps, constants


def _layer_blocks(samples: int, outputs: int, terms: int) -> tuple[int, int, int, tuple[int]]:
    """Blocks of samples, outputs and terms of a fully connected layer, and the grid.

    Up to 4 samples share a weight, then as many terms as there are, up to 1024 products, so that few rounds of loads
    follow each other; what is left of the 4096 products is outputs.
    """
    block_samples = power_of_2(samples, _SAMPLES)
    block_terms = power_of_2(terms, _PRODUCTS // 4 // block_samples)
    block_outputs = power_of_2(outputs, _PRODUCTS // (block_samples * block_terms))
    grid = (ceil_div(samples, block_samples) * max(1, ceil_div(outputs, block_outputs)),)
    return block_samples, block_outputs, block_terms, grid


def _layer(call: Call, outputs: int, inputs: int, activation: int, gated: bool) -> Launch:
    block_samples, block_outputs, block_inputs, grid = _layer_blocks(call.samples, outputs, inputs)
    return Launch(
        kernels.squeeze_excite_layer, grid, keep=call.aligned,
        INPUT_MULTIPLE=multiple(inputs), ACTIVATION=activation, GATED=gated, GATE=call.gate,
        BLOCK_SAMPLES=block_samples, BLOCK_OUTPUTS=block_outputs, BLOCK_INPUTS=block_inputs,
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _plan_forward(call: Call) -> Forward:
    grid, steps, constants = _feature_map(call)
    block_channels = constants["BLOCK_CHANNELS"]
    hidden = call.hidden
    gates = None
    # Each program of `scale` can compute its channels' gates itself, which reads its part of expand_weight again.
    weight_bytes = grid[0] * grid[1] * block_channels * call.hidden_width * call.dtype.itemsize
    map_bytes = call.samples * call.channels * call.pixels * call.dtype.itemsize
    if hidden is None or weight_bytes > max(_BYTES_PER_LAUNCH, map_bytes):
        gates = _layer(call, call.channels, call.hidden_width, call.hidden_activation, True)
    return Forward(
        grid[1],
        steps,
        Launch(kernels.squeeze_excite_sums, grid, keep=call.aligned, **constants),
        None if hidden is None else _layer(call, hidden, call.channels, kernels.IDENTITY, False),
        gates,
        Launch(
            kernels.squeeze_excite_scale, grid, keep=call.aligned, **constants,
            HIDDEN_MULTIPLE=multiple(hidden or 0), ACTIVATION=call.hidden_activation, GATE=call.gate,
            OUTPUT_RELU=bool(call.output_activation),
            BLOCK_HIDDEN=1 if gates else power_of_2(call.hidden_width, max(1, _PRODUCTS // block_channels)),
        ),
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _plan_backward(call: Call, needs: int) -> Backward:
    grid, steps, constants = _feature_map(call)
    hidden = call.hidden_width
    block_samples, block_hidden, block_channels, layer_grid = _layer_blocks(call.samples, hidden, call.channels)
    expand_tiles = reduce_tiles = mean_tiles = 0
    if needs & NEEDS_WEIGHTS:
        expand_tiles = _tiles(call.channels, hidden)
        reduce_tiles = 0 if call.hidden is None else _tiles(hidden, call.channels)
    if needs & NEEDS_X and call.hidden is not None:
        mean_tiles = _tiles(call.samples, call.channels)
    return Backward(
        grid[1],
        steps,
        Launch(kernels.squeeze_excite_sums, grid, keep=call.aligned, **constants),
        Launch(
            kernels.squeeze_excite_hidden_grad, layer_grid, keep=call.aligned,
            HIDDEN_MULTIPLE=multiple(hidden), ACTIVATION=call.hidden_activation, GATE=call.gate,
            BLOCK_SAMPLES=block_samples, BLOCK_CHANNELS=block_channels, BLOCK_HIDDEN=block_hidden,
        ),
        expand_tiles,
        reduce_tiles,
        Launch(
            kernels.squeeze_excite_weight_grads, (expand_tiles + reduce_tiles + mean_tiles,), keep=call.aligned,
            ACTIVATION=call.hidden_activation, BLOCK=_BLOCK, BLOCK_TERMS=_BLOCK_TERMS, warps=8,
        ),
        Launch(kernels.squeeze_excite_input_grads, grid, keep=call.aligned, **constants),
    )  # fmt: skip


def _tiles(rows: int, columns: int) -> int:
    return ceil_div(rows, _BLOCK) * max(1, ceil_div(columns, _BLOCK))


def _call(x, layout, reduce_weight, activation, gate, output_activation, *optional_and_weights) -> Call:
    samples, channels, height, width = x.shape
    return Call(
        samples, channels, None if reduce_weight is None else reduce_weight.shape[0], height * width,
        layout is torch.channels_last, x.dtype, x.device.index,
        tuple(tensor is not None for tensor in optional_and_weights), activation, gate, output_activation,
        aligned(x, reduce_weight, *optional_and_weights),
    )  # fmt: skip


def _contiguous(tensor: Tensor | None, layout: torch.memory_format = torch.contiguous_format) -> Tensor | None:
    return None if tensor is None else tensor.contiguous(memory_format=layout)


def squeeze_excite(
    x: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    gate: int,
    output_activation: int,
) -> tuple[Tensor, Tensor]:
    """The operator `squeeze_excite` (schema.py has its schema): y and `saved`."""
    x, layout = dense(x)
    residual = _contiguous(residual, layout)
    reduce_weight, reduce_bias = _contiguous(reduce_weight), _contiguous(reduce_bias)
    expand_weight, expand_bias = _contiguous(expand_weight), _contiguous(expand_bias)
    call = _call(
        x, layout, reduce_weight, activation, gate, output_activation, reduce_bias, expand_weight, expand_bias, residual
    )
    plan = _plan_forward(call)
    samples, channels, pixels, hidden = call.samples, call.channels, call.pixels, call.hidden_width
    accumulation = accumulation_dtype(x.dtype)
    columns = saved_columns(channels, reduce_weight)
    y = torch.empty_like(x, memory_format=layout)
    saved = x.new_empty((samples, columns), dtype=accumulation)
    sums = x.new_empty((plan.chunks, samples, channels), dtype=accumulation)
    with on_device_of(x):
        plan.sums(x, None, None, sums, samples, channels, pixels, plan.steps)
        if plan.hidden_layer is not None:
            plan.hidden_layer(
                sums, saved, reduce_weight, reduce_bias,
                samples, channels, hidden, pixels, plan.chunks, columns, 0, channels,
            )  # fmt: skip
            sums = None
        if plan.gates is not None:
            plan.gates(
                sums, saved, expand_weight, expand_bias,
                samples, hidden, channels, pixels, plan.chunks, columns, call.hidden_column, columns - channels,
            )  # fmt: skip
            expand_weight = expand_bias = None
        plan.scale(
            x, residual, y, saved, expand_weight, expand_bias,
            samples, channels, columns - 2 * channels, pixels, plan.steps,
        )  # fmt: skip
    return y, saved


def squeeze_excite_backward(
    grad_y: Tensor,
    x: Tensor,
    y: Tensor | None,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    saved: Tensor,
    activation: int,
    gate: int,
    output_activation: int,
    needs: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator `squeeze_excite_backward` (schema.py has its schema); `needs` is a sum of the NEEDS_ bits."""
    x, layout = dense(x)
    grad_y = _contiguous(grad_y, layout)
    y = _contiguous(y, layout) if output_activation else None
    reduce_weight, expand_weight = _contiguous(reduce_weight), _contiguous(expand_weight)
    saved = _contiguous(saved)
    call = _call(
        x,
        layout,
        reduce_weight,
        activation,
        gate,
        output_activation,
        reduce_bias,
        expand_weight,
        expand_bias,
        y,
        grad_y,
        saved,
    )
    plan = _plan_backward(call, needs)
    samples, channels, pixels, hidden = call.samples, call.channels, call.pixels, call.hidden_width

    def result(like: Tensor | None, bit: int, layout: torch.memory_format = torch.contiguous_format) -> Tensor | None:
        return torch.empty_like(like, memory_format=layout) if like is not None and needs & bit else None

    grad_x, grad_residual = result(x, NEEDS_X, layout), result(x, NEEDS_RESIDUAL, layout)
    grad_parameters = [result(p, NEEDS_WEIGHTS) for p in (reduce_weight, reduce_bias, expand_weight, expand_bias)]
    with on_device_of(x):
        grads = None
        if needs & (NEEDS_X | NEEDS_WEIGHTS):
            columns = saved.shape[1]
            grads = torch.empty_like(saved)
            sums = saved.new_empty((plan.chunks, samples, channels))
            plan.dots(x, grad_y, y, sums, samples, channels, pixels, plan.steps)
            plan.hidden_grad(
                sums, expand_weight, saved, grads, samples, channels, hidden, plan.chunks, columns, call.hidden_column
            )
            grad_reduce_weight, grad_reduce_bias, grad_expand_weight, grad_expand_bias = grad_parameters
            plan.weight_grads(
                reduce_weight if needs & NEEDS_X else None, saved, grads,
                grad_expand_weight, grad_expand_bias, grad_reduce_weight, grad_reduce_bias,
                samples, channels, hidden, columns, call.hidden_column, plan.expand_tiles, plan.reduce_tiles,
            )  # fmt: skip
        if needs & (NEEDS_X | NEEDS_RESIDUAL):
            plan.input_grads(
                grad_y, y, saved, grads, grad_x, grad_residual,
                samples, channels, pixels, saved.shape[1], plan.steps,
            )  # fmt: skip
    return tuple(x.new_empty(0) if grad is None else grad for grad in (grad_x, grad_residual, *grad_parameters))
