"""The Triton backend of squeeze_excite: launchers with the operators' schemas, callable directly on tensors.

Forward: sums (x read once), hidden layer, scale (x read again, mostly from the L2 cache, y written); the gates are
computed by the scale kernel, or by a launch of their own where that reads fewer weights. Backward: dots of dz and x,
gradient of the hidden layer, gradients of the weights and means, gradient of x.
"""

from __future__ import annotations

import functools
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from .._layout import dense
from .._registry import accumulation_dtype
from .._triton import Launch, multiple, on_device_of, power_of_2
from .._triton_gate import GateCall, Passes, contiguous
from .._triton_layers import IDENTITY, PRODUCT_BLOCK, PRODUCT_TERMS, PRODUCTS, layer_blocks, product_tiles
from . import triton_kernels as kernels
from .schema import NEEDS_RESIDUAL, NEEDS_WEIGHTS, NEEDS_X, saved_columns

# Weights that an H100's L2 cache delivers during one kernel launch, about 2 us at 4-5 TB/s: reading no more than these
# again is cheaper than launching the gates' own kernel.
_BYTES_PER_LAUNCH = 8 << 20


class Call(NamedTuple):
    """What fixes the launches of a call, which includes all that Triton specialises the kernels on (see `Launch`)."""

    over: GateCall
    hidden: int | None  # None: the excitation has no hidden layer
    activation: int

    @property
    def hidden_activation(self) -> int:
        return IDENTITY if self.hidden is None else self.activation

    @property
    def hidden_column(self) -> int:
        """Where in a row of `saved` the input of the expand layer begins: the pre-activations, or the means."""
        return 0 if self.hidden is None else self.over.channels

    @property
    def hidden_width(self) -> int:
        return self.over.channels if self.hidden is None else self.hidden


class Forward(NamedTuple):
    passes: Passes
    hidden_layer: Launch | None  # None: there is no hidden layer
    gates: Launch | None  # None: `scale` computes them
    scale: Launch | None  # None: `passes` has it


class Backward(NamedTuple):
    passes: Passes
    hidden_grad: Launch
    expand_tiles: int  # of the gradient of expand_weight, in `weight_grads`
    reduce_tiles: int  # of the gradient of reduce_weight
    weight_grads: Launch


def _layer(call: Call, outputs: int, inputs: int, activation: int, gated: bool) -> Launch:
    block_samples, block_outputs, block_inputs, grid = layer_blocks(call.over.samples, outputs, inputs)
    return Launch(
        kernels.squeeze_excite_layer, grid, keep=call.over.aligned,
        INPUT_MULTIPLE=multiple(inputs), ACTIVATION=activation, GATED=gated, GATE=call.over.gate,
        BLOCK_SAMPLES=block_samples, BLOCK_OUTPUTS=block_outputs, BLOCK_INPUTS=block_inputs,
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _plan_forward(call: Call) -> Forward:
    over, hidden = call.over, call.hidden
    passes = Passes(over)
    hidden_layer = None if hidden is None else _layer(call, hidden, over.channels, IDENTITY, False)
    # Each program of `scale` can compute its channels' gates itself, which reads its part of expand_weight again.
    weight_bytes = prod(passes.grid) * passes.block_channels * call.hidden_width * over.dtype.itemsize
    map_bytes = over.samples * over.channels * over.pixels * over.dtype.itemsize
    if hidden is None or weight_bytes > max(_BYTES_PER_LAUNCH, map_bytes):
        gates = _layer(call, over.channels, call.hidden_width, call.hidden_activation, True)
        return Forward(passes, hidden_layer, gates, None)
    scale = passes.scaling(
        kernels.squeeze_excite_scale, HIDDEN_MULTIPLE=multiple(hidden), ACTIVATION=call.activation, GATE=over.gate,
        BLOCK_HIDDEN=power_of_2(hidden, max(1, PRODUCTS // passes.block_channels)),
    )  # fmt: skip
    return Forward(passes, hidden_layer, None, scale)


@functools.lru_cache(maxsize=4096)
def _plan_backward(call: Call, needs: int) -> Backward:
    samples, channels, hidden = call.over.samples, call.over.channels, call.hidden_width
    block_samples, block_hidden, block_channels, layer_grid = layer_blocks(samples, hidden, channels)
    expand_tiles = reduce_tiles = mean_tiles = 0
    if needs & NEEDS_WEIGHTS:
        expand_tiles = product_tiles(channels, hidden)
        reduce_tiles = 0 if call.hidden is None else product_tiles(hidden, channels)
    if needs & NEEDS_X and call.hidden is not None:
        mean_tiles = product_tiles(samples, channels)
    return Backward(
        Passes(call.over),
        Launch(
            kernels.squeeze_excite_hidden_grad, layer_grid, keep=call.over.aligned,
            HIDDEN_MULTIPLE=multiple(hidden), ACTIVATION=call.hidden_activation, GATE=call.over.gate,
            BLOCK_SAMPLES=block_samples, BLOCK_CHANNELS=block_channels, BLOCK_HIDDEN=block_hidden,
        ),
        expand_tiles,
        reduce_tiles,
        Launch(
            kernels.squeeze_excite_weight_grads, (expand_tiles + reduce_tiles + mean_tiles,), keep=call.over.aligned,
            ACTIVATION=call.hidden_activation, BLOCK=PRODUCT_BLOCK, BLOCK_TERMS=PRODUCT_TERMS, warps=8,
        ),
    )  # fmt: skip


def _call(x, layout, activation, gate, output_activation, reduce_weight, *others) -> Call:
    over = GateCall.of(x, layout, gate, output_activation, reduce_weight, *others)
    return Call(over, None if reduce_weight is None else reduce_weight.shape[0], activation)


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
    residual = contiguous(residual, layout)
    parameters = map(contiguous, (reduce_weight, reduce_bias, expand_weight, expand_bias))
    reduce_weight, reduce_bias, expand_weight, expand_bias = parameters
    call = _call(
        x, layout, activation, gate, output_activation, reduce_weight, reduce_bias, expand_weight, expand_bias, residual
    )
    plan = _plan_forward(call)
    passes, (samples, channels, pixels), hidden = plan.passes, call.over[:3], call.hidden_width
    columns = saved_columns(channels, reduce_weight)
    y = torch.empty_like(x, memory_format=layout)
    saved = x.new_empty((samples, columns), dtype=accumulation_dtype(x.dtype))
    with on_device_of(x):
        sums = passes.sums(x)
        if plan.hidden_layer is not None:
            plan.hidden_layer(
                sums, saved, reduce_weight, reduce_bias,
                samples, channels, hidden, pixels, passes.chunks, columns, 0, channels,
            )  # fmt: skip
            sums = None
        if plan.gates is not None:
            plan.gates(
                sums, saved, expand_weight, expand_bias,
                samples, hidden, channels, pixels, passes.chunks, columns, call.hidden_column, columns - channels,
            )  # fmt: skip
            passes.scale(x, residual, y, saved)
        else:
            plan.scale(
                x, residual, y, saved, expand_weight, expand_bias, samples, channels, hidden, pixels, passes.steps
            )
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
    grad_y = contiguous(grad_y, layout)
    y = contiguous(y, layout) if output_activation else None
    reduce_weight, expand_weight, saved = map(contiguous, (reduce_weight, expand_weight, saved))
    call = _call(
        x, layout, activation, gate, output_activation,
        reduce_weight, reduce_bias, expand_weight, expand_bias, y, grad_y, saved,
    )  # fmt: skip
    plan = _plan_backward(call, needs)
    passes, (samples, channels, _), hidden = plan.passes, call.over[:3], call.hidden_width
    columns = saved.shape[1]
    parameters = (reduce_weight, reduce_bias, expand_weight, expand_bias)
    grad_parameters = [
        None if p is None or not needs & NEEDS_WEIGHTS else torch.empty_like(p, memory_format=torch.contiguous_format)
        for p in parameters
    ]
    with on_device_of(x):
        grads = None
        if needs & (NEEDS_X | NEEDS_WEIGHTS):
            grads = torch.empty_like(saved)
            sums = passes.sums(x, grad_y, y)
            plan.hidden_grad(
                sums, expand_weight, saved, grads, samples, channels, hidden, passes.chunks, columns, call.hidden_column
            )
            grad_reduce_weight, grad_reduce_bias, grad_expand_weight, grad_expand_bias = grad_parameters
            plan.weight_grads(
                reduce_weight if needs & NEEDS_X else None, saved, grads,
                grad_expand_weight, grad_expand_bias, grad_reduce_weight, grad_reduce_bias,
                samples, channels, hidden, columns, call.hidden_column, plan.expand_tiles, plan.reduce_tiles,
            )  # fmt: skip
        grad_maps = passes.input_grads(x, grad_y, y, saved, grads, (needs & NEEDS_X, needs & NEEDS_RESIDUAL))
    return (*grad_maps, *(x.new_empty(0) if grad is None else grad for grad in grad_parameters))
