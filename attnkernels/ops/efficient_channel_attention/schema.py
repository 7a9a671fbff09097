"""The record of efficient_channel_attention: its operators and what else the library knows of it."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _gate
from .._autocast import parameters_as_map
from .._layout import empty
from .._op import FusedOp
from .._registry import Operator, Shape, accumulation_dtype
from . import reference
from .checks import check

# Bits of `needs` in the backward operator; csrc/efficient_channel_attention/efficient_channel_attention.h has the same.
NEEDS_X, NEEDS_WEIGHT, NEEDS_RESIDUAL = 0b001, 0b010, 0b100


def _forward_fake(x, weight, residual, circular, gate, output_activation):
    return empty(x.shape, x, x), x.new_empty((x.shape[0], 2 * x.shape[1]), dtype=accumulation_dtype(x.dtype))


def _backward_fake(grad_y, x, y, weight, saved, circular, gate, output_activation, needs):
    return (
        empty(x.shape, x, x, needs & NEEDS_X),
        torch.empty_like(weight, memory_format=torch.contiguous_format) if needs & NEEDS_WEIGHT else x.new_empty(0),
        empty(x.shape, x, x, needs & NEEDS_RESIDUAL),
    )


def _convolution_flops(x: Shape, weight: Shape) -> int:
    return 2 * x[0] * x[1] * weight[-1]


def _forward_flops(x: Shape, weight: Shape, *rest, **out) -> int:
    return _convolution_flops(x, weight)


def _backward_flops(grad_y: Shape, x: Shape, y: Shape | None, weight: Shape, *rest, **out) -> int:
    return (rest[-1] & (NEEDS_X | NEEDS_WEIGHT)).bit_count() * _convolution_flops(x, weight)


def _formula_backward(x, weight, residual, y, grad_y, circular, gate, output_activation):
    def gated(*inputs: Tensor) -> Tensor:
        return reference.gated(*inputs, circular, gate)

    return _gate.formula_backward(gated, (x, weight), y, grad_y, output_activation)


EFFICIENT_CHANNEL_ATTENTION = FusedOp(
    # saved [N, 2 C], in the accumulation dtype: means | gates
    forward=Operator(
        "efficient_channel_attention(Tensor x, Tensor weight, Tensor? residual, int circular, int gate,"
        " int output_activation) -> (Tensor y, Tensor saved)",
        _forward_fake,
        _forward_flops,
    ),
    # y only where output_activation needs it; grad_residual is asked for only with an output activation
    backward=Operator(
        "efficient_channel_attention_backward(Tensor grad_y, Tensor x, Tensor? y, Tensor weight, Tensor saved,"
        " int circular, int gate, int output_activation, int needs)"
        " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_residual)",
        _backward_fake,
        _backward_flops,
    ),
    choices={"circular": (False, True), "gate": _gate.GATES, "output_activation": _gate.OUTPUT_ACTIVATIONS},
    formula=reference.attended,
    formula_backward=_formula_backward,
    check=check,
    keeps_output=lambda circular, gate, output_activation: output_activation is not None,
    passed_through=lambda circular, gate, output_activation: 0 if output_activation else NEEDS_RESIDUAL,
    autocast=parameters_as_map(slice(1, 2)),
    callables=("gate",),
    when_compiled="torch.compile fuses the plain formula into its neighbours",
    example=lambda device: ((torch.zeros(1, 8, 4, 4, device=device), torch.zeros(3, device=device)), {}),
)
