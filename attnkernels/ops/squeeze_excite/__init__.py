"""squeeze_excite: x scaled by a gate computed from its own channel means, in one call."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from ... import backends
from .._autocast import autocasts
from . import reference, schema
from .checks import OP, check


def squeeze_excite(
    x: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    *,
    activation: str | Callable[[Tensor], Tensor] = "relu",
    gate: str | Callable[[Tensor], Tensor] = "sigmoid",
    residual: Tensor | None = None,
    output_activation: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """Squeeze-and-excitation (Hu et al. 2018, arXiv:1709.01507): y = output_activation(x * g + residual).

    g = gate(expand_weight @ activation(reduce_weight @ mean_hw(x) + reduce_bias) + expand_bias), per sample.

    Args:
        x: [N, C, H, W], float32, float64, float16 or bfloat16, any strides; contiguous and channels_last run natively.
        reduce_weight: [rd, C] or [rd, C, 1, 1]; None for a single-layer excitation (effective SE), where rd = C.
        reduce_bias: [rd] or None.
        expand_weight: [C, rd] or [C, rd, 1, 1].
        expand_bias: [C] or None.
        activation: "relu", "silu", or any callable on tensors; with a callable the whole op is plain PyTorch (slower).
        gate: "sigmoid", "hard_sigmoid", or a callable, as for `activation`.
        residual: [N, C, H, W] added after the gate, or None.
        output_activation: "relu" or None, applied last.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        [N, C, H, W] in x's dtype and memory format.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or its dtype is not x's (under autocast the weights
            are cast to x's dtype instead).
        ValueError: ranks, shapes or devices do not match; an unknown name; a backend that cannot run here.
    """
    tensors = (x, reduce_weight, reduce_bias, expand_weight, expand_bias, residual)
    if chosen := backends.plain_backend(x, backend, tensors):
        try:
            if chosen != "cpu":  # whose operator checks as much
                check(*tensors[:5], activation, gate, residual, output_activation)
            return schema.run(chosen, tensors, activation, gate, output_activation)
        except (RuntimeError, LookupError, TypeError):
            pass  # callables, or wrong arguments: what follows names them
    if backends.overridden(tensors):
        return handle_torch_function(
            squeeze_excite, tensors, x, reduce_weight, reduce_bias, expand_weight, expand_bias,
            activation=activation, gate=gate, residual=residual, output_activation=output_activation, backend=backend,
        )  # fmt: skip
    if isinstance(x, Tensor) and autocasts(x):
        reduce_weight, reduce_bias, expand_weight, expand_bias = (
            value.to(x.dtype) if isinstance(value, Tensor) else value
            for value in (reduce_weight, reduce_bias, expand_weight, expand_bias)
        )
    check(x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate, residual, output_activation)
    # Under torch.compile the plain formula wins: Inductor fuses the pooling into the kernel before it and the scaling
    # into the one after it (an opaque op measured 0.84-0.97x on whole models).
    chosen = backends.choose(
        OP, x, backend, tensors,
        only_formula="where activation or gate is a callable" if callable(activation) or callable(gate) else "",
        when_compiled="torch.compile fuses the plain formula into its neighbours",
    )  # fmt: skip
    if chosen == "reference":
        return reference.excited(
            x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate, residual, output_activation
        )  # fmt: skip
    tensors = (x, reduce_weight, reduce_bias, expand_weight, expand_bias, residual)
    return schema.run(chosen, tensors, activation, gate, output_activation)


def _example(device: str):
    x = torch.zeros(1, 8, 4, 4, device=device)
    weight = torch.zeros(8, 8, device=device)
    return (x, weight, None, weight, None), {}


backends.register(backends.Operator(squeeze_excite, _example))
