"""Operator schemas, shape functions and the autograd Function of squeeze_excite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._autograd import Unsaved, differentiates_formula, distinct, needs_grad, reference_backward
from .._registry import accumulation_dtype, check_devices, define, overload
from . import reference
from .checks import ACTIVATIONS, GATES, OUTPUT_ACTIVATIONS

# The integers that stand for the pointwise functions in the schemas; csrc/squeeze_excite/squeeze_excite.h has the same.
ACTIVATION = {name: number for number, name in enumerate(ACTIVATIONS)}
GATE = {name: number for number, name in enumerate(GATES)}
OUTPUT_ACTIVATION = {name: number for number, name in enumerate(OUTPUT_ACTIVATIONS)}
INPUT_ACTIVATION = {None: 0, "relu": 1, "silu": 2, "hard_swish": 3}

# Bits of `needs` in the backward operator, in the order of its results.
NEEDS_X, NEEDS_RESIDUAL, NEEDS_WEIGHTS = 1, 2, 4

_TRITON = "attnkernels.ops.squeeze_excite.triton_impl"
_grad_enabled = torch.is_grad_enabled


def saved_columns(channels: int, reduce_weight: Tensor | None) -> int:
    """Columns of `saved`: the pooled means [C], the hidden pre-activations [rd], the gates [C]."""
    return 2 * channels + (0 if reduce_weight is None else reduce_weight.shape[0])


def _forward_fake(
    x, reduce_weight, reduce_bias, expand_weight, expand_bias, residual, activation, gate, output_activation
):
    columns = saved_columns(x.shape[1], reduce_weight)
    return _output_like(x), x.new_empty((x.shape[0], columns), dtype=accumulation_dtype(x.dtype))


def _output_like(x: Tensor) -> Tensor:
    """An empty tensor of x's shape: channels_last where x is channels_last (and not both), contiguous otherwise."""
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.empty_like(x, memory_format=torch.channels_last)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _backward_fake(
    grad_y,
    x,
    y,
    reduce_weight,
    reduce_bias,
    expand_weight,
    expand_bias,
    saved,
    activation,
    gate,
    output_activation,
    needs,
):
    def parameter(like: Tensor | None) -> Tensor:
        return (
            x.new_empty(0)
            if like is None or not needs & NEEDS_WEIGHTS
            else torch.empty_like(like, memory_format=torch.contiguous_format)
        )

    return (
        _output_like(x) if needs & NEEDS_X else x.new_empty(0),
        _output_like(x) if needs & NEEDS_RESIDUAL else x.new_empty(0),
        parameter(reduce_weight),
        parameter(reduce_bias),
        parameter(expand_weight),
        parameter(expand_bias),
    )


_FORWARD_ARGUMENTS = (
    "Tensor? reduce_weight, Tensor? reduce_bias, Tensor expand_weight, Tensor? expand_bias, Tensor? residual,"
    " int activation, int gate, int output_activation"
)

# saved [N, 2 C + rd], in the accumulation dtype: means | hidden pre-activations | gates
define(
    "squeeze_excite",
    f"(Tensor x, {_FORWARD_ARGUMENTS}) -> (Tensor y, Tensor saved)",
    _forward_fake,
    f"{_TRITON}:squeeze_excite",
)

# y only where output_activation needs it; results that `needs` does not ask for are empty, [0].
# grad_residual is asked for only with an output activation: without one it is grad_y itself.
define(
    "squeeze_excite_backward",
    "(Tensor grad_y, Tensor x, Tensor? y, Tensor? reduce_weight, Tensor? reduce_bias, Tensor expand_weight,"
    " Tensor? expand_bias, Tensor saved, int activation, int gate, int output_activation, int needs)"
    " -> (Tensor grad_x, Tensor grad_residual, Tensor grad_reduce_weight, Tensor grad_reduce_bias,"
    " Tensor grad_expand_weight, Tensor grad_expand_bias)",
    _backward_fake,
    f"{_TRITON}:squeeze_excite_backward",
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


class SqueezeExciteFunction(torch.autograd.Function):
    """Saves x, the weights and O(N C) numbers; y too where the output activation needs its sign."""

    @staticmethod
    def forward(
        ctx, x, reduce_weight, reduce_bias, expand_weight, expand_bias, residual,
        activation, gate, output_activation, backend,
    ):  # fmt: skip
        y, saved = overload(backend, "squeeze_excite")(
            x, reduce_weight, reduce_bias, expand_weight, expand_bias, residual,
            ACTIVATION[activation], GATE[gate], OUTPUT_ACTIVATION[output_activation],
        )  # fmt: skip
        ctx.set_materialize_grads(False)
        ctx.activation, ctx.gate, ctx.output_activation, ctx.backend = activation, gate, output_activation, backend
        ctx.biases = Unsaved(reduce_bias, expand_bias)
        ctx.save_for_backward(x, reduce_weight, expand_weight, y if output_activation else None, saved)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        if grad_y is None:
            return (None,) * 10
        if differentiates_formula(grad_y):
            return *_differentiable_backward(ctx, grad_y), None, None, None, None
        x, reduce_weight, expand_weight, y, saved = ctx.saved_tensors
        reduce_bias, expand_bias = ctx.biases.tensors
        wanted = ctx.needs_input_grad
        needs = NEEDS_X * wanted[0] | NEEDS_WEIGHTS * any(wanted[1:5])
        if wanted[5] and ctx.output_activation:
            needs |= NEEDS_RESIDUAL
        grads: list[Tensor | None] = [None] * 6
        if needs:
            grad_x, grad_residual, *grad_weights = overload(ctx.backend, "squeeze_excite_backward")(
                grad_y, x, y, reduce_weight, reduce_bias, expand_weight, expand_bias, saved,
                ACTIVATION[ctx.activation], GATE[ctx.gate], OUTPUT_ACTIVATION[ctx.output_activation], needs,
            )  # fmt: skip
            grads = [grad_x, *grad_weights, grad_residual]
        if wanted[5] and not ctx.output_activation:
            grads[5] = grad_y
        return *(grad if want else None for grad, want in zip(grads, wanted, strict=False)), None, None, None, None


def run(
    backend: str, tensors: Sequence[Tensor | None], activation: str, gate: str, output_activation: str | None
) -> Tensor:
    """squeeze_excite on a backend of kernels, recorded where autograd wants it.

    Args:
        backend: the backend.
        tensors: x, reduce_weight, reduce_bias, expand_weight, expand_bias and residual.
        activation, gate, output_activation: names, as of the public function.
    """
    if _grad_enabled() and needs_grad(*tensors):
        return SqueezeExciteFunction.apply(*distinct(*tensors), activation, gate, output_activation, backend)
    return overload(backend, "squeeze_excite")(
        *tensors, ACTIVATION[activation], GATE[gate], OUTPUT_ACTIVATION[output_activation]
    )[0]


def _differentiable_backward(ctx, grad_y: Tensor) -> list[Tensor | None]:
    x, reduce_weight, expand_weight, y, _ = ctx.saved_tensors
    reduce_bias, expand_bias = ctx.biases.unchanged("squeeze_excite", "reduce_bias", "expand_bias")
    # The residual is not saved: of it, as of y, only where the activation is open counts, which has no derivative.
    grad_z = torch.ops.aten.threshold_backward(grad_y, y.detach(), 0) if ctx.output_activation else grad_y

    def gated(*inputs: Tensor | None) -> Tensor:
        return reference.excited(*inputs, ctx.activation, ctx.gate)

    grads = reference_backward(gated, (x, reduce_weight, reduce_bias, expand_weight, expand_bias), grad_z)
    return [*grads, grad_z if ctx.needs_input_grad[5] else None]
