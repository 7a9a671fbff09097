"""The Triton backend of efficient_channel_attention: launchers with the operators' schemas, to be called directly.

Forward: sums, gates, scale. Backward: sums of dz x, gradients of the means and parts of the weight's, the weight's
gradient, gradients of the maps.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from .._layout import dense
from .._registry import accumulation_dtype
from .._triton import Launch, ceil_div, on_device_of
from .._triton_gate import GateCall, Passes, contiguous
from . import triton_kernels as kernels
from .schema import NEEDS_RESIDUAL, NEEDS_WEIGHT, NEEDS_X

# Channels of a program of one warp, and those that it reads at a time, one a thread: all that up to 17 taps reach.
_OUTPUTS, _INPUTS = 16, 32
# Taps whose products a program takes at a time; real networks have 3 to 7.
_TAPS = 8
# Parts of the weight's gradient that a program of four warps adds at a time, 8 a thread.
_PARTS = 1024


class Forward(NamedTuple):
    passes: Passes
    gates: Launch


class Backward(NamedTuple):
    passes: Passes
    programs: int  # of `gate_grads`, each of which has its part of the weight's gradient
    gate_grads: Launch
    weight_grad: Launch


def _programs(call: GateCall) -> int:
    return call.samples * ceil_div(call.channels, _OUTPUTS)


@functools.lru_cache(maxsize=4096)
def _plan_forward(call: GateCall, circular: int) -> Forward:
    gates = Launch(
        kernels.efficient_channel_attention_gates, (_programs(call),), keep=call.aligned,
        CIRCULAR=bool(circular), GATE=call.gate, BLOCK_OUTPUTS=_OUTPUTS, BLOCK_INPUTS=_INPUTS, warps=1,
    )  # fmt: skip
    return Forward(Passes(call), gates)


@functools.lru_cache(maxsize=4096)
def _plan_backward(call: GateCall, circular: int, taps: int, needs: int) -> Backward:
    programs = _programs(call)
    gate_grads = Launch(
        kernels.efficient_channel_attention_gate_grads, (programs,), keep=call.aligned,
        CIRCULAR=bool(circular), GATE=call.gate,
        BLOCK_OUTPUTS=_OUTPUTS, BLOCK_INPUTS=_INPUTS, BLOCK_TAPS=_TAPS, warps=1,
    )  # fmt: skip
    weight_grad = Launch(kernels.efficient_channel_attention_weight_grad, (taps,), keep=call.aligned, BLOCK=_PARTS)
    return Backward(Passes(call), programs, gate_grads, weight_grad)


def efficient_channel_attention(
    x: Tensor, weight: Tensor, residual: Tensor | None, circular: int, gate: int, output_activation: int
) -> tuple[Tensor, Tensor]:
    """The operator `efficient_channel_attention` (schema.py has its schema): y and `saved`."""
    x, layout = dense(x)
    weight, residual = weight.contiguous(), contiguous(residual, layout)
    call = GateCall.of(x, layout, gate, output_activation, weight, residual)
    passes, gates = _plan_forward(call, circular)
    samples, channels, pixels = call[:3]
    y = torch.empty_like(x, memory_format=layout)
    saved = x.new_empty((samples, 2 * channels), dtype=accumulation_dtype(x.dtype))
    with on_device_of(x):
        sums = passes.sums(x)
        gates(sums, weight, saved, samples, channels, pixels, weight.numel(), passes.chunks)
        passes.scale(x, residual, y, saved)
    return y, saved


def efficient_channel_attention_backward(
    grad_y: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    saved: Tensor,
    circular: int,
    gate: int,
    output_activation: int,
    needs: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `efficient_channel_attention_backward`; `needs` is a sum of the NEEDS_ bits."""
    x, layout = dense(x)
    grad_y = grad_y.contiguous(memory_format=layout)
    y = contiguous(y, layout) if output_activation else None
    weight, saved = weight.contiguous(), saved.contiguous()
    call = GateCall.of(x, layout, gate, output_activation, weight, y, grad_y, saved)
    taps = weight.numel()
    plan = _plan_backward(call, circular, taps, needs)
    passes, (samples, channels, _) = plan.passes, call[:3]
    grads = saved.new_empty((samples, channels)) if needs & NEEDS_X else None
    parts = saved.new_empty((taps, plan.programs)) if needs & NEEDS_WEIGHT else None
    grad_weight = torch.empty_like(weight) if needs & NEEDS_WEIGHT else x.new_empty(0)
    with on_device_of(x):
        if needs & (NEEDS_X | NEEDS_WEIGHT):
            sums = passes.sums(x, grad_y, y)
            plan.gate_grads(sums, weight, saved, grads, parts, samples, channels, taps, passes.chunks)
        if needs & NEEDS_WEIGHT:
            plan.weight_grad(parts, grad_weight, plan.programs)
        grad_x, grad_residual = passes.input_grads(
            x, grad_y, y, saved, grads, (needs & NEEDS_X, needs & NEEDS_RESIDUAL)
        )
    return grad_x, grad_weight, grad_residual
