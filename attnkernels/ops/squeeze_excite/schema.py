"""The record of squeeze_excite: its operators and what else the library knows of it."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from .. import _gate
from .._autocast import parameters_as_map
from .._layout import empty
from .._op import FusedOp
from .._registry import Operator, Shape, accumulation_dtype, check_devices
from . import reference
from .checks import ACTIVATIONS, GATES, OUTPUT_ACTIVATIONS, check

# Bits of `needs` in the backward operator; csrc/squeeze_excite/squeeze_excite.h has the same.
NEEDS_X, NEEDS_WEIGHTS, NEEDS_RESIDUAL = 0b000001, 0b011110, 0b100000
INPUT_ACTIVATION = {None: 0, "relu": 1, "silu": 2, "hard_swish": 3}


def saved_columns(channels: int, reduce_weight: Tensor | None) -> int:
    """Columns of `saved`: the pooled means [C], the hidden pre-activations [rd], the gates [C]."""
    return 2 * channels + (0 if reduce_weight is None else reduce_weight.shape[0])


def _forward_fake(x, reduce_weight, reduce_bias, expand_weight, expand_bias, residual, *options):
    saved = x.new_empty((x.shape[0], saved_columns(x.shape[1], reduce_weight)), dtype=accumulation_dtype(x.dtype))
    return empty(x.shape, x, x), saved


def _backward_fake(grad_y, x, y, reduce_weight, reduce_bias, expand_weight, expand_bias, saved, *options):
    needs = options[-1]

    def parameter(like: Tensor | None) -> Tensor:
        if like is None or not needs & NEEDS_WEIGHTS:
            return x.new_empty(0)
        return torch.empty_like(like, memory_format=torch.contiguous_format)

    return (
        empty(x.shape, x, x, needs & NEEDS_X),
        empty(x.shape, x, x, needs & NEEDS_RESIDUAL),
        *map(parameter, (reduce_weight, reduce_bias, expand_weight, expand_bias)),
    )


def _layers(x: Shape, reduce_weight: Shape | None, expand_weight: Shape) -> tuple[int, int]:
    """Floating-point operations of the two fully connected layers, on one vector per sample."""
    reduce, expand = (0 if weight is None else 2 * x[0] * prod(weight) for weight in (reduce_weight, expand_weight))
    return reduce, expand


def _forward_flops(x: Shape, reduce_weight: Shape | None, _: Any, expand_weight: Shape, *rest: Any, **out: Any) -> int:
    return sum(_layers(x, reduce_weight, expand_weight))


def _backward_flops(
    grad_y: Shape, x: Shape, y: Any, reduce_weight: Shape | None, _: Any, expand_weight: Shape, *rest: Any, **out: Any
) -> int:
    needs = rest[-1]
    reduce, expand = _layers(x, reduce_weight, expand_weight)
    count = 0
    if needs & NEEDS_WEIGHTS:
        count += reduce + expand
        if reduce_weight is not None:
            count += expand  # back to the hidden layer
    if needs & NEEDS_X:
        count += reduce + (0 if count and reduce_weight is not None else expand)
    return count


_FORWARD_ARGUMENTS = (
    "Tensor? reduce_weight, Tensor? reduce_bias, Tensor expand_weight, Tensor? expand_bias, Tensor? residual,"
    " int activation, int gate, int output_activation"
)

# saved [N, 2 C + rd], in the accumulation dtype: means | hidden pre-activations | gates
_FORWARD = Operator(
    f"squeeze_excite(Tensor x, {_FORWARD_ARGUMENTS}) -> (Tensor y, Tensor saved)", _forward_fake, _forward_flops
)

# y only where output_activation needs it. grad_residual is asked for only with an output activation: without one it is
# grad_y itself.
_BACKWARD = Operator(
    "squeeze_excite_backward(Tensor grad_y, Tensor x, Tensor? y, Tensor? reduce_weight, Tensor? reduce_bias,"
    " Tensor expand_weight, Tensor? expand_bias, Tensor saved, int activation, int gate, int output_activation,"
    " int needs)"
    " -> (Tensor grad_x, Tensor grad_residual, Tensor grad_reduce_weight, Tensor grad_reduce_bias,"
    " Tensor grad_expand_weight, Tensor grad_expand_bias)",
    _backward_fake,
    _backward_flops,
)

# squeeze_excite of input_activation(batch_norm(x)), by running statistics, written over x, which is contiguous or
# channels_last; of input_activation(x) where no norm is given. For inference, and of the CPU library alone.
torch.library.define(
    "attnkernels::squeeze_excite_",
    "(Tensor(a!) x, Tensor? norm_mean, Tensor? norm_variance, Tensor? norm_weight, Tensor? norm_bias,"
    f" float norm_epsilon, int input_activation, {_FORWARD_ARGUMENTS}) -> ()",
)
torch.library.register_fake(
    "attnkernels::squeeze_excite_", lambda *arguments: check_devices("squeeze_excite", "x", *arguments)
)


def _formula_backward(
    x, reduce_weight, reduce_bias, expand_weight, expand_bias, residual, y, grad_y, activation, gate, output_activation
):
    def gated(*inputs: Tensor | None) -> Tensor:
        return reference.gated(*inputs, activation, gate)

    inputs = (x, reduce_weight, reduce_bias, expand_weight, expand_bias)
    return _gate.formula_backward(gated, inputs, y, grad_y, output_activation)


def _example(device: str) -> tuple[tuple, dict]:
    x = torch.zeros(1, 8, 4, 4, device=device)
    weight = torch.zeros(8, 8, device=device)
    return (x, weight, None, weight, None), {}


SQUEEZE_EXCITE = FusedOp(
    forward=_FORWARD,
    backward=_BACKWARD,
    choices={"activation": ACTIVATIONS, "gate": GATES, "output_activation": OUTPUT_ACTIVATIONS},
    formula=reference.excited,
    formula_backward=_formula_backward,
    check=check,
    unsaved=("reduce_bias", "expand_bias"),
    keeps_output=lambda activation, gate, output_activation: output_activation is not None,
    passed_through=lambda activation, gate, output_activation: 0 if output_activation else NEEDS_RESIDUAL,
    autocast=parameters_as_map(slice(1, 5)),
    callables=("activation", "gate"),
    # Inductor fuses the pooling into the kernel before it and the scaling into the one after it (an opaque op measured
    # 0.84-0.97x on whole models).
    when_compiled="torch.compile fuses the plain formula into its neighbours",
    example=_example,
)
