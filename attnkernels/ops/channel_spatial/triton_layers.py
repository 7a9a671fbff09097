"""The Triton backend of the channel gate's fully connected layers: launchers with the operators' schemas.

Forward: the hidden layer, the gates. Backward: the gradient of the hidden layer, those of the weights and the pools.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from .._triton import Launch, aligned, multiple, on_device_of
from .._triton_gate import contiguous
from .._triton_layers import PRODUCT_BLOCK, PRODUCT_TERMS, layer_blocks, product_tiles
from . import triton_layers_kernels as kernels

# Bits of `needs`, in the order of the backward's results.
_POOLED, _REDUCE_WEIGHT, _REDUCE_BIAS, _EXPAND_WEIGHT, _EXPAND_BIAS = (1 << i for i in range(5))
_REDUCE, _EXPAND = _REDUCE_WEIGHT | _REDUCE_BIAS, _EXPAND_WEIGHT | _EXPAND_BIAS
# 16 of a program's products for each thread, which takes 104 registers in float64.
_WARPS = 8


class _Call(NamedTuple):
    """What fixes the launches, which includes all that Triton specialises them on (see `Launch`)."""

    samples: int
    pools: int
    channels: int
    hidden: int | None  # None: a single layer
    dtype: torch.dtype  # of the layers; it decides the dtype of the other tensors
    device: int | None
    given: tuple[bool, ...]  # which of the tensors there are
    aligned: bool

    @classmethod
    def of(cls, pooled: Tensor, reduce_weight: Tensor | None, expand_weight: Tensor, *others: Tensor | None) -> _Call:
        return cls(
            *pooled.shape, None if reduce_weight is None else reduce_weight.shape[0], expand_weight.dtype,
            pooled.device.index, tuple(tensor is not None for tensor in others),
            aligned(pooled, reduce_weight, expand_weight, *others),
        )  # fmt: skip

    @property
    def hidden_width(self) -> int:
        """The inputs of the last layer."""
        return self.channels if self.hidden is None else self.hidden

    def layer(self, samples: int, inputs: int, outputs: int, pools: int, gated: bool) -> Launch:
        block_samples, block_outputs, block_inputs, grid = layer_blocks(samples, outputs, inputs)
        return Launch(
            kernels.channel_spatial_layer, grid, keep=self.aligned, warps=_WARPS,
            POOLS=pools, INPUT_MULTIPLE=multiple(inputs), GATED=gated,
            BLOCK_SAMPLES=block_samples, BLOCK_OUTPUTS=block_outputs, BLOCK_INPUTS=block_inputs,
        )  # fmt: skip


class _Forward(NamedTuple):
    hidden_layer: Launch | None  # None: a single layer
    gates: Launch


@functools.lru_cache(maxsize=4096)
def _plan_forward(call: _Call) -> _Forward:
    hidden_layer = None
    if call.hidden is not None:
        hidden_layer = call.layer(call.samples * call.pools, call.channels, call.hidden, 1, False)
    return _Forward(hidden_layer, call.layer(call.samples, call.hidden_width, call.channels, call.pools, True))


class _Backward(NamedTuple):
    hidden_grad: Launch
    weight_grads: Launch
    expand_tiles: int  # of the gradient of expand_weight, in `weight_grads`
    reduce_tiles: int  # of the gradient of reduce_weight


@functools.lru_cache(maxsize=4096)
def _plan_backward(call: _Call, needs: int, hidden: int) -> _Backward:
    """`hidden` is the width of the layer through whose weight the gradient goes, 0 where that is not asked for."""
    block_samples, block_hidden, block_channels, grid = layer_blocks(call.samples, hidden, call.channels)
    hidden_grad = Launch(
        kernels.channel_spatial_hidden_grad, grid, keep=call.aligned, warps=_WARPS,
        POOLS=call.pools, HIDDEN_MULTIPLE=multiple(hidden),
        BLOCK_SAMPLES=block_samples, BLOCK_CHANNELS=block_channels, BLOCK_HIDDEN=block_hidden,
    )  # fmt: skip
    expand_tiles = reduce_tiles = pooled_tiles = 0
    if needs & _EXPAND:
        expand_tiles = product_tiles(call.channels, call.hidden_width)
    if needs & _REDUCE and call.hidden is not None:
        reduce_tiles = product_tiles(call.hidden, call.channels)
    if needs & _POOLED and call.hidden is not None:
        pooled_tiles = product_tiles(call.samples * call.pools, call.channels)
    weight_grads = Launch(
        kernels.channel_spatial_weight_grads, (expand_tiles + reduce_tiles + pooled_tiles,), keep=call.aligned,
        warps=_WARPS, POOLS=call.pools, BLOCK=PRODUCT_BLOCK, BLOCK_TERMS=PRODUCT_TERMS,
    )  # fmt: skip
    return _Backward(hidden_grad, weight_grads, expand_tiles, reduce_tiles)


def channel_spatial_layers(
    pooled: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The operator `channel_spatial_layers` (operators.py has its schema): the gate, and the hidden layer."""
    tensors = map(contiguous, (pooled, reduce_weight, reduce_bias, expand_weight, expand_bias))
    pooled, reduce_weight, reduce_bias, expand_weight, expand_bias = tensors
    call = _Call.of(pooled, reduce_weight, expand_weight, reduce_bias, expand_bias)
    plan, (samples, pools, channels), width = _plan_forward(call), pooled.shape, call.hidden_width
    gate = pooled.new_empty((samples, channels))
    hidden = pooled.new_empty(0 if reduce_weight is None else (samples, pools, width))
    with on_device_of(pooled):
        if plan.hidden_layer is not None:
            plan.hidden_layer(pooled, reduce_weight, reduce_bias, hidden, samples * pools, channels, width)
        given = pooled if plan.hidden_layer is None else hidden
        plan.gates(given, expand_weight, expand_bias, gate, samples, width, channels)
    return gate, hidden


def channel_spatial_layers_backward(
    grad_gate: Tensor,
    pooled: Tensor,
    gate: Tensor,
    hidden: Tensor,
    reduce_weight: Tensor | None,
    expand_weight: Tensor,
    needs: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator `channel_spatial_layers_backward`; bit i of `needs` asks for result i."""
    tensors = map(contiguous, (grad_gate, pooled, gate, hidden, reduce_weight, expand_weight))
    grad_gate, pooled, gate, hidden, reduce_weight, expand_weight = tensors
    call = _Call.of(pooled, reduce_weight, expand_weight, grad_gate, gate, hidden)
    samples, _, channels = pooled.shape
    width, single = call.hidden_width, reduce_weight is None
    if single:
        needs &= ~_REDUCE
    through = width if needs & (_POOLED | _REDUCE) else 0
    plan = _plan_backward(call, needs, through)

    def wanted(like: Tensor, shape: torch.Size | int, bits: int) -> Tensor | None:
        return like.new_empty(shape) if needs & bits else None

    grad_pooled = wanted(pooled, pooled.shape, _POOLED)
    # A weight's gradient is computed with its bias's, whichever of them is asked for.
    grad_reduce_weight = None if single else wanted(expand_weight, reduce_weight.shape, _REDUCE)
    grad_expand_weight = wanted(expand_weight, expand_weight.shape, _EXPAND)
    grad_reduce_bias = wanted(expand_weight, width, _REDUCE_BIAS)
    grad_expand_bias = wanted(expand_weight, channels, _EXPAND_BIAS)
    grad_v = wanted(gate, gate.shape, _EXPAND)
    grad_u = grad_pooled if single else wanted(hidden, hidden.shape, _POOLED | _REDUCE)
    with on_device_of(pooled):
        if needs:
            plan.hidden_grad(
                grad_gate, gate, None if single else hidden, expand_weight, grad_v, grad_u, samples, channels, through
            )
            plan.weight_grads(
                pooled, pooled if single else hidden, reduce_weight, grad_v, grad_u, None if single else grad_pooled,
                grad_reduce_weight, grad_reduce_bias, grad_expand_weight, grad_expand_bias,
                samples, channels, width, plan.expand_tiles, plan.reduce_tiles,
            )  # fmt: skip

    def result(grad: Tensor | None, like: Tensor, bit: int) -> Tensor:
        return grad if grad is not None and needs & bit else like.new_empty(0)

    return (
        result(grad_pooled, pooled, _POOLED),
        result(grad_reduce_weight, expand_weight, _REDUCE_WEIGHT),
        result(grad_reduce_bias, expand_weight, _REDUCE_BIAS),
        result(grad_expand_weight, expand_weight, _EXPAND_WEIGHT),
        result(grad_expand_bias, expand_weight, _EXPAND_BIAS),
    )
