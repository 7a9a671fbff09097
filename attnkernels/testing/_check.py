"""The checks of every backend: forward and gradients against the reference in float64, and gradients one by one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import attnkernels

from .. import backends
from ..ops import _checks
from ._accuracy import assert_close_to_float64, uninitialized_is_nan
from ._cases import OpCase, gradients, in_float64, map_tensors, run, tensors_of


def check_against_float64(case: OpCase, backend: str, device: str, dtype: torch.dtype, layout: str) -> None:
    """Run a case forward and backward on a backend and hold every result to the reference evaluated in float64."""
    where = "check_against_float64"
    if not isinstance(case, OpCase):
        _checks.fail(where, "case", "an OpCase", _checks.shown(case), TypeError)
    backends.checked(backend, f"{where}: backend")
    args, kwargs = case.make(dtype, device, layout)
    with uninitialized_is_nan():
        output, grads, grad_output = gradients(case.op, args, kwargs, backend)
    assert output.dtype == dtype
    assert attnkernels.backend_of(case.op, *args, **kwargs, backend=backend) == backend
    args64, kwargs64 = in_float64((args, kwargs))
    want, want_grads, _ = gradients(case.op, args64, kwargs64, "reference", grad_output.double().cpu())
    check_results(case, backend, output, grads, want, want_grads)


def check_results(
    case: OpCase, backend: str, output: Tensor, grads: Sequence[Tensor], want: Tensor, want_grads: Sequence[Tensor]
) -> None:
    """Hold the output and the gradients that a backend gave for a case to those of the reference in float64."""
    dtype = output.dtype
    assert_close_to_float64(output, want, "output", rounded_inside=case.rounded_inside(backend, dtype))
    largest = max((grad.abs().max().item() for grad in want_grads if grad.numel()), default=0.0)
    for i, (grad, want_grad) in enumerate(zip(grads, want_grads, strict=True)):
        assert_close_to_float64(
            grad, want_grad, f"gradient of tensor argument {i}",
            rounded_inside=case.rounded_inside(backend, dtype, i), largest=largest if i in case.through_output else 0.0,
        )  # fmt: skip


def check_gradients_alone(case: OpCase, backend: str, device: str, layout: str) -> None:
    """Hold the gradients to each choice of arguments, where kernels skip the others, to the bits of all at once."""
    args, kwargs = map_tensors(case.make(torch.float32, device, layout), lambda x: x.requires_grad_())
    inputs = list(tensors_of((args, kwargs)))
    output = run(case.op, args, kwargs, backend)
    grad_output = torch.randn_like(output)
    every = torch.autograd.grad(output, inputs, grad_output)
    for choice in range(1, 2 ** len(inputs)):
        wanted = [i for i in range(len(inputs)) if choice >> i & 1]
        for i, x in enumerate(inputs):
            x.requires_grad_(i in wanted)
        with uninitialized_is_nan():
            output = run(case.op, args, kwargs, backend)
            grads = torch.autograd.grad(output, [inputs[i] for i in wanted], grad_output)
        for i, grad in zip(wanted, grads, strict=True):
            assert torch.equal(grad, every[i]), f"gradient of tensor argument {i}, with those of {wanted} alone"
