"""Every op's cases through the public function with `backend="triton"`: numbers of forward and gradients."""

from __future__ import annotations

import pytest
from triton_wall import UNDER_TTSEM

import attnkernels
from attnkernels import testing


def _runs():
    """On a GPU every case in every dtype and layout; under ttsem (a second each) the small ones, dtypes in turn."""
    turn = 0
    for case in testing.cases(small=UNDER_TTSEM):
        for layout in testing.LAYOUTS:
            for dtype in (testing.DTYPES[turn % 4],) if UNDER_TTSEM else testing.DTYPES:
                yield pytest.param(case, dtype, layout, id=f"{case}-{dtype}-{layout}")
            turn += 1
        turn += 1  # so that a dtype meets both layouts


@pytest.mark.parametrize(("case", "dtype", "layout"), _runs())
def test_forward_and_gradients(case, dtype, layout):
    args, kwargs = case.make(dtype, "cuda", layout)
    output, grads, grad_output = testing.gradients(case.op, args, kwargs, "triton")
    assert output.dtype == dtype
    assert attnkernels.backend_of(case.op, *args, **kwargs, backend="triton") == "triton"
    args64, kwargs64 = testing.in_float64((args, kwargs))
    want, want_grads, _ = testing.gradients(case.op, args64, kwargs64, "reference", grad_output.double().cpu())
    testing.assert_close_to_float64(output, want, "output")
    for i, (grad, want_grad) in enumerate(zip(grads, want_grads, strict=True)):
        testing.assert_close_to_float64(grad, want_grad, f"gradient of tensor argument {i}")
