"""The check of every backend: forward and gradients against the reference in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import attnkernels

from .. import backends
from ..ops import _checks
from ._accuracy import assert_close_to_float64, uninitialized_is_nan
from ._cases import OpCase, gradients, in_float64


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
